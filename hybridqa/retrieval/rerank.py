"""Ranks passages anew by how likely the base model finds the question behind each of them.

Knows nothing about search. Invariant: only the order and the scores of the first passages change; none is lost, and
what stood behind them stays behind them.

A model that was never trained to rank passages still knows which text a question would be asked of (arXiv 2204.07496).
That costs one prefill for each passage, of which the engine's prefix cache keeps the passage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from hybridqa.answering.prompt import PromptBuilder, source_text
from hybridqa.engine.protocol import Engine
from hybridqa.retrieval.fusion import best_first
from hybridqa.types import Message, ScoredPassage

WEIGHT = 3.0  # of a nat for each of the question's tokens, beside the fused score
INSTRUCTION = "Write a question that this text answers."


class Reranker(Protocol):
    """What puts passages into a new order; safe to share."""

    async def rerank(self, question: str, found: Sequence[ScoredPassage], top: int) -> list[ScoredPassage]:
        """The passages with the first `top` in a new order; each of those has its `likelihood`."""
        ...


class LikelihoodReranker:
    """Ranks with one base model."""

    def __init__(self, prompts: PromptBuilder, engine: Callable[[], Awaitable[Engine]], *, max_model_len: int) -> None:
        """`engine` gives the one that runs, on its loop."""
        self._prompts = prompts
        self._engine = engine
        self._max_model_len = max_model_len

    async def rerank(self, question: str, found: Sequence[ScoredPassage], top: int) -> list[ScoredPassage]:
        """See `Reranker`; `likelihood` is in nats for each of the question's tokens. Raises `EngineError`.

        A passage that does not fit the model's window with the question counts as the least likely one.
        """
        first, rest = list(found[:top]), list(found[top:])
        if len(first) < 2:
            return [*first, *rest]
        engine = await self._engine()
        likelihoods = await asyncio.gather(*(self._likelihood(question, scored, engine) for scored in first))
        if all(value is None for value in likelihoods):
            return [*first, *rest]
        return reordered(
            [replace(scored, likelihood=value) for scored, value in zip(first, likelihoods, strict=True)],
            likelihoods,
            rest,
            WEIGHT,
        )

    async def _likelihood(self, question: str, scored: ScoredPassage, engine: Engine) -> float | None:
        """The mean log-probability of the question's tokens behind the passage, in nats; None where they do not fit."""
        prompt_ids = self._prompts.encode([Message("user", f"{source_text(scored.passage)}\n\n{INSTRUCTION}")])
        target_ids = self._prompts.encode_answer(question.strip(), ended=False)
        if not target_ids or len(prompt_ids) + len(target_ids) >= self._max_model_len:
            return None
        return await engine.score(prompt_ids, target_ids, scope=scored.passage.collection) / len(target_ids)


def reordered(
    first: Sequence[ScoredPassage], values: Sequence[float | None], rest: Sequence[ScoredPassage], weight: float
) -> list[ScoredPassage]:
    """The `first` by their scores less `weight` for each unit by which a value is below the best; then the `rest`.

    A passage without a value counts as the one with the lowest; one must have a value.
    """
    known = [value for value in values if value is not None]
    best, worst = max(known), min(known)
    ranked = best_first(
        replace(scored, score=scored.score + weight * ((worst if value is None else value) - best))
        for scored, value in zip(first, values, strict=True)
    )
    lowest = ranked[-1].score
    return [*ranked, *(replace(scored, score=min(scored.score, lowest)) for scored in rest)]
