"""Search: dense and lexical rankings of a question, fused into one list of passages.

Knows nothing about prompts, modules or how each side finds what it finds. Invariant: what it returns is in the
collection that was asked for, in the catalog's present state, best first.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping

from hybridqa.catalog import Catalog
from hybridqa.errors import QuestionError
from hybridqa.retrieval.dense import DenseIndex
from hybridqa.retrieval.embedder import Embedder
from hybridqa.retrieval.fusion import reciprocal_rank_fusion
from hybridqa.retrieval.lexical import LexicalIndex
from hybridqa.types import Filter, ScoredPassage

MIN_CANDIDATES = 50  # of each side
CANDIDATES_PER_RESULT = 4


class Searcher:
    """Finds passages for questions; safe to share between threads."""

    def __init__(
        self,
        catalog: Catalog,
        embedder: Embedder,
        dense: DenseIndex,
        lexical: LexicalIndex,
        *,
        weights: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """`weights` are those of the dense and the lexical ranking."""
        self._catalog = catalog
        self._embedder = embedder
        self._dense = dense
        self._lexical = lexical
        self._weights = weights

    def search(
        self,
        question: str,
        *,
        k: int,
        collection: str,
        timings: MutableMapping[str, float] | None = None,
        filter: Filter | None = None,
    ) -> list[ScoredPassage]:
        """The `k` best passages of the collection, each with its cosine and, if it shares a word, its BM25.

        With a `filter`, the best of those whose documents pass. `timings` takes the seconds of each step. Raises
        `QuestionError` for an empty question, `CollectionNotFoundError`, and `EmbedderMismatchError` when the store was
        embedded by another model.
        """
        if not question.strip():
            raise QuestionError(f"the question is empty ({question!r}); expected a text such as 'Who wrote it?'.")
        self._catalog.require_collection(collection)
        clock = _Clock(timings)
        candidates = max(MIN_CANDIDATES, CANDIDATES_PER_RESULT * k)
        fingerprint = self._embedder.fingerprint
        query_D = self._embedder.embed_query(question)
        clock.lap("embed")
        only = None if filter is None or filter.is_open else self._catalog.passing_ids(collection, filter)
        dense = dict(self._dense.search(query_D, candidates, collection, embedder=fingerprint, only=only))
        clock.lap("dense")
        lexical = dict(self._lexical.search(question, candidates, collection, filter))
        clock.lap("lexical")
        fused = reciprocal_rank_fusion([list(dense), list(lexical)], self._weights)
        passages = self._catalog.get_passages([passage_id for passage_id, _ in fused[: 2 * k + 8]])
        # those that are gone or changed hands since they were ranked are left out
        best = [pair for pair in fused if pair[0] in passages and passages[pair[0]].collection == collection][:k]
        words_only = [passage_id for passage_id, _ in best if passage_id not in dense]
        dense |= self._dense.cosines(query_D, words_only, collection, embedder=fingerprint)
        clock.lap("fuse")
        return [
            ScoredPassage(passages[passage_id], score, dense.get(passage_id), lexical.get(passage_id))
            for passage_id, score in best
        ]


class _Clock:
    """Adds up seconds by step."""

    def __init__(self, timings: MutableMapping[str, float] | None) -> None:
        self._timings = timings
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        if self._timings is not None:
            self._timings[step] = self._timings.get(step, 0.0) + now - self._last
        self._last = now
