"""Looks for the passages that a question is about: with the conversation, over several hops, reranked.

Knows nothing about routes or prompts. Invariant: what the engine is asked for here can fail, and then costs the
question that help, never its passages.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Required, TypedDict, Unpack

from hybridqa.answering.rewriting import Restated, Rewriter
from hybridqa.engine.protocol import Engine
from hybridqa.errors import EngineClosedError, EngineError
from hybridqa.retrieval.followup import beside, leans
from hybridqa.retrieval.hops import Trail
from hybridqa.retrieval.rerank import Reranker
from hybridqa.retrieval.searcher import Searcher
from hybridqa.types import Filter, Message, ScoredPassage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sought:
    """What was found for a question, and how it was looked for."""

    passages: tuple[ScoredPassage, ...] = ()  # best first
    notes: tuple[str, ...] = ()  # for the route's reason
    timings: dict[str, float] = field(default_factory=dict)  # seconds by step
    hopped: bool = False  # whether it was searched for in several hops: no few of the passages are enough


class Where(TypedDict, total=False):
    """How and where a question is looked for."""

    k: Required[int]  # passages, at most
    collection: Required[str]
    history: Sequence[Message]  # earlier turns of the conversation, oldest first
    filter: Filter | None  # which documents may be found
    hops: int | None  # searches; None: as many as the settings say


class Seeker:
    """Seeks in one store; safe to share between threads."""

    def __init__(
        self,
        searcher: Searcher,
        reranker: Reranker,
        rewriter: Rewriter,
        engine: Callable[[], Awaitable[Engine]],
        *,
        rerank: int,
        history: bool,
        hops: int = 1,
        rewrite: bool = False,
    ) -> None:
        """`engine` gives the one that runs, on its loop; the numbers and switches are the settings of their names."""
        self._searcher = searcher
        self._reranker = reranker
        self._rewriter = rewriter
        self._engine = engine
        self._rerank = rerank
        self._history = history
        self._hops = hops
        self._rewrite = rewrite

    def look(self, question: str, *, restated: str = "", **where: Unpack[Where]) -> Sought:
        """The `k` best passages by search alone; blocks. Raises as `Searcher.search` does.

        `restated` is the question as it would be asked without the history.
        """
        timings: dict[str, float] = {}
        queries = beside(question, where.get("history", ()), restated) if self._history else ()
        hops = where.get("hops")
        trail = Trail(restated or question)
        passages = self._searcher.search(
            question,
            k=where["k"],
            collection=where["collection"],
            beside=queries,
            timings=timings,
            filter=where.get("filter"),
            hops=self._hops if hops is None else hops,
            trail=trail,
        )
        notes: tuple[str, ...] = ()
        if queries and restated:
            notes = (f"searched for {restated!r}",)
        elif queries and leans(question):
            notes = ("searched with the question before it",)
        return Sought(tuple(passages), (*notes, *trail.notes()), timings, bool(trail.hops))

    async def seek(
        self, question: str, *, rerank: int | None = None, rewrite: bool | None = None, **where: Unpack[Where]
    ) -> Sought:
        """The `k` best passages, with the base model's help where that is wanted. Raises as `look` does."""
        top = self._rerank if rerank is None else rerank
        restated, spent = Restated(), 0.0
        wanted = self._rewrite if rewrite is None else rewrite
        k, history = where["k"], where.get("history", ())
        if wanted and self._history and beside(question, history) and leans(question):
            begun = time.perf_counter()
            restated = await self._restated(question, history, where["collection"])
            spent = time.perf_counter() - begun
        more: Where = {**where, "k": max(k, top)}
        sought = await asyncio.to_thread(self.look, question, restated=restated.question, **more)
        if spent:
            notes = (f"not rewritten: {restated.refused}",) if restated.refused else ()
            timings = {"rewrite": spent, **sought.timings}
            sought = replace(sought, notes=(*notes, *sought.notes), timings=timings)
        if top > 1 and len(sought.passages) > 1:
            sought = await self._reranked(question, sought, top)
        return replace(sought, passages=sought.passages[:k])

    async def _restated(self, question: str, history: Sequence[Message], collection: str) -> Restated:
        try:
            return await self._rewriter.rewrite(question, history, await self._engine(), scope=collection)
        except EngineClosedError:
            raise
        except EngineError as error:
            log.warning("a question was not rewritten: %s", error)
            return Restated(refused=str(error))

    async def _reranked(self, question: str, sought: Sought, top: int) -> Sought:
        begun = time.perf_counter()
        try:
            passages = await self._reranker.rerank(question, sought.passages, top)
        except EngineClosedError:
            raise
        except EngineError as error:
            log.warning("passages were not reranked: %s", error)
            return replace(sought, notes=(*sought.notes, f"not reranked: {error}"))
        timings = {**sought.timings, "rerank": time.perf_counter() - begun}
        note = f"{min(top, len(passages))} passages reranked"
        return replace(sought, passages=tuple(passages), notes=(*sought.notes, note), timings=timings)
