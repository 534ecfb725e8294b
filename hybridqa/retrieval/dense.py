"""Dense search: an exact FAISS index for each collection, kept in step with the catalog's vectors.

Knows nothing about text, embedders or ranking by anything but cosine. Invariant: a search answers as if every vector of
the collection, and no other, had been compared one by one with the question in the catalog's state at its beginning;
the files are copies, and losing them costs time alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import faiss
import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from hybridqa.catalog import Catalog, Ids, State
from hybridqa.errors import CollectionNotFoundError, EmbedderMismatchError, StoreError
from hybridqa.retrieval.dense_file import DenseFile, new_index, sweep

log = logging.getLogger(__name__)

FOLDER = "dense"
LOCK_NAME = ".lock"
SAVE_SHARE = 8  # a file is written anew when 1/8 of the index has changed since
_LOCK_SECONDS = 30.0
NO_STATE: State = (-1, "")
_ATTEMPTS = 20  # against writers that re-embed the store again and again


@dataclass(slots=True)
class _Part:
    """One collection's index; its lock is held while it is searched or changed."""

    file: DenseFile
    lock: Lock = field(default_factory=Lock)
    index: Any = None  # faiss.IndexIDMap2; None before the first vector
    embedder: str | None = None
    state: State = NO_STATE  # of the catalog, that the index has reached
    unsaved: int = 0  # vectors added or removed since the file was read or written


