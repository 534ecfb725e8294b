"""Search: what dense and lexical search find for a question, weighed and put into one list of passages.

Knows nothing about prompts, modules or how each side finds what it finds. Invariant: what it returns is in the
collection that was asked for, in the catalog's present state, best first, and no two of it say the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace

from hybridqa.catalog import Catalog
from hybridqa.errors import QuestionError
from hybridqa.retrieval.dense import DenseIndex
from hybridqa.retrieval.duplicates import Repetitions
from hybridqa.retrieval.embedder import Embedder
from hybridqa.retrieval.fusion import FusionWeights, fused, title_match
from hybridqa.retrieval.lexical import STOPWORDS, AskedWords, LexicalIndex, stem, text_words
from hybridqa.types import Filter, Passage, ScoredPassage

MIN_CANDIDATES = 50  # of each side
CANDIDATES_PER_RESULT = 4
LEXICAL_DEPTH = 4  # times as many have their BM25 looked up: dense search finds passages that share few words
READ = 60  # candidates, best first by cosine and BM25, whose texts are read for the other signals


class Searcher:
    """Finds passages for questions; safe to share between threads."""

    def __init__(
        self,
        catalog: Catalog,
        embedder: Embedder,
        dense: DenseIndex,
        lexical: LexicalIndex,
        *,
        weights: FusionWeights | None = None,
    ) -> None:
        """`weights` are those of the signals; the general ones by default."""
        self._catalog = catalog
        self._embedder = embedder
        self._dense = dense
        self._lexical = lexical
        self._weights = weights or FusionWeights()

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
        lexical = dict(self._lexical.search(question, LEXICAL_DEPTH * candidates, collection, filter))
        clock.lap("lexical")
        ids = list(dict.fromkeys([*dense, *list(lexical)[:candidates]]))
        words_only = [passage_id for passage_id in ids if passage_id not in dense]
        dense |= self._dense.cosines(query_D, words_only, collection, embedder=fingerprint)
        near = self._nearest(ids, dense, lexical)[: max(READ, 2 * k)]
        asked = AskedWords(question)
        passages = self._catalog.get_passages(near)
        # those that are gone or changed hands since they were ranked are left out
        found = [
            evidence_of(passages[passage_id], dense.get(passage_id), lexical.get(passage_id), asked)
            for passage_id in near
            if passage_id in passages and passages[passage_id].collection == collection
        ]
        best = without_repetitions(fused(found, self._weights), k)
        clock.lap("fuse")
        return best

    def _nearest(self, ids: Sequence[int], dense: Mapping[int, float], lexical: Mapping[int, float]) -> list[int]:
        """The candidates by cosine and BM25 alone, best first: the texts of all would take too long to read."""
        bare = [Passage(passage_id, "", "", 0, 0, 0, "") for passage_id in ids]
        found = [ScoredPassage(one, 0.0, dense.get(one.passage_id), lexical.get(one.passage_id)) for one in bare]
        return [scored.passage.passage_id for scored in fused(found, self._weights)]


def evidence_of(passage: Passage, dense: float | None, lexical: float | None, asked: AskedWords) -> ScoredPassage:
    """The passage with all that speaks for it, not yet scored."""
    title = {stem(word) for word in text_words(passage.title) if word not in STOPWORDS}
    shared = asked.among(f"{passage.title} {passage.heading} {passage.text}")
    coverage = len(shared) / len(asked.stems) if asked.stems else 0.0
    return ScoredPassage(passage, 0.0, dense, lexical, coverage, title_match(asked.stems, title))


def without_repetitions(found: Iterable[ScoredPassage], k: int) -> list[ScoredPassage]:
    """The first `k` that say something that none before them says; each with those that say the same in `also`."""
    taken = Repetitions()
    best: dict[int, ScoredPassage] = {}
    for scored in found:
        known = taken.same_as(scored.passage.passage_id, scored.passage.text)
        if known is None:
            if len(best) == k:
                break
            best[scored.passage.passage_id] = scored
        elif known in best:
            best[known] = replace(best[known], also=(*best[known].also, scored.passage))
    return list(best.values())


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
