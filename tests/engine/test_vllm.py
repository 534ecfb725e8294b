"""vLLM in this process against transformers and peft: the same words, whatever shares the batch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hybridqa.engine.protocol import Adapter, Engine, Sampling
from hybridqa.engine.reference import ReferenceEngine
from hybridqa.engine.vllm import VllmEngine, _params
from hybridqa.errors import ConfigError, QuestionError
from hybridqa.models import ModelFolder

pytest.importorskip("vllm")

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue? Answer in one sentence.",
    "What is 12 plus 30?",
)
GREEDY = Sampling(max_tokens=24)


def prompt(tokenizer: Any, question: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [prompt(tokenizer, question) for question in QUESTIONS]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, make_adapter: Any, model_folder: ModelFolder) -> list[Adapter]:
    """Unlike ranks, scales and targets."""
    root = tmp_path_factory.mktemp("adapters")
    recipes = [
        {"rank": 16, "alpha": 32},
        {"rank": 4, "alpha": 4, "targets": ("q_proj", "v_proj", "down_proj")},
        {"rank": 40, "alpha": 20, "rslora": True},
    ]
    made = []
    for i, recipe in enumerate(recipes):
        folder = make_adapter(root / f"a{i}", model_folder, seed=i, strength=0.2, **recipe)
        made.append(Adapter(name=f"vllm-test-{i}", path=folder, rank=int(recipe["rank"])))  # type: ignore[call-overload]
    return made


def test_both_are_engines(engine: VllmEngine, reference_engine: ReferenceEngine) -> None:
    assert isinstance(engine, Engine)
    assert isinstance(reference_engine, Engine)


async def test_greedy_text_equals_transformers(
    engine: VllmEngine, reference_engine: ReferenceEngine, prompts: list[list[int]]
) -> None:
    answers = await asyncio.gather(*(engine.generate(ids, GREEDY) for ids in prompts))
    for ids, got in zip(prompts, answers, strict=True):
        want = await reference_engine.generate(ids, GREEDY)
        assert got.text == want.text
        assert got.finish_reason == want.finish_reason
        assert got.usage == want.usage
        assert got.logprob == pytest.approx(want.logprob, abs=1e-2)
        assert 0 < got.first_token_s <= got.total_s
    assert len({answer.text for answer in answers}) == len(prompts)


async def test_mixed_batch_equals_each_alone_and_peft(
    engine: VllmEngine, reference_engine: ReferenceEngine, prompts: list[list[int]], adapters: list[Adapter]
) -> None:
    """Requests with no adapter and with adapters of unlike ranks in one batch: the bug of vLLM's own CPU kernel."""
    cases = [(ids, adapter) for ids in prompts[1:3] for adapter in (None, *adapters)]
    together = await asyncio.gather(*(engine.generate(ids, GREEDY, adapter) for ids, adapter in cases))
    for (ids, adapter), got in zip(cases, together, strict=True):
        assert got.text == (await engine.generate(ids, GREEDY, adapter)).text
        assert got.text == (await reference_engine.generate(ids, GREEDY, adapter)).text
    assert len({got.text for got in together}) == len(cases)  # each adapter says something else


