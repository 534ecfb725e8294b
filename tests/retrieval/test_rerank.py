"""Reranking by a real model's likelihoods: the order they say, what does not fit, and what fails."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from hybridqa.answering.prompt import PromptBuilder, source_text
from hybridqa.engine.protocol import Engine
from hybridqa.engine.vllm import VllmEngine
from hybridqa.retrieval.rerank import INSTRUCTION, WEIGHT, LikelihoodReranker
from hybridqa.types import Message, Passage, ScoredPassage

TEXTS = {
    1: "A bicycle travels free on the ferry, but a motorcycle pays half the fare of a car.",
    2: "Heat the kiln slowly to 600 degrees, then hold it there for two hours before the glaze is fired.",
    3: "In late August the hive is treated against mites with oxalic acid.",
}
QUESTION = "At what temperature is the kiln held before firing the glaze?"


def found(*scores: float) -> list[ScoredPassage]:
    passages = [Passage(number, f"d{number}", "c", 0, 0, len(text), text) for number, text in TEXTS.items()]
    return [ScoredPassage(passage, score) for passage, score in zip(passages, scores, strict=True)]


@pytest.fixture(scope="module")
def prompts(tokenizer: object) -> PromptBuilder:
    return PromptBuilder(tokenizer, max_model_len=2048, context_tokens=1000)  # type: ignore[arg-type]


def rerank(prompts: PromptBuilder, engine: Engine, passages: Sequence[ScoredPassage], top: int, length: int = 2048):  # type: ignore[no-untyped-def]
    async def ready() -> Engine:
        return engine

    return asyncio.run(LikelihoodReranker(prompts, ready, max_model_len=length).rerank(QUESTION, passages, top))


def test_the_passage_that_the_question_would_be_asked_of_comes_first(
    prompts: PromptBuilder, engine: VllmEngine
) -> None:
    ranked = rerank(prompts, engine, found(9.0, 8.9, 8.8), 3)
    assert ranked[0].passage.passage_id == 2
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    best = max(one.likelihood for one in ranked)
    before = {1: 9.0, 2: 8.9, 3: 8.8}
    for one in ranked:
        assert one.score == pytest.approx(before[one.passage.passage_id] + WEIGHT * (one.likelihood - best), abs=1e-9)
    ids = prompts.encode([Message("user", f"{source_text(ranked[0].passage)}\n\n{INSTRUCTION}")])
    target = prompts.encode_answer(QUESTION, ended=False)
    exact = asyncio.run(engine.score(ids, target)) / len(target)
    assert ranked[0].likelihood == pytest.approx(exact, abs=1e-3) and exact < 0


def test_what_is_behind_the_first_stays_behind_them(prompts: PromptBuilder, engine: VllmEngine) -> None:
    ranked = rerank(prompts, engine, found(9.0, 8.9, 8.8), 2)
    assert [one.passage.passage_id for one in ranked] == [2, 1, 3]
    assert ranked[2].likelihood is None and ranked[2].score <= ranked[1].score
    assert rerank(prompts, engine, found(9.0, 8.9, 8.8), 1) == found(9.0, 8.9, 8.8)
    assert rerank(prompts, engine, [], 8) == []


def test_a_passage_that_does_not_fit_counts_as_the_least_likely(prompts: PromptBuilder, engine: VllmEngine) -> None:
    long = Passage(4, "d4", "c", 0, 0, 0, TEXTS[2] * 40)
    ranked = rerank(prompts, engine, [ScoredPassage(long, 9.0), *found(8.9, 8.8, 8.7)], 4, length=128)
    unread = next(one for one in ranked if one.passage.passage_id == 4)
    assert unread.likelihood is None and math.isfinite(unread.score)
    assert ranked[0].passage.passage_id == 2
    nothing_fits = found(9.0, 8.9, 8.8)
    assert rerank(prompts, engine, nothing_fits, 3, length=16) == nothing_fits
