"""Search: what dense and lexical search find for a question, weighed and put into one list of passages.

Knows nothing about prompts, modules or how each side finds what it finds. Invariant: what it returns is in the
collection that was asked for, in the catalog's present state, best first, and no two of it say the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hybridqa.catalog import Catalog, Ids
from hybridqa.errors import QuestionError
from hybridqa.retrieval.dense import DenseIndex
from hybridqa.retrieval.duplicates import Repetitions
from hybridqa.retrieval.embedder import Embedder
from hybridqa.retrieval.fusion import FusionWeights, TitleMatch, best_first
from hybridqa.retrieval.hops import ONWARD, Trail
from hybridqa.retrieval.lexical import STOPWORDS, AskedWords, LexicalIndex, stem, text_words
from hybridqa.types import Filter, Passage, ScoredPassage

MIN_CANDIDATES = 50  # of each side
CANDIDATES_PER_RESULT = 4
LEXICAL_DEPTH = 4  # times as many have their BM25 looked up: dense search finds passages that share few words
READ = 60  # candidates, best first by cosine and BM25, whose texts are read for the other signals


@dataclass(frozen=True, slots=True)
class Query:
    """A text to search for, and what its finds count."""

    text: str
    weight: float = 1.0


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
        beside: Sequence[Query] = (),
        timings: MutableMapping[str, float] | None = None,
        filter: Filter | None = None,
        hops: int = 1,
        trail: Trail | None = None,
    ) -> list[ScoredPassage]:
        """The `k` best passages of the collection, each with its cosine and, if it shares a word, its BM25.

        A passage's score is the mean of what speaks for it as an answer to the question and to the texts `beside` it,
        by their weights; the rest that is told of it is of the question. With more than one of `hops` what was found
        is searched for onward, and the `trail`, if there is one, keeps from where. `timings` takes the seconds of each
        step.
        Raises `QuestionError` for an empty question, `CollectionNotFoundError`, and `EmbedderMismatchError` when the
        store was embedded by another model.
        """
        if not question.strip():
            raise QuestionError(f"the question is empty ({question!r}); expected a text such as 'Who wrote it?'.")
        self._catalog.require_collection(collection)
        clock = _Clock(timings)
        only = None if filter is None or filter.is_open else self._catalog.passing_ids(collection, filter)
        looks = [
            self._look(query, k, collection, clock, filter, only)
            for query in (Query(question), *(query for query in beside if query.text.strip() and query.weight > 0))
        ]
        near = list(dict.fromkeys(passage_id for look in looks for passage_id in look.near))
        found = self._scored(near, looks, collection)
        best = without_repetitions(found, k)
        clock.lap("fuse")
        if hops < 2:
            return best
        trail = Trail(question) if trail is None else trail
        for _ in range(hops - 1):
            bridges = trail.lead_on(without_repetitions(found, len(near)))
            if not bridges:
                break
            for bridge in bridges:
                onward = self._lexical.search(bridge.query, LEXICAL_DEPTH * MIN_CANDIDATES, collection, filter)
                bridge.lexical |= onward
                near = list(dict.fromkeys((*near, *(passage_id for passage_id, _ in onward[:ONWARD]))))
            found = trail.weigh(self._scored(near, looks, collection))
        best = without_repetitions(found, k)
        clock.lap("hops")
        return best

    def _scored(self, near: Sequence[int], looks: Sequence[_Look], collection: str) -> list[ScoredPassage]:
        """The candidates with all that speaks for each for any of the texts, best first."""
        known = self._catalog.get_passages(near)
        # those that are gone or changed hands since they were ranked are left out
        passages = [known[place] for place in near if place in known and known[place].collection == collection]
        totals = [0.0] * len(passages)
        found: list[ScoredPassage] = []
        for look in reversed(looks):  # the question's own comes last, and stays
            others = [one.passage_id for one in passages if one.passage_id not in look.dense]
            look.dense |= self._dense.cosines(look.vector_D, others, collection, embedder=self._embedder.fingerprint)
            found = candidates_of(passages, look)
            for place, score in enumerate(self._weights.scores(found)):
                totals[place] += look.query.weight * score
        whole = sum(look.query.weight for look in looks)  # scores stay log-odds, however many texts they are of
        return best_first(replace(one, score=total / whole) for one, total in zip(found, totals, strict=True))

    def _look(
        self, query: Query, k: int, collection: str, clock: _Clock, filter: Filter | None, only: Ids | None
    ) -> _Look:
        candidates = max(MIN_CANDIDATES, CANDIDATES_PER_RESULT * k)
        fingerprint = self._embedder.fingerprint
        query_D = self._embedder.embed_query(query.text)
        clock.lap("embed")
        dense = dict(self._dense.search(query_D, candidates, collection, embedder=fingerprint, only=only))
        clock.lap("dense")
        lexical = dict(self._lexical.search(query.text, LEXICAL_DEPTH * candidates, collection, filter))
        clock.lap("lexical")
        ids = list(dict.fromkeys([*dense, *list(lexical)[:candidates]]))
        words_only = [passage_id for passage_id in ids if passage_id not in dense]
        dense |= self._dense.cosines(query_D, words_only, collection, embedder=fingerprint)
        near = self._nearest(ids, dense, lexical)[: max(READ, 2 * k)]
        clock.lap("fuse")
        return _Look(query, query_D, dense, lexical, near)

    def _nearest(self, ids: Sequence[int], dense: Mapping[int, float], lexical: Mapping[int, float]) -> list[int]:
        """The candidates by cosine and BM25 alone, best first: the texts of all would take too long to read."""
        bare = Passage(0, "", "", 0, 0, 0, "")
        found = [ScoredPassage(bare, 0.0, dense.get(passage_id), lexical.get(passage_id)) for passage_id in ids]
        scores = self._weights.scores(found)
        order = sorted(range(len(ids)), key=lambda place: (-scores[place], ids[place]))
        return [ids[place] for place in order]


@dataclass(slots=True)
class _Look:
    """What was found for one text."""

    query: Query
    vector_D: NDArray[np.float32]
    dense: dict[int, float]
    lexical: dict[int, float]
    near: list[int]  # best first


def candidates_of(passages: Sequence[Passage], look: _Look) -> list[ScoredPassage]:
    """The passages with all that speaks for each, not yet scored."""
    asked = AskedWords(look.query.text)
    titles = [
        frozenset(stem(word) for word in text_words(passage.title) if word not in STOPWORDS) for passage in passages
    ]
    named = TitleMatch(titles)
    return [
        ScoredPassage(
            passage,
            0.0,
            look.dense.get(passage.passage_id),
            look.lexical.get(passage.passage_id),
            asked.share_in(f"{passage.title} {passage.heading} {passage.text}"),
            named.score(asked.stems, title),
        )
        for passage, title in zip(passages, titles, strict=True)
    ]


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