class DenseIndex:
    """Cosine search over the passages of one collection at a time; safe to share between threads and processes."""

    def __init__(self, directory: Path, catalog: Catalog) -> None:
        """Keeps its files in `directory`/dense; reads and writes nothing yet."""
        self._directory = Path(directory).absolute() / FOLDER
        self._catalog = catalog
        self._parts: dict[str, _Part] = {}
        self._parts_lock = Lock()

    def search(
        self, query_D: NDArray[np.float32], k: int, collection: str, *, embedder: str | None = None
    ) -> list[tuple[int, float]]:
        """The `k` passages nearest to a vector of length 1: (passage id, cosine), best first, equal ones by id.

        With `embedder` (a fingerprint) given, raises `EmbedderMismatchError` when the store's vectors are another's.
        Raises `CollectionNotFoundError`.
        """
        part = self._part(collection)
        with part.lock:
            self._sync_part(part, collection)
            if part.index is None:
                return []
            query_1_D = self._checked(part, query_D, embedder)
            if (k := min(k, part.index.ntotal)) <= 0:
                return []
            scores, ids = part.index.search(query_1_D, k)
        found = [(int(i), float(score)) for i, score in zip(ids[0], scores[0], strict=True) if i >= 0]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))

    def cosines(
        self, query_D: NDArray[np.float32], ids: Sequence[int], collection: str, *, embedder: str | None = None
    ) -> dict[int, float]:
        """The cosines of those of the passages that are in the collection. Raises as `search` does."""
        part = self._part(collection)
        with part.lock:
            self._sync_part(part, collection)
            if part.index is None or not ids:
                return {}
            query_1_D = self._checked(part, query_D, embedder)
            wanted = np.array(sorted(set(ids)), dtype=np.int64)
            known = wanted[np.isin(wanted, _ids_of(part.index))]
            if not known.size:
                return {}
            vectors_N_D = part.index.reconstruct_batch(known)
        return dict(zip(known.tolist(), (vectors_N_D @ query_1_D[0]).tolist(), strict=True))

    def sync(self, collection: str | None = None) -> None:
        """Brings one collection to the catalog's state, or all that were searched, and deletes files of gone ones.

        Searching does this by itself. Call it after removals: what is removed then leaves the disk at once.
        """
        if collection is not None:
            part = self._part(collection)
            with part.lock:
                self._sync_part(part, collection)
            return
        for name in self._catalog.list_collections():
            part = self._part(name)
            if part.index is not None or part.file.exists():
                with part.lock, suppress(CollectionNotFoundError):  # removed since it was listed
                    self._sync_part(part, name)
        self._sweep()

    def save(self) -> None:
        """Writes what has changed since it was read or written. Raises `StorageFullError`, `OSError`."""
        with self._parts_lock:
            parts = list(self._parts.items())
        for collection, part in parts:
            with part.lock:
                if part.unsaved and self._synced(part, collection):
                    self._save_part(part, collection)

    def _synced(self, part: _Part, collection: str) -> bool:
        """Whether the part is of the catalog's state by now; what others have removed is not to be written again."""
        try:
            self._sync_part(part, collection)
        except CollectionNotFoundError:
            return False
        except StoreError as error:  # a file is a copy: without it, the next start takes longer
            log.warning("dense index %s is not written: %s", part.file.index_path, error)
            return False
        return bool(part.unsaved)

    def _part(self, collection: str) -> _Part:
        with self._parts_lock:
            if collection not in self._parts:
                self._parts[collection] = _Part(DenseFile(self._directory, collection))
            return self._parts[collection]

    def _checked(self, part: _Part, query_D: NDArray[np.float32], embedder: str | None) -> NDArray[np.float32]:
        """The query as faiss takes it, when it can be compared with the part's vectors."""
        query_1_D = np.ascontiguousarray(query_D, dtype=np.float32).reshape(1, -1)
        if (embedder is not None and embedder != part.embedder) or query_1_D.shape[1] != part.index.d:
            raise EmbedderMismatchError(
                f"the store's vectors are of the embedder {part.embedder!r} with {part.index.d} dimensions, the "
                f"question's of {embedder or 'an embedder'!r} with {query_1_D.shape[1]}; set the embedder back, or run "
                "`hybridqa refresh --embeddings` to make the store's anew."
            )
        return query_1_D

    def _sync_part(self, part: _Part, collection: str) -> None:
        """Adds and removes by the difference of ids; the caller holds the part's lock."""
        for _ in range(_ATTEMPTS):
            state = self._catalog.state()  # first: what is read below may be newer, never older
            if state == part.state:
                return
            embedder = self._catalog.embedder_fingerprint()
            try:
                wanted = self._catalog.vector_ids(collection)
            except CollectionNotFoundError:
                self._forget(part, collection)
                raise
            if embedder is None or not wanted.size:
                self._empty(part, embedder, state)
                return
            if part.embedder != embedder or part.state[0] >= state[0]:
                part.index, part.unsaved = self._load(part.file, embedder, wanted, state), 0
            index_ids = np.empty(0, np.int64) if part.index is None else _ids_of(part.index)
            gone = np.setdiff1d(index_ids, wanted, assume_unique=True)
            fresh, vectors_N_D = self._catalog.vectors(np.setdiff1d(wanted, index_ids, assume_unique=True))
            if self._catalog.embedder_fingerprint() != embedder:
                part.state = NO_STATE  # re-embedded meanwhile: which vectors were read is not certain
                part.embedder = None
                continue
            if gone.size:
                part.file.remove()  # a removed passage stays in no file
                part.index.remove_ids(gone)
            if fresh.size:
                if part.index is None:
                    part.index = new_index(vectors_N_D.shape[1])
                part.index.add_with_ids(vectors_N_D, fresh)
            part.embedder, part.state = embedder, state
            part.unsaved += gone.size + fresh.size
            if part.index is not None and part.unsaved * SAVE_SHARE > part.index.ntotal:
                self._try_save(part, collection)
            return
        raise StoreError("the store's vectors are being replaced all the time; let the other process end, then repeat.")

    def _load(self, file: DenseFile, embedder: str, wanted: Ids, state: State) -> Any | None:
        """The index of the file, if its vectors are the catalog's."""
        newest, vector_1_D = self._catalog.vectors(wanted[-1:])
        if not newest.size:
            return None
        loaded = file.load(embedder, vector_1_D.shape[1], state)
        if loaded is None or not loaded[0].ntotal:
            return None
        index, known = loaded
        if not known and not self._agrees(index, wanted):
            log.warning("dense index %s is of another state of the store; rebuilding it", file.index_path)
            return None
        return index

    def _agrees(self, index: Any, wanted: Ids) -> bool:
        """Whether every vector that is in both is the same: a catalog put back from a backup gives ids anew."""
        common = np.intersect1d(_ids_of(index), wanted, assume_unique=True)
        return all(
            np.array_equal(index.reconstruct_batch(ids), vectors_N_D)
            for ids, vectors_N_D in self._catalog.iter_vectors(ids=common)
        )

    def _empty(self, part: _Part, embedder: str | None, state: State) -> None:
        part.file.remove()
        part.index, part.embedder, part.state, part.unsaved = None, embedder, state, 0

    def _forget(self, part: _Part, collection: str) -> None:
        """Drops a collection that is not in the catalog."""
        self._empty(part, None, NO_STATE)
        with self._parts_lock:
            self._parts.pop(collection, None)

    def _save_part(self, part: _Part, collection: str) -> None:
        if part.index is None:
            return
        assert part.embedder is not None
        self._directory.mkdir(parents=True, exist_ok=True)
        with FileLock(self._directory / LOCK_NAME, timeout=_LOCK_SECONDS):  # two savers would mix their pairs
            sweep(self._directory)
            part.file.save(part.index, part.embedder, part.state)
        part.unsaved = 0
        if self._catalog.state() != part.state:  # a removal may have deleted the file just before it was written
            with suppress(CollectionNotFoundError):
                if np.isin(_ids_of(part.index), self._catalog.vector_ids(collection)).all():
                    return
            part.file.remove()

    def _try_save(self, part: _Part, collection: str) -> None:
        """Saves if that is possible: a full disk or a read-only store costs the next start time, not this search."""
        try:
            self._save_part(part, collection)
        except (OSError, Timeout) as error:
            log.warning("dense index %s could not be written: %s", part.file.index_path, error)

    def _sweep(self) -> None:
        keep: set[Path] = set()
        for name in self._catalog.list_collections():
            file = DenseFile(self._directory, name)
            keep |= {file.index_path, file.about_path}
        if not self._directory.is_dir():
            return
        try:
            with FileLock(self._directory / LOCK_NAME, timeout=_LOCK_SECONDS):
                sweep(self._directory, keep)
        except (OSError, Timeout) as error:
            log.warning("old dense indexes in %s could not be deleted: %s", self._directory, error)


def _ids_of(index: Any) -> Ids:
    """The ids in the index, sorted."""
    return np.sort(faiss.vector_to_array(index.id_map).astype(np.int64))
