"""One collection's vectors in FAISS: compared one by one while they are few, kept in inverted lists when they are many.

Knows nothing about catalogs, files or texts. Invariant: it holds each vector as it was given, under the caller's id;
a score is the exact inner product; as many are found as there are; and a search in lists looks into no fewer of them
than the recall of its `Training` was measured with, and with a filter compares as many vectors as without.
"""

from __future__ import annotations

from math import ceil

import faiss
import numpy as np
from numpy.typing import NDArray

from hybridqa.catalog_rows import Ids, Vectors
from hybridqa.retrieval import lists
from hybridqa.retrieval.lists import Training

Places = NDArray[np.int64]
PER_RESULT = 16  # vectors that are compared for each one asked for, at least
ALL_OF = 4_096  # vectors that pass a filter; so few are all compared
RETRAIN_SHARE = 3  # lists are made anew when 1/3 of the vectors has changed since
_BATCH = 16_384
_SPARSE = 64  # ids further apart than this are looked up in a set, not in a bitmap


class VectorIndex:
    """Vectors by id, and the nearest of them; its caller sees to it that one thread at a time uses it."""

    def __init__(self, index: faiss.Index, training: Training | None = None, changed: int = 0) -> None:
        """`changed` counts the vectors added or removed since the training, or of an index without one all of them."""
        self._index = index
        self.training = training
        self.changed = changed
        self._ids: Ids | None = None
        self._lists: NDArray[np.int64] | None = None  # the list of each of the ids

    @classmethod
    def empty(cls, dimension: int) -> VectorIndex:
        """Holds nothing yet and compares one by one."""
        return cls(faiss.IndexIDMap2(faiss.IndexFlatIP(dimension)))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def faiss_index(self) -> faiss.Index:
        """What a file keeps."""
        return self._index

    @property
    def dimension(self) -> int:
        return int(self._index.d)

    @property
    def is_exact(self) -> bool:
        """Whether every vector is compared."""
        return isinstance(self._index, faiss.IndexIDMap2)

    @property
    def is_known(self) -> bool:
        """Whether this is an index that the rest of this class can handle."""
        lists_known = isinstance(self._index, faiss.IndexIVFFlat) and self.training is not None
        return self.is_exact or (lists_known and self._index.direct_map.type == faiss.DirectMap.Hashtable)

    @property
    def ids(self) -> Ids:
        """The ids, ascending."""
        if self._ids is None:
            if self.is_exact:
                self._ids = np.sort(faiss.vector_to_array(self._index.id_map).astype(np.int64))
            else:
                self._read_lists()
        assert self._ids is not None
        return self._ids

    def add(self, ids: Ids, vectors_N_D: Vectors) -> None:
        """Adds vectors whose ids are not there yet."""
        self._index.add_with_ids(np.ascontiguousarray(vectors_N_D, dtype=np.float32), ids)
        self._count(len(ids))

    def remove(self, ids: Ids) -> None:
        """Removes what is there of the ids."""
        if self.is_exact:
            self._index.remove_ids(ids)
        else:
            lists.remove(self._index, ids)
        self._count(len(ids))

    def known(self, ids: Ids) -> Ids:
        """Those of the ascending ids that are there."""
        found: Ids = self.ids[self._places(ids)]
        return found

    def vectors(self, ids: Ids) -> Vectors:
        """The vectors of ids that are all there, N_D."""
        return np.asarray(self._index.reconstruct_batch(ids), dtype=np.float32)

    def is_due(self, lists_from: int) -> bool:
        """Whether `renewed` should be asked for: lists where there are so many vectors, none where far fewer."""
        if self.training is None:
            return len(self) >= lists_from
        if 2 * len(self) < lists_from:
            return True
        return RETRAIN_SHARE * self.changed > self.training.vectors

    def renewed(self, lists_from: int) -> VectorIndex:
        """The same vectors with lists that are made for them, if there are so many and lists are worth it."""
        if 2 * len(self) < lists_from:
            return self._compared_one_by_one(None)
        index, training = lists.train(self.ids, self.vectors)
        if training.is_worth_it:
            return VectorIndex(index, training)
        del index
        return self._compared_one_by_one(training)

    def _compared_one_by_one(self, training: Training | None) -> VectorIndex:
        if self.is_exact:
            return VectorIndex(self._index, training)
        exact = VectorIndex.empty(self.dimension)
        for start in range(0, len(self), _BATCH):
            ids = self.ids[start : start + _BATCH]
            exact.add(ids, self.vectors(ids))
        exact.training, exact.changed = training, 0
        return exact

    def search(self, query_1_D: Vectors, k: int, only: Ids | None = None) -> list[tuple[int, float]]:
        """The `k` nearest (id, inner product) in no certain order; with `only` (ascending), of those ids."""
        places = None if only is None else self._places(only)
        k = min(k, len(self) if places is None else len(places))
        if k <= 0:
            return []
        if not self.is_exact:
            return self._search_all(query_1_D, k) if places is None else self._search_some(query_1_D, k, places)
        chosen = None if places is None else faiss.SearchParameters(sel=_selector(self.ids[places]))
        return _pairs(*self._index.search(query_1_D, k, params=chosen))

    def _search_all(self, query_1_D: Vectors, k: int) -> list[tuple[int, float]]:
        assert self.training is not None
        nlist = int(self._index.nlist)
        probes = max(self.training.nprobe, ceil(PER_RESULT * k * nlist / len(self)))
        while True:
            probes = min(probes, nlist)
            found = _pairs(*self._index.search(query_1_D, k, params=faiss.SearchParametersIVF(nprobe=probes)))
            if len(found) == k or probes == nlist:
                return found
            probes *= 2  # small lists

    def _search_some(self, query_1_D: Vectors, k: int, places: Places) -> list[tuple[int, float]]:
        """Takes lists, the nearest first, until as many vectors that pass are in them as are compared without a filter.

        So a filter that passes no more than that is searched exactly, and one that passes what is far from the
        question still finds it.
        """
        assert self.training is not None
        if self._lists is None:
            self._read_lists()
        assert self._lists is not None
        nlist = int(self._index.nlist)
        passing_L = np.bincount(self._lists[places], minlength=nlist)
        enough = max(PER_RESULT * k, ALL_OF, len(self) * self.training.nprobe / nlist)
        if len(places) > enough:
            _, order_1_L = self._index.quantizer.search(query_1_D, nlist)
            compared_L = np.cumsum(passing_L[order_1_L[0]])
            near_L = order_1_L[0][: int(np.searchsorted(compared_L, enough)) + 1]
            wanted_L = np.sort(near_L[passing_L[near_L] > 0])
        else:
            wanted_L = np.flatnonzero(passing_L)
        chosen = faiss.SearchParametersIVF(
            nprobe=len(wanted_L),
            sel=_selector(self.ids[places]),
            quantizer_params=faiss.SearchParameters(sel=_selector(wanted_L)),
        )
        return _pairs(*self._index.search(query_1_D, k, params=chosen))

    def _places(self, ids: Ids) -> Places:
        """Where in `self.ids` those of the ascending ids stand that are there."""
        if not len(ids) or not len(self):
            return np.empty(0, np.int64)
        if int(ids[-1]) <= _SPARSE * len(ids):  # many: one look at each of ours
            ours = self.ids[: int(np.searchsorted(self.ids, ids[-1], side="right"))]
            return np.flatnonzero(_mask(ids)[ours])
        places = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return np.asarray(places[self.ids[places] == ids])

    def _read_lists(self) -> None:
        ids, numbers = lists.members(self._index)
        order = np.argsort(ids)
        self._ids, self._lists = ids[order], numbers[order]

    def _count(self, changed: int) -> None:
        self.changed += changed
        self._ids = self._lists = None


def _pairs(scores_1_K: NDArray[np.float32], ids_1_K: NDArray[np.int64]) -> list[tuple[int, float]]:
    return [(int(i), float(score)) for i, score in zip(ids_1_K[0], scores_1_K[0], strict=True) if i >= 0]


def _selector(ids: Ids) -> faiss.IDSelector:
    """Lets these ascending ids pass."""
    if int(ids[-1]) > _SPARSE * len(ids):
        return faiss.IDSelectorBatch(ids)
    return faiss.IDSelectorBitmap(np.packbits(_mask(ids), bitorder="little"))


def _mask(ids: Ids) -> NDArray[np.bool_]:
    """Whether each number up to the largest of the ascending ids is one of them."""
    mask = np.zeros(int(ids[-1]) + 1, dtype=bool)
    mask[ids] = True
    return mask
