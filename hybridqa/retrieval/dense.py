"""Dense search: a FAISS index for each collection, kept in step with the catalog's vectors.

Knows nothing about text, embedders or ranking by anything but cosine. Invariant: a search finds passages of the
collection alone, in the catalog's state at its beginning, each with its exact cosine. In a collection of fewer than
`LISTS_FROM` passages they are the nearest there are. In a larger one they are found through inverted lists, if those
found at least `lists.RECALL` of the ten nearest when they were made; else they are the nearest there are, too. The
files are copies, and losing them costs time alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from hybridqa.catalog import Catalog, Ids, State
from hybridqa.errors import CollectionNotFoundError, EmbedderMismatchError, StoreError
from hybridqa.retrieval.dense_file import DenseFile, sweep
from hybridqa.retrieval.vector_index import VectorIndex

log = logging.getLogger(__name__)

FOLDER = "dense"
LOCK_NAME = ".lock"
LISTS_FROM = 50_000  # vectors; fewer are compared in less time than it takes to notice: `eval/large_index.py`
SAVE_SHARE = 8  # a file is written anew when 1/8 of the index has changed since
_LOCK_SECONDS = 30.0
NO_STATE: State = (-1, "")
_ATTEMPTS = 20  # against writers that re-embed the store again and again


@dataclass(slots=True)
class _Part:
    """One collection's index; its lock is held while it is searched or changed."""

    file: DenseFile
    lock: Lock = field(default_factory=Lock)
    index: VectorIndex | None = None  # None before the first vector
    embedder: str | None = None
    state: State = NO_STATE  # of the catalog, that the index has reached
    unsaved: int = 0  # vectors added or removed since the file was read or written


class DenseIndex:
    """Cosine search over the passages of one collection at a time; safe to share between threads and processes."""

    def __init__(self, directory: Path, catalog: Catalog, *, lists_from: int = LISTS_FROM) -> None:
        """Keeps its files in `directory`/dense; reads and writes nothing yet."""
        self._directory = Path(directory).absolute() / FOLDER
        self._catalog = catalog
        self._lists_from = lists_from
        self._parts: dict[str, _Part] = {}
        self._parts_lock = Lock()

    def search(
        self,
        query_D: NDArray[np.float32],
        k: int,
        collection: str,
        *,
        embedder: str | None = None,
        only: Ids | None = None,
    ) -> list[tuple[int, float]]:
        """The `k` passages nearest to a vector of length 1: (passage id, cosine), best first, equal ones by id.

        With `only` (ids, ascending), the nearest of these. With `embedder` (a fingerprint) given, raises
        `EmbedderMismatchError` when the store's vectors are another's. Raises `CollectionNotFoundError`.
        """
        part = self._part(collection)
        with part.lock:
            self._sync_part(part, collection)
            if part.index is None:
                return []
            found = part.index.search(_checked(part, query_D, embedder), k, only)
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
            query_1_D = _checked(part, query_D, embedder)
            known = part.index.known(np.array(sorted(set(ids)), dtype=np.int64))
            if not known.size:
                return {}
            vectors_N_D = part.index.vectors(known)
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
            known = np.empty(0, np.int64) if part.index is None else part.index.ids
            gone = np.setdiff1d(known, wanted, assume_unique=True)
            fresh = self._add(part, np.setdiff1d(wanted, known, assume_unique=True), embedder)
            if fresh is None:
                part.state = NO_STATE  # re-embedded meanwhile: which vectors were read is not certain
                part.embedder = None
                continue
            if gone.size and part.index is not None:
                part.file.remove()  # a removed passage stays in no file
                part.index.remove(gone)
            part.embedder, part.state = embedder, state
            part.unsaved += gone.size + fresh
            if part.index is not None and part.index.is_due(self._lists_from):
                part.index = part.index.renewed(self._lists_from)
                part.unsaved = len(part.index)
            if part.index is not None and part.unsaved * SAVE_SHARE > len(part.index):
                self._try_save(part, collection)
            return
        raise StoreError("the store's vectors are being replaced all the time; let the other process end, then repeat.")

    def _add(self, part: _Part, ids: Ids, embedder: str) -> int | None:
        """Adds the vectors of the ids and gives their number; None when they turn out to be another embedder's."""
        added = 0
        if not ids.size:
            return added
        with closing(self._catalog.iter_vectors(ids=ids)) as batches:
            for batch, vectors_N_D in batches:
                # all batches are of the state that the first one was read in; it is asked for after that
                if not added and self._catalog.embedder_fingerprint() != embedder:
                    return None
                if part.index is None:
                    part.index = VectorIndex.empty(vectors_N_D.shape[1])
                part.index.add(batch, vectors_N_D)
                added += len(batch)
        return added

    def _load(self, file: DenseFile, embedder: str, wanted: Ids, state: State) -> VectorIndex | None:
        """The index of the file, if its vectors are the catalog's."""
        newest, vector_1_D = self._catalog.vectors(wanted[-1:])
        if not newest.size:
            return None
        loaded = file.load(embedder, vector_1_D.shape[1], state)
        if loaded is None or not len(loaded[0]):
            return None
        index, known = loaded
        if not known and not self._agrees(index, wanted):
            log.warning("dense index %s is of another state of the store; rebuilding it", file.index_path)
            return None
        return index

    def _agrees(self, index: VectorIndex, wanted: Ids) -> bool:
        """Whether every vector that is in both is the same: a catalog put back from a backup gives ids anew."""
        with closing(self._catalog.iter_vectors(ids=index.known(wanted))) as batches:
            return all(np.array_equal(index.vectors(ids), vectors_N_D) for ids, vectors_N_D in batches)

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
                if not np.setdiff1d(part.index.ids, self._catalog.vector_ids(collection), assume_unique=True).size:
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


def _checked(part: _Part, query_D: NDArray[np.float32], embedder: str | None) -> NDArray[np.float32]:
    """The query as faiss takes it, when it can be compared with the part's vectors, which there are."""
    assert part.index is not None
    query_1_D = np.ascontiguousarray(query_D, dtype=np.float32).reshape(1, -1)
    if (embedder is not None and embedder != part.embedder) or query_1_D.shape[1] != part.index.dimension:
        raise EmbedderMismatchError(
            f"the store's vectors are of the embedder {part.embedder!r} with {part.index.dimension} dimensions, the "
            f"question's of {embedder or 'an embedder'!r} with {query_1_D.shape[1]}; set the embedder back, or run "
            "`hybridqa refresh --embeddings` to make the store's anew."
        )
    return query_1_D
