"""The catalog's documents and their passages.

Knows nothing about how passages are cut or vectors made. Invariant: a document, its passages, their vectors and their
full-text rows change in one transaction, so a reader finds all of a document's old state or all of its new one.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Sequence

import numpy as np

from hybridqa import catalog_rows as rows
from hybridqa.catalog_database import Database
from hybridqa.catalog_rows import PassageDraft, PutResult, Vectors
from hybridqa.catalog_schema import create_full_text, fts_source, fts_table
from hybridqa.errors import CollectionNotFoundError, DocumentNotFoundError, EmbedderMismatchError
from hybridqa.types import Document, Passage

_DOCUMENT = (
    "SELECT d.doc_id, c.name, d.title, d.text, d.content_hash, d.source, d.media_type, d.metadata, d.added_at, "
    "d.updated_at FROM documents AS d JOIN collections AS c USING (collection_id) "
)
_PASSAGE = (
    "SELECT p.passage_id, d.doc_id, c.name, p.ordinal, p.start, p.end, p.text, d.title, p.heading "
    "FROM passages AS p JOIN documents AS d USING (document_id) JOIN collections AS c USING (collection_id) "
)


def find_collection(connection: sqlite3.Connection, name: str) -> int | None:
    """The collection's row id, if there is one."""
    row = connection.execute("SELECT collection_id FROM collections WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def require_collection(connection: sqlite3.Connection, name: str) -> int:
    """The collection's row id. Raises `CollectionNotFoundError`."""
    collection_id = find_collection(connection, name)
    if collection_id is None:
        raise CollectionNotFoundError(
            f"there is no collection {name!r}; `hybridqa ls` lists those there are, `hybridqa add` makes one."
        )
    return collection_id


def ensure_collection(connection: sqlite3.Connection, name: str) -> int:
    """The collection's row id, made when it is not there; the caller holds a write transaction."""
    collection_id = find_collection(connection, rows.checked_collection(name))
    if collection_id is None:
        cursor = connection.execute("INSERT INTO collections (name, created_at) VALUES (?, ?)", (name, rows.now()))
        assert cursor.lastrowid is not None
        collection_id = cursor.lastrowid
        create_full_text(connection, collection_id)
    return collection_id


def require_document(connection: sqlite3.Connection, collection: str, doc_id: str) -> tuple[int, int]:
    """Row ids of a collection and a document in it. Raises `CollectionNotFoundError`, `DocumentNotFoundError`."""
    collection_id = require_collection(connection, collection)
    row = connection.execute(
        "SELECT document_id FROM documents WHERE collection_id = ? AND doc_id = ?", (collection_id, doc_id)
    ).fetchone()
    if row is None:
        raise DocumentNotFoundError(
            f"collection {collection!r} has no document {doc_id!r}; `hybridqa ls` lists its documents."
        )
    return collection_id, int(row[0])


def bump_generation(connection: sqlite3.Connection) -> None:
    """Tells every process that the vectors have changed, and which history of the store the change belongs to."""
    connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
    connection.execute(
        "INSERT INTO meta (key, value) VALUES ('token', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (secrets.token_hex(8),),
    )


def set_embedder(connection: sqlite3.Connection, embedder: str, dimension: int) -> None:
    """Notes who made the vectors."""
    connection.executemany(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [("embedder", embedder), ("dimension", dimension)],
    )


def get_embedder(connection: sqlite3.Connection) -> tuple[str, int] | None:
    """Fingerprint and dimension of the store's vectors; None as long as it has none."""
    if connection.execute("SELECT 1 FROM passages LIMIT 1").fetchone() is None:
        return None
    found = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('embedder', 'dimension')"))
    return str(found["embedder"]), int(found["dimension"])


def delete_passages(connection: sqlite3.Connection, collection_id: int, document_id: int) -> None:
    """Removes a document's full-text rows, passages and vectors; the caller bumps the generation."""
    table = fts_table(collection_id)
    connection.execute(
        f"INSERT INTO {table} ({table}, rowid, title, heading, text) SELECT 'delete', passage_id, title, heading, text "
        f"FROM {fts_source(collection_id)} WHERE document_id = ?",
        (document_id,),
    )
    connection.execute("DELETE FROM passages WHERE document_id = ?", (document_id,))


class DocumentTable:
    """Documents and passages; a part of `Catalog`."""

    _database: Database

    def put_document(
        self, document: Document, passages: Sequence[PassageDraft], embeddings_N_D: np.ndarray, embedder: str
    ) -> PutResult:
        """Adds a document or replaces its content, in one transaction; its collection is made when it is not there.

        The same content hash leaves passages and vectors as they are and takes over source, media type and metadata.
        `added_at` and `updated_at` are the catalog's. Raises `InputError`, `EmbedderMismatchError`, `StorageFullError`.
        """
        metadata = rows.checked_document(document)
        vectors_N_D = rows.checked_passages(document, passages, embeddings_N_D)
        with self._database.write() as connection:
            _check_embedder(connection, embedder, vectors_N_D.shape[1])
            collection_id = ensure_collection(connection, document.collection)
            found = connection.execute(
                "SELECT document_id, content_hash FROM documents WHERE collection_id = ? AND doc_id = ?",
                (collection_id, document.doc_id),
            ).fetchone()
            if found is not None and found[1] == document.content_hash:
                _write_about(connection, found[0], document, metadata)
                return PutResult.UNCHANGED
            if found is not None:
                delete_passages(connection, collection_id, found[0])
            document_id = _write_document(connection, collection_id, document, metadata, len(passages))
            _write_passages(connection, collection_id, document_id, passages, vectors_N_D)
            set_embedder(connection, embedder, vectors_N_D.shape[1])
            bump_generation(connection)
        return PutResult.ADDED if found is None else PutResult.REPLACED

    def update_about(self, document: Document) -> None:
        """Takes over source, media type and metadata of a document that is there; its content stays as it is."""
        metadata = rows.checked_document(document)
        with self._database.read() as connection:  # mostly there is nothing to do, and no write lock is needed
            _, document_id = require_document(connection, document.collection, document.doc_id)
            known = connection.execute(
                "SELECT source, media_type, metadata FROM documents WHERE document_id = ?", (document_id,)
            ).fetchone()
        if known != (document.source, document.media_type, metadata):
            with self._database.write() as connection:
                _write_about(connection, document_id, document, metadata)

    def get_document(self, collection: str, doc_id: str) -> Document:
        """The document with its text. Raises `CollectionNotFoundError`, `DocumentNotFoundError`."""
        with self._database.read() as connection:
            _, document_id = require_document(connection, collection, doc_id)
            return _document(connection.execute(_DOCUMENT + "WHERE d.document_id = ?", (document_id,)).fetchone())

    def find_document(self, collection: str, doc_id: str) -> Document | None:
        """The document with its text, or None when it or its collection is not there."""
        with self._database.read() as connection:
            row = connection.execute(_DOCUMENT + "WHERE c.name = ? AND d.doc_id = ?", (collection, doc_id)).fetchone()
        return None if row is None else _document(row)

    def get_passages(self, ids: Sequence[int]) -> dict[int, Passage]:
        """Those of the passages that are there, by id."""
        found: dict[int, Passage] = {}
        with self._database.read() as connection:
            for batch in rows.batches([int(passage_id) for passage_id in ids]):
                for row in connection.execute(
                    _PASSAGE + "WHERE p.passage_id IN (SELECT value FROM json_each(?))", (json.dumps(batch),)
                ):
                    found[row[0]] = Passage(*row)
        return found

    def document_passages(self, collection: str, doc_id: str) -> list[Passage]:
        """A document's passages in order. Raises `CollectionNotFoundError`, `DocumentNotFoundError`."""
        with self._database.read() as connection:
            _, document_id = require_document(connection, collection, doc_id)
            found = connection.execute(_PASSAGE + "WHERE p.document_id = ? ORDER BY p.ordinal", (document_id,))
            return [Passage(*row) for row in found]

    def passages_near(self, passage: Passage, count: int) -> list[Passage]:
        """Up to `count` passages on each side of one, with it, in order; those of its document as it is now."""
        with self._database.read() as connection:
            where = "WHERE c.name = ? AND d.doc_id = ? AND p.ordinal BETWEEN ? AND ? ORDER BY p.ordinal"
            near = (passage.collection, passage.doc_id, passage.ordinal - count, passage.ordinal + count)
            return [Passage(*row) for row in connection.execute(_PASSAGE + where, near)]

    def text_between(self, collection: str, doc_id: str, start: int, end: int) -> str:
        """A stretch of a document's text, in characters; empty where the document is not there."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT substr(d.text, ?, ?) FROM documents AS d JOIN collections AS c USING (collection_id) "
                "WHERE c.name = ? AND d.doc_id = ?",
                (start + 1, end - start, collection, doc_id),
            ).fetchone()
        return "" if row is None else str(row[0])


def _check_embedder(connection: sqlite3.Connection, embedder: str, dimension: int) -> None:
    known = get_embedder(connection)
    if known is not None and known != (embedder, dimension):
        raise EmbedderMismatchError(
            f"the store's vectors are of the embedder {known[0]!r} with {known[1]} dimensions, not {embedder!r} with "
            f"{dimension}; set the embedder back, or run `hybridqa refresh --embeddings` to make them anew."
        )


def _write_about(connection: sqlite3.Connection, document_id: int, document: Document, metadata: str) -> None:
    connection.execute(
        "UPDATE documents SET source = ?, media_type = ?, metadata = ? WHERE document_id = ?",
        (document.source, document.media_type, metadata, document_id),
    )


def _write_document(
    connection: sqlite3.Connection, collection_id: int, document: Document, metadata: str, passages: int
) -> int:
    """Inserts the row or, keeping its id and `added_at`, overwrites it."""
    time = rows.now()
    row = connection.execute(
        "INSERT INTO documents (collection_id, doc_id, title, content_hash, source, media_type, metadata, added_at, "
        "updated_at, characters, passages, text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (collection_id, doc_id) DO UPDATE SET title = excluded.title, "
        "content_hash = excluded.content_hash, source = excluded.source, media_type = excluded.media_type, "
        "metadata = excluded.metadata, updated_at = excluded.updated_at, characters = excluded.characters, "
        "passages = excluded.passages, text = excluded.text RETURNING document_id",
        (
            collection_id,
            document.doc_id,
            document.title,
            document.content_hash,
            document.source,
            document.media_type,
            metadata,
            time,
            time,
            len(document.text),
            passages,
            document.text,
        ),
    ).fetchone()
    return int(row[0])


def _write_passages(
    connection: sqlite3.Connection,
    collection_id: int,
    document_id: int,
    passages: Sequence[PassageDraft],
    vectors_N_D: Vectors,
) -> None:
    connection.executemany(
        "INSERT INTO passages (document_id, ordinal, start, end, heading, text) VALUES (?, ?, ?, ?, ?, ?)",
        [(document_id, p.ordinal, p.start, p.end, p.heading, p.text) for p in passages],
    )
    ids = connection.execute("SELECT passage_id FROM passages WHERE document_id = ? ORDER BY ordinal", (document_id,))
    connection.executemany(
        "INSERT INTO vectors (passage_id, vector) VALUES (?, ?)",
        [(row[0], vector_D.tobytes()) for row, vector_D in zip(ids.fetchall(), vectors_N_D, strict=True)],
    )
    table = fts_table(collection_id)
    connection.execute(
        f"INSERT INTO {table} (rowid, title, heading, text) SELECT passage_id, title, heading, text "
        f"FROM {fts_source(collection_id)} WHERE document_id = ?",
        (document_id,),
    )


def _document(row: tuple[str, str, str, str, str, str | None, str, str, str, str]) -> Document:
    return Document(*row[:7], json.loads(row[7]), *row[8:])
