"""The transformers engine: the protocol's promises, on a tiny random model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hybridqa.engine.protocol import Adapter, Sampling
from hybridqa.engine.reference import ReferenceEngine
from hybridqa.errors import AdapterError, EngineClosedError, QuestionError, RankLimitError
from hybridqa.models import ModelFolder

PROMPT = [5, 900, 33, 1200]
SHORT = Sampling(max_tokens=8)


@pytest.fixture
async def small(tiny_model: ModelFolder) -> AsyncIterator[ReferenceEngine]:
    made = ReferenceEngine(tiny_model, dtype="float32", max_model_len=64, max_lora_rank=16)
    yield made
    await made.close()


async def test_greedy_equals_transformers_generate(small: ReferenceEngine, tiny_model: ModelFolder) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    got = await small.generate(PROMPT, SHORT)
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model.path), dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model.path))
    assert got.text == tokenizer.decode(out[0, len(PROMPT) :], skip_special_tokens=True)
    assert got.logprob < 0


async def test_stream_pieces_make_the_completion(small: ReferenceEngine) -> None:
    whole = await small.generate(PROMPT, SHORT)
    deltas = [delta async for delta in small.stream(PROMPT, SHORT)]
    assert "".join(delta.text for delta in deltas) == whole.text
    assert deltas[-1].usage == whole.usage
    assert sum(delta.logprob for delta in deltas) == pytest.approx(whole.logprob)


async def test_stop_strings_and_seeds(small: ReferenceEngine) -> None:
    plain = await small.generate(PROMPT, SHORT)
    stop = plain.text[4:7]
    cut = await small.generate(PROMPT, Sampling(max_tokens=8, stop=(stop,)))
    assert cut.text == plain.text[: plain.text.index(stop)]
    assert cut.finish_reason == "stop"
    warm = [await small.generate(PROMPT, Sampling(max_tokens=8, temperature=2.0, seed=s)) for s in (1, 1, 2)]
    assert warm[0].text == warm[1].text != warm[2].text


async def test_adapters_come_and_go(
    small: ReferenceEngine, make_adapter: Any, tiny_model: ModelFolder, tmp_path: Path
) -> None:
    adapters = [
        Adapter(f"ref.{i}", make_adapter(tmp_path / str(i), tiny_model, seed=i, strength=1.0), 8) for i in range(6)
    ]
    plain = await small.generate(PROMPT, SHORT)
    first = [await small.generate(PROMPT, SHORT, adapter) for adapter in adapters]  # more than are kept
    again = [await small.generate(PROMPT, SHORT, adapter) for adapter in adapters]
    assert [answer.text for answer in first] == [answer.text for answer in again]
    assert len({answer.text for answer in first} | {plain.text}) == 7
    for adapter in adapters:
        await small.evict(adapter.name)
    assert (await small.generate(PROMPT, SHORT)).text == plain.text
    assert (await small.generate(PROMPT, SHORT, adapters[0])).text == first[0].text
    assert (await small.generate(PROMPT, SHORT)).text == plain.text


async def test_a_score_is_the_sum_of_the_targets_log_probabilities(
    small: ReferenceEngine, make_adapter: Any, tiny_model: ModelFolder, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    target = [7, 1200, 15]
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model.path), dtype=torch.float32)
    want = 0.0
    for place, token in enumerate(target):  # one token at a time: no shift to get wrong
        logits_V = model(torch.tensor([PROMPT + target[:place]])).logits[0, -1]
        want += float(logits_V.detach().log_softmax(-1)[token])
    assert await small.score(PROMPT, target) == pytest.approx(want, abs=1e-4)
    adapter = Adapter("scored", make_adapter(tmp_path / "a", tiny_model, strength=1.0), 8)
    adapted = await small.score(PROMPT, target, adapter)
    assert adapted != pytest.approx(want, abs=1e-2)
    assert await small.score(PROMPT, target) == pytest.approx(want, abs=1e-4)
    written = await small.generate(PROMPT, Sampling(max_tokens=1), adapter)
    scores = [await small.score(PROMPT, [token], adapter) for token in range(40)]
    assert max(scores) <= written.logprob + 1e-4  # greedy is the likeliest
    with pytest.raises(QuestionError, match="empty"):
        await small.score(PROMPT, [])
    with pytest.raises(QuestionError, match="64"):
        await small.score(PROMPT, [5] * 60)
    with pytest.raises(QuestionError, match="vocabulary"):
        await small.score(PROMPT, [10**6])
    with pytest.raises(RankLimitError):
        await small.score(PROMPT, target, Adapter("big", tmp_path, 17))


async def test_errors_are_the_requests_own(small: ReferenceEngine, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="nowhere"):
        await small.generate(PROMPT, SHORT, Adapter("lost", tmp_path / "nowhere", 4))
    with pytest.raises(RankLimitError):
        await small.generate(PROMPT, SHORT, Adapter("big", tmp_path, 17))
    with pytest.raises(QuestionError, match="64"):
        await small.generate([5] * 64, SHORT)
    assert (await small.generate(PROMPT, SHORT)).text


async def test_cancelling_stops_and_closing_refuses(small: ReferenceEngine) -> None:
    stream = small.stream(PROMPT, Sampling(max_tokens=60, temperature=1.0))
    await anext(stream)
    await stream.aclose()
    quick = await asyncio.wait_for(small.generate(PROMPT, Sampling(max_tokens=1)), 20)
    assert quick.usage.completion_tokens == 1
    await small.close()
    with pytest.raises(EngineClosedError):
        await small.generate(PROMPT, SHORT)
