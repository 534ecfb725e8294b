"""The catalog's vectors: what the dense index is built from and kept in step with.

Knows nothing about embedders beyond their fingerprint. Invariant: every passage has exactly one vector, all vectors
have one dimension and one embedder, and `generation` grows whenever any of them changes.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np

from hybridqa.catalog_database import Database
from hybridqa.catalog_documents import (
    bump_generation,
    get_embedder,
    require_collection,
    set_embedder,
)
from hybridqa.catalog_rows import Ids, State, Vectors, batches, checked_vectors
from hybridqa.errors import InputError, StoreError
from hybridqa.types import Passage


class VectorTable:
    """Vectors by passage id; a part of `Catalog`."""

    _database: Database

    def generation(self) -> int:
        """A number that has grown whenever, in any process, vectors were added, removed or replaced."""
        return self.state()[0]

    def state(self) -> State:
        """The generation with a token made for it alone: a catalog put back from a backup counts on under others."""
        with self._database.read() as connection:
            found = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('generation', 'token')"))
        return int(found["generation"]), str(found.get("token", ""))

    def embedder_fingerprint(self) -> str | None:
        """Who made the store's vectors; None as long as it has none."""
        with self._database.read() as connection:
            known = get_embedder(connection)
        return None if known is None else known[0]

    def vector_ids(self, collection: str | None = None) -> Ids:
        """The ids of all vectors, or of one collection's, ascending; int64. Raises `CollectionNotFoundError`."""
        with self._database.read() as connection:
            # passages and vectors have the same ids, and this index is a hundred times smaller than the vectors
            if collection is None:
                found = connection.execute("SELECT passage_id FROM passages").fetchall()
            else:
                found = connection.execute(
                    "SELECT p.passage_id FROM documents AS d JOIN passages AS p USING (document_id) "
                    "WHERE d.collection_id = ?",
                    (require_collection(connection, collection),),
                ).fetchall()
        return np.sort(np.fromiter((row[0] for row in found), dtype=np.int64, count=len(found)))

    def vectors(self, ids: Sequence[int] | Ids | None = None) -> tuple[Ids, Vectors]:
        """All vectors, or those of `ids` that are there: ids ascending (int64, N) and vectors (float32, N_D)."""
        parts = list(self.iter_vectors(ids=ids))
        if not parts:
            with self._database.read() as connection:
                known = get_embedder(connection)
            return np.empty(0, np.int64), np.empty((0, known[1] if known else 0), np.float32)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def iter_vectors(self, batch: int = 4096, ids: Sequence[int] | Ids | None = None) -> Generator[tuple[Ids, Vectors]]:
        """The same in batches, all of one state of the store; `batch` bounds the memory, not the result."""
        wanted = None if ids is None else np.unique(np.asarray(ids, dtype=np.int64)).tolist()
        with self._database.read() as connection:
            if wanted is None:
                cursor = connection.execute("SELECT passage_id, vector FROM vectors ORDER BY passage_id")
                while found := cursor.fetchmany(batch):
                    yield _arrays(found)
                return
            for part in batches(wanted, batch):
                found = connection.execute(
                    "SELECT passage_id, vector FROM vectors WHERE passage_id IN (SELECT value FROM json_each(?)) "
                    "ORDER BY passage_id",
                    (json.dumps(part),),
                ).fetchall()
                if found:
                    yield _arrays(found)

    def iter_passages(self, batch: int = 256) -> Iterator[list[Passage]]:
        """All passages by id, in batches: what re-embedding reads. Each batch is read for itself."""
        last = 0
        while True:
            with self._database.read() as connection:
                found = connection.execute(
                    "SELECT p.passage_id, d.doc_id, c.name, p.ordinal, p.start, p.end, p.text, d.title, p.heading "
                    "FROM passages AS p JOIN documents AS d USING (document_id) JOIN collections AS c USING "
                    "(collection_id) WHERE p.passage_id > ? ORDER BY p.passage_id LIMIT ?",
                    (last, batch),
                ).fetchall()
            if not found:
                return
            yield [Passage(*row) for row in found]
            last = found[-1][0]

    def replace_embeddings(self, parts: Iterable[tuple[Sequence[int] | Ids, np.ndarray]], embedder: str) -> None:
        """Replaces every vector by those of (ids, vectors N_D) pairs, in one short transaction at the end.

        `parts` may compute as it goes: nothing is locked meanwhile. Raises `InputError` for unusable vectors and
        `StoreError` when passages were added meanwhile; then nothing has changed.
        """
        dimension = 0
        with self._database.connection() as connection:
            connection.execute("CREATE TEMP TABLE fresh (passage_id INTEGER PRIMARY KEY, vector BLOB NOT NULL)")
            try:
                for ids, embeddings_N_D in parts:
                    vectors_N_D = checked_vectors(embeddings_N_D, len(ids), "the re-embedded passages")
                    if dimension not in (0, vectors_N_D.shape[1]):
                        raise InputError(
                            f"embeddings have {vectors_N_D.shape[1]} dimensions after some with {dimension}; "
                            "expected one number for all."
                        )
                    dimension = vectors_N_D.shape[1]
                    connection.execute("BEGIN")  # in the temporary database alone
                    connection.executemany(
                        "INSERT OR REPLACE INTO fresh (passage_id, vector) VALUES (?, ?)",
                        [(int(i), vector_D.tobytes()) for i, vector_D in zip(ids, vectors_N_D, strict=True)],
                    )
                    connection.execute("COMMIT")
                connection.execute("BEGIN IMMEDIATE")
                missing = connection.execute(
                    "SELECT count(*) FROM passages WHERE passage_id NOT IN (SELECT passage_id FROM fresh)"
                ).fetchone()[0]
                if missing:
                    raise StoreError(
                        f"{missing} passages have no new vector: documents were added meanwhile; "
                        "run `hybridqa refresh --embeddings` again."
                    )
                connection.execute("DELETE FROM vectors")
                connection.execute(
                    "INSERT INTO vectors SELECT passage_id, vector FROM fresh "
                    "WHERE passage_id IN (SELECT passage_id FROM passages)"
                )
                if dimension:
                    set_embedder(connection, embedder, dimension)
                bump_generation(connection)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                connection.execute("DROP TABLE IF EXISTS temp.fresh")


def _arrays(found: list[tuple[int, bytes]]) -> tuple[Ids, Vectors]:
    ids = np.fromiter((row[0] for row in found), dtype=np.int64, count=len(found))
    vectors_N_D = np.frombuffer(b"".join(row[1] for row in found), dtype="<f4").reshape(len(found), -1)
    return ids, vectors_N_D
