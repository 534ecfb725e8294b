"""The ways of searching that are compared: words, vectors, their ranks fused, and hybridqa's own with what it offers.

Knows nothing about gold documents or scores. Invariant: every way searches the same store and gives passages, best
first, with those that were left out because they say the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from hybridqa.answering.answerer import ROUTING_PASSAGES
from hybridqa.answering.seeking import Sought
from hybridqa.evaluation.datasets import EvalQuestion
from hybridqa.pipeline import HybridQA
from hybridqa.retrieval.fusion import reciprocal_rank_fusion
from hybridqa.retrieval.lexical import LexicalIndex
from hybridqa.types import DEFAULT_COLLECTION, Passage

DEPTH = 100  # passages of each way that ours is compared with, from which documents are ranked
OURS = "hybridqa"
WAYS = ("bm25", "dense", "rrf", OURS)
ALONE = "hybridqa, the question alone"  # where there are conversations
PREPENDED = "hybridqa, the conversation in the question"
REWRITTEN = "hybridqa, follow-ups rewritten"
RERANKED = "hybridqa, reranked"

Way = Callable[[EvalQuestion], Sequence[Passage]]  # from a question to passages, best first


class Ways:
    """The ways of searching one store."""

    def __init__(self, store: HybridQA) -> None:
        self.timings: list[dict[str, float]] = []  # of each search of our own, seconds by step
        self.rewritten = {"asked_for": 0, "accepted": 0}  # follow-ups
        self._store = store
        self._lexical = LexicalIndex(store.catalog)

    def of(self, *, conversations: bool, rerank: int = 0, hops: int = 1, rewrite: bool = False) -> dict[str, Way]:
        """The ways by name: the usual ones, and those that are asked for."""
        ways: dict[str, Way] = {
            "bm25": lambda question: self._read(self._by_words(question.question)),
            "dense": lambda question: self._read(self._by_vectors(question.question)),
            "rrf": lambda question: self._read(self._by_ranks(question.question)),
            OURS: self._ours,
        }
        if conversations:
            ways[ALONE] = lambda question: _all_of(self._look(question.question))
            ways[PREPENDED] = lambda question: _all_of(self._look(_prepended(question)))
        if rewrite:
            ways[REWRITTEN] = self._rewritten
        if rerank:
            ways[RERANKED] = lambda question: _all_of(self._seek(question, rerank=rerank))
        if hops > 1:
            ways[f"hybridqa, {hops} hops"] = lambda question: _all_of(
                self._look(question.question, history=question.history, hops=hops)
            )
        return ways

    def _by_words(self, question: str) -> list[int]:
        return [passage_id for passage_id, _ in self._lexical.search(question, DEPTH, DEFAULT_COLLECTION)]

    def _by_vectors(self, question: str) -> list[int]:
        embedder = self._store.embedder
        vector_D = embedder.embed_query(question)
        found = self._store.dense.search(vector_D, DEPTH, DEFAULT_COLLECTION, embedder=embedder.fingerprint)
        return [passage_id for passage_id, _ in found]

    def _by_ranks(self, question: str) -> list[int]:
        fused = reciprocal_rank_fusion([self._by_vectors(question), self._by_words(question)])
        return [passage_id for passage_id, _ in fused]

    def _read(self, ids: Sequence[int]) -> list[Passage]:
        known = self._store.catalog.get_passages(ids)
        return [known[passage_id] for passage_id in ids]

    def _ours(self, question: EvalQuestion) -> list[Passage]:
        begun = time.perf_counter()
        sought = self._look(question.question, history=question.history)
        self.timings.append({**sought.timings, "all": time.perf_counter() - begun})
        return _all_of(sought)

    def _rewritten(self, question: EvalQuestion) -> list[Passage]:
        sought = self._seek(question, rewrite=True)
        if "rewrite" in sought.timings:
            self.rewritten["asked_for"] += 1
            self.rewritten["accepted"] += not any(note.startswith("not rewritten: ") for note in sought.notes)
        return _all_of(sought)

    def _look(self, question: str, **options: Any) -> Sought:
        return self._store.seeker.look(question, k=ROUTING_PASSAGES, collection=DEFAULT_COLLECTION, **options)

    def _seek(self, question: EvalQuestion, **options: Any) -> Sought:
        where: dict[str, Any] = {"k": ROUTING_PASSAGES, "collection": DEFAULT_COLLECTION, "history": question.history}
        return self._store.run(self._store.seeker.seek(question.question, **where, **options))


def _prepended(question: EvalQuestion) -> str:
    return " ".join([*(turn.content for turn in question.history), question.question])


def _all_of(sought: Sought) -> list[Passage]:
    """The passages, with those that were left out because they say the same."""
    return [passage for scored in sought.passages for passage in (scored.passage, *scored.also)]
