"""Inverted lists over a collection's vectors: how they are made, and what is measured before they are used.

A vector is in the list of the centre nearest to it, and a search compares the vectors of the `nprobe` lists whose
centres are nearest to the question. Knows nothing about catalogs or files. Invariant: lists are used only with an
`nprobe` at which recall@10 against exact search, measured on these very vectors, is at least `RECALL` with 95%
confidence.

The questions of the measurement are stored vectors with noise: the cosine between such a question and its vector is
`NEARNESS`. Over thirteen public sets and the default embedder, real questions have .59 to their nearest passage in the
median and .40 at the fifth percentile, and with .50 the noisy ones need about as many lists as they do:
`eval/large_index_real.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log2, sqrt

import faiss
import numpy as np
from numpy.typing import NDArray

from hybridqa.catalog_rows import Ids, Vectors

RECALL = 0.99  # of the ten nearest, at least
NEIGHBOURS = 10
NEARNESS = 0.5
QUESTIONS = 512
MAX_SHARE = 0.5  # of the lists; a search that must look into more is hardly faster than an exact one
SAMPLE_PER_LIST = 64  # vectors that k-means learns from
ROUNDS = 8  # of k-means
SEED = 0
_BATCH = 16_384  # vectors added at once


@dataclass(frozen=True, slots=True)
class Training:
    """How lists were made and what was measured on them."""

    vectors: int  # that there were then
    nlist: int
    nprobe: int  # 0 when no share of the lists that is worth it had the recall: exact search stays
    recall: float  # recall@10 at this nprobe, or at the most lists that were allowed
    recall_low: float  # end of its 95% interval
    questions: int
    seed: int = SEED

    @property
    def is_worth_it(self) -> bool:
        """Whether the lists are to be searched."""
        return self.nprobe > 0


def train(ids: Ids, vectors_of: Callable[[Ids], Vectors]) -> tuple[faiss.IndexIVFFlat, Training]:
    """An index of the vectors of all these ids, and what a search in it is worth."""
    rng = np.random.default_rng(SEED)
    count = len(ids)
    nlist = max(1, min(2 ** round(log2(4 * sqrt(count))), count))
    sample_N_D = vectors_of(np.sort(rng.choice(ids, min(count, SAMPLE_PER_LIST * nlist), replace=False)))
    dimension = sample_N_D.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, nlist, faiss.METRIC_INNER_PRODUCT)
    index.set_direct_map_type(faiss.DirectMap.Hashtable)  # vectors are removed and read by id
    index.cp.niter, index.cp.seed = ROUNDS, SEED
    index.cp.min_points_per_centroid = 1  # else faiss prints a warning where there are few
    index.train(sample_N_D)
    del sample_N_D
    for start in range(0, count, _BATCH):
        batch = ids[start : start + _BATCH]
        index.add_with_ids(vectors_of(batch), batch)
    questions_Q_D = _noisy(vectors_of(rng.choice(ids, min(count, QUESTIONS), replace=False)), rng)
    nprobe, recall, low = _probes(_ranks(index, questions_Q_D), nlist)
    return index, Training(count, nlist, nprobe, recall, low, len(questions_Q_D))


def members(index: faiss.IndexIVFFlat) -> tuple[Ids, NDArray[np.int64]]:
    """The ids in the lists, list after list, and each one's list."""
    sizes = [index.invlists.list_size(number) for number in range(index.nlist)]
    ids = [np.empty(0, np.int64)]
    ids += [
        faiss.rev_swig_ptr(index.invlists.get_ids(number), size).copy() for number, size in enumerate(sizes) if size
    ]
    return np.concatenate(ids), np.repeat(np.arange(index.nlist), sizes)


def remove(index: faiss.IndexIVFFlat, ids: Ids) -> None:
    """Takes the ids out, and the centre of every list that has become empty: it may have been a vector of theirs."""
    index.remove_ids(ids)
    quantizer = faiss.downcast_index(index.quantizer)  # one that was read from a file has lost its class
    centres_L_D = faiss.rev_swig_ptr(quantizer.get_xb(), index.nlist * index.d).reshape(index.nlist, index.d)
    for number in range(index.nlist):
        if not index.invlists.list_size(number):
            centres_L_D[number] = 0.0


def _noisy(vectors_N_D: Vectors, rng: np.random.Generator) -> Vectors:
    noise_N_D = rng.standard_normal(vectors_N_D.shape, dtype=np.float32)
    mixed_N_D = NEARNESS * _unit(vectors_N_D) + sqrt(1 - NEARNESS**2) * _unit(noise_N_D)
    return _unit(mixed_N_D)


def _unit(vectors_N_D: Vectors) -> Vectors:
    lengths_N_1 = np.linalg.norm(vectors_N_D, axis=1, keepdims=True)
    return np.asarray(vectors_N_D / np.maximum(lengths_N_1, 1e-12), dtype=np.float32)


def _ranks(index: faiss.IndexIVFFlat, questions_Q_D: Vectors) -> NDArray[np.int64]:
    """Of each question's ten nearest vectors, found exactly, how many lists are searched before the one it is in."""
    nlist, dimension = index.nlist, index.d
    best_Q_K = np.full((len(questions_Q_D), NEIGHBOURS), -np.inf, np.float32)
    lists_Q_K = np.zeros((len(questions_Q_D), NEIGHBOURS), np.int64)
    for number in range(nlist):
        size = index.invlists.list_size(number)
        if not size:
            continue
        codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), size * index.code_size)
        scores_Q_N = questions_Q_D @ codes.view(np.float32).reshape(size, dimension).T
        if size > NEIGHBOURS:
            scores_Q_N = -np.partition(-scores_Q_N, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        scores = np.concatenate([best_Q_K, scores_Q_N], axis=1)
        lists = np.concatenate([lists_Q_K, np.full(scores_Q_N.shape, number)], axis=1)
        kept = np.argpartition(-scores, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        best_Q_K, lists_Q_K = np.take_along_axis(scores, kept, 1), np.take_along_axis(lists, kept, 1)
    _, order_Q_L = index.quantizer.search(questions_Q_D, nlist)
    places_Q_L = np.argsort(order_Q_L, axis=1)  # of each list in the order of search
    ranks_Q_K = np.take_along_axis(places_Q_L, lists_Q_K, 1)
    return np.asarray(np.where(np.isfinite(best_Q_K), ranks_Q_K, 0))  # there may be fewer than ten in all


def _probes(ranks_Q_K: NDArray[np.int64], nlist: int) -> tuple[int, float, float]:
    """The fewest lists with the recall, or 0; the recall and the low end of its interval over questions."""
    most = max(1, int(MAX_SHARE * nlist))
    for probes in range(1, most + 1):
        recall_Q = (ranks_Q_K < probes).mean(axis=1)
        low = recall_Q.mean() - 1.96 * recall_Q.std() / sqrt(len(recall_Q))
        if low >= RECALL:
            return probes, float(recall_Q.mean()), float(low)
    return 0, float(recall_Q.mean()), float(low)