async def test_composed_stack_equals_peft_with_all_active(
    engine: VllmEngine,
    model_folder: ModelFolder,
    prompts: list[list[int]],
    adapters: list[Adapter],
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    """Three adapters, weighted, as one: logits within 1e-4 of peft's sum, and vLLM says the same words."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from hybridqa.modules.stacking import compose

    rank = compose([(adapter.path, 1.0) for adapter in adapters], tmp_path / "stack", max_rank=64)
    stack = Adapter(name="vllm-test-stack", path=tmp_path / "stack", rank=rank)
    base = AutoModelForCausalLM.from_pretrained(str(model_folder.path), dtype=torch.float32)
    summed = PeftModel.from_pretrained(base, str(adapters[0].path), adapter_name="a0")
    for i, adapter in enumerate(adapters[1:], start=1):
        summed.load_adapter(str(adapter.path), adapter_name=f"a{i}")
    summed.load_adapter(str(stack.path), adapter_name="stack")
    summed.eval()
    ids = torch.tensor([prompts[2]])
    with torch.inference_mode():
        summed.base_model.set_adapter(["a0", "a1", "a2"])
        want_T_V = summed(ids).logits[0]
        written = summed.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
        )
        summed.base_model.set_adapter(["stack"])
        got_T_V = summed(ids).logits[0]
    assert float((want_T_V - got_T_V).abs().max()) < 1e-4
    answer = await engine.generate(prompts[2], GREEDY, stack)
    assert answer.text == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


async def test_stream_pieces_make_the_completion(engine: VllmEngine, prompts: list[list[int]]) -> None:
    whole = await engine.generate(prompts[0], GREEDY)
    deltas = [delta async for delta in engine.stream(prompts[0], GREEDY)]
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == whole.finish_reason
    assert deltas[-1].usage == whole.usage
    assert sum(delta.logprob for delta in deltas) == pytest.approx(whole.logprob, abs=1e-3)
    assert len(deltas) > 3


async def test_sampling_is_seeded_and_stops_where_told(engine: VllmEngine, prompts: list[list[int]]) -> None:
    warm = Sampling(max_tokens=16, temperature=1.5, top_p=0.95, seed=7)
    first, again = await asyncio.gather(engine.generate(prompts[2], warm), engine.generate(prompts[2], warm))
    other = await engine.generate(prompts[2], Sampling(max_tokens=16, temperature=1.5, top_p=0.95, seed=8))
    assert first.text == again.text != other.text

    plain = await engine.generate(prompts[0], GREEDY)
    word = plain.text.split()[3]
    cut = await engine.generate(prompts[0], Sampling(max_tokens=24, stop=(word,)))
    assert cut.finish_reason == "stop"
    assert cut.text == plain.text[: plain.text.index(word)]
    short = await engine.generate(prompts[0], Sampling(max_tokens=2))
    assert (short.finish_reason, short.usage.completion_tokens) == ("length", 2)


async def test_the_context_ends_an_answer_and_refuses_a_longer_prompt(engine: VllmEngine) -> None:
    room = engine.max_model_len
    full = await engine.generate([100] * (room - 3), Sampling(max_tokens=50, temperature=1.0, seed=0))
    assert full.usage.total_tokens <= room
    with pytest.raises(QuestionError, match=rf"{room} tokens"):
        await engine.generate([100] * room, GREEDY)
    with pytest.raises(QuestionError, match="empty"):
        await engine.generate([], GREEDY)
    with pytest.raises(QuestionError, match="vocabulary"):
        await engine.generate([10**6], GREEDY)
    with pytest.raises(ConfigError, match="max_tokens"):
        await engine.generate([100], Sampling(max_tokens=0))


async def test_scores_equal_the_reference_engines_whatever_is_cached(
    engine: VllmEngine,
    reference_engine: ReferenceEngine,
    prompts: list[list[int]],
    adapters: list[Adapter],
    tokenizer: Any,
) -> None:
    long = tokenizer("The harbour of Oskvar freezes in winter. " * 20, add_special_tokens=False).input_ids
    cases = [
        ([*long, *ids], tokenizer(text, add_special_tokens=False).input_ids, adapter)
        for ids, text in zip(prompts[:2], (" Paris", " Red, green and blue are three of them."), strict=True)
        for adapter in (None, adapters[0])
    ]
    cases.append((prompts[0], long, None))  # a target over several blocks of the cache
    cases.append((prompts[0], [*long[:-1], 5], None))  # and one that begins like it
    want = [await reference_engine.score(*case) for case in cases]
    assert len({round(value, 2) for value in want}) == len(cases)
    fresh = [await engine.score(*case) for case in cases]
    await asyncio.gather(*(engine.generate(ids, Sampling(max_tokens=2), adapter) for ids, _, adapter in cases))
    cached = [await engine.score(*case) for case in cases]
    mixed, *_ = await asyncio.gather(
        asyncio.gather(*(engine.score(*case) for case in cases)),
        *(engine.generate(ids, GREEDY, adapter) for ids, _, adapter in cases),
    )
    for case, *found in zip(cases, want, fresh, cached, mixed, strict=True):
        assert found[1:] == pytest.approx([found[0]] * 3, abs=2e-3 * len(case[1]), rel=1e-3)
    with pytest.raises(QuestionError, match="empty"):
        await engine.score(prompts[0], [])
    with pytest.raises(QuestionError, match="tokens"):
        await engine.score(prompts[0], [5] * engine.max_model_len)


async def unfinished(engine: VllmEngine) -> tuple[int, int]:
    """What vLLM still holds: by its front, and by its scheduler."""

    def count(llm: Any) -> tuple[int, int]:
        scheduler = llm.engine_core.engine_core.scheduler
        return llm.get_num_unfinished_requests(), len(scheduler.running) + len(scheduler.waiting)

    return await asyncio.wrap_future(engine._runner.call(count))  # type: ignore[no-any-return]


async def test_cancelling_stops_vllm(engine: VllmEngine, prompts: list[list[int]], adapters: list[Adapter]) -> None:
    long = Sampling(max_tokens=1500, temperature=1.0, seed=1)
    task = asyncio.create_task(engine.generate(prompts[1], long, adapters[0]))
    while (await unfinished(engine))[0] == 0:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await unfinished(engine) == (0, 0)
    assert (await engine.generate(prompts[0], Sampling(max_tokens=2), adapters[0])).finish_reason == "length"


async def test_closing_the_iterator_stops_vllm(engine: VllmEngine, prompts: list[list[int]]) -> None:
    stream = engine.stream(prompts[1], Sampling(max_tokens=1500, temperature=1.0, seed=1))
    await anext(stream)
    assert await unfinished(engine) == (1, 1)
    await stream.aclose()
    assert await unfinished(engine) == (0, 0)


def test_two_loops_share_one_engine(engine: VllmEngine, prompts: list[list[int]]) -> None:
    def ask(ids: list[int]) -> str:
        return asyncio.run(engine.generate(ids, Sampling(max_tokens=6))).text

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(ask, prompts[:2]))
    assert together == [ask(ids) for ids in prompts[:2]]


def test_the_process_is_left_as_it_was(engine: VllmEngine) -> None:
    """vLLM's CPU worker replaces torch.set_num_threads by a function that refuses."""
    import os

    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    assert "LD_PRELOAD" not in os.environ
    assert torch.get_default_dtype() == torch.float32


def test_ours_is_the_kernel_in_use(engine: VllmEngine) -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        assert current_platform.get_punica_wrapper() == "hybridqa.engine.cpu_lora.GroupedPunicaWrapperCPU"


async def test_a_cached_prompt_speeds_up_its_own_scope_alone(engine: VllmEngine) -> None:
    """Or the time to the first token would tell one tenant what another's prompts hold."""
    prompt_ids = [7 + place % 900 for place in range(200)]

    async def cached(scope: str) -> int:
        pieces = engine._pieces(prompt_ids, _params(Sampling(max_tokens=1), 1), None, scope)
        return max([piece.cached_tokens or 0 async for piece in pieces])

    for scope in ("one", "two", ""):
        assert await cached(scope) == 0, scope
    for scope in ("one", "two", ""):
        assert await cached(scope) > 100, scope
