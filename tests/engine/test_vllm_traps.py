"""Ways in which vLLM with changing adapters is known to die or to answer with the wrong weights; none may happen."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from hybridqa.engine.protocol import Adapter, Sampling
from hybridqa.engine.vllm import VllmEngine
from hybridqa.errors import AdapterError, EngineClosedError, EngineError, RankLimitError, UnsupportedAdapterError
from hybridqa.models import ModelFolder

pytest.importorskip("vllm")

SHORT = Sampling(max_tokens=8)


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> list[int]:
    messages = [{"role": "user", "content": "Tell me about the sea and those who live beside it."}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.fixture
def adapter_at(tmp_path: Path, make_adapter: Any, model_folder: ModelFolder) -> Any:
    """Makes small adapters: `adapter_at(name, seed)`."""

    def make(name: str, seed: int = 0, rank: int = 4, folder: str | None = None) -> Adapter:
        path = make_adapter(
            tmp_path / (folder or name),
            model_folder,
            rank=rank,
            alpha=rank,
            targets=("v_proj", "down_proj"),
            seed=seed,
            strength=1.0,
        )
        return Adapter(name=name, path=path, rank=rank)

    return make


async def loaded(engine: VllmEngine) -> dict[str, int]:
    """vLLM's integer ids of the adapters in memory, by name."""
    return await asyncio.wrap_future(engine._runner.call(lambda llm: engine._runner.adapters.numbers()))


async def test_a_missing_folder_fails_its_own_request_only(
    engine: VllmEngine, ids: list[int], adapter_at: Any, tmp_path: Path
) -> None:
    good = adapter_at("trap-good")
    lost = Adapter("trap-lost", tmp_path / "nowhere", 4)
    results = await asyncio.gather(
        engine.generate(ids, SHORT, good),
        engine.generate(ids, SHORT, lost),
        engine.generate(ids, SHORT),
        return_exceptions=True,
    )
    assert isinstance(results[1], AdapterError) and "trap-lost" in str(results[1])
    assert (await engine.generate(ids, SHORT, good)).text == results[0].text  # type: ignore[union-attr]
    assert (await engine.generate(ids, SHORT)).text == results[2].text  # type: ignore[union-attr]


async def test_damaged_weights_fail_their_own_request_only(engine: VllmEngine, ids: list[int], adapter_at: Any) -> None:
    damaged = adapter_at("trap-damaged")
    weights = damaged.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    before = await loaded(engine)
    with pytest.raises(AdapterError, match="trap-damaged"):
        await engine.generate(ids, SHORT, damaged)
    assert await loaded(engine) == before
    assert (await engine.generate(ids, SHORT)).text


async def test_another_models_adapter_fails_its_own_request_only(
    engine: VllmEngine, ids: list[int], make_adapter: Any, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """Matrices that are too wide pass vLLM's checks and fail half way, in a slot that must not stay taken."""
    from safetensors.numpy import load_file, save_file

    path = make_adapter(tmp_path / "wide", model_folder, rank=4, alpha=4, targets=("v_proj",))
    tensors = load_file(path / "adapter_model.safetensors")
    wide = {name: value.repeat(2, axis=1) if "lora_A" in name else value for name, value in tensors.items()}
    save_file(wide, path / "adapter_model.safetensors")
    plain = await engine.generate(ids, SHORT)
    for i in range(4):  # more than there are slots
        with pytest.raises(AdapterError, match="trap-wide"):
            await engine.generate(ids, SHORT, Adapter(f"trap-wide-{i}", path, 4))
    assert (await engine.generate(ids, SHORT)).text == plain.text


async def test_what_the_engine_cannot_serve_is_refused_first(
    engine: VllmEngine, ids: list[int], adapter_at: Any, make_adapter: Any, model_folder: ModelFolder, tmp_path: Path
) -> None:
    big = adapter_at("trap-big")
    with pytest.raises(RankLimitError, match="at most 64"):
        await engine.generate(ids, SHORT, Adapter("trap-big", big.path, 65))
    head = make_adapter(tmp_path / "head", model_folder, rank=4, alpha=4, targets=("q_proj", "embed_tokens"))
    with pytest.raises(UnsupportedAdapterError, match="embed_tokens"):
        await engine.generate(ids, SHORT, Adapter("trap-head", head, 4))


async def test_a_folder_may_go_once_its_adapter_is_loaded(engine: VllmEngine, ids: list[int], adapter_at: Any) -> None:
    adapter = adapter_at("trap-gone")
    first = await engine.generate(ids, SHORT, adapter)
    shutil.rmtree(adapter.path)
    assert (await engine.generate(ids, SHORT, adapter)).text == first.text


async def test_a_folder_gone_while_its_request_waits_or_runs(
    engine: VllmEngine, ids: list[int], adapter_at: Any
) -> None:
    """More adapters than slots, all folders deleted in flight: vLLM must need none of them again."""
    adapters = [adapter_at(f"trap-flight-{i}", seed=i) for i in range(6)]
    alone = [(await engine.generate(ids, SHORT, adapter)).text for adapter in adapters]
    for adapter in adapters:
        await engine.evict(adapter.name)
    tasks = [asyncio.create_task(engine.generate(ids, SHORT, adapter)) for adapter in adapters]
    while len({name for name in await loaded(engine) if name.startswith("trap-flight")}) < len(adapters):
        await asyncio.sleep(0.005)
    for adapter in adapters:
        shutil.rmtree(adapter.path)
    assert [answer.text for answer in await asyncio.gather(*tasks)] == alone


async def test_more_adapters_than_memory_holds_all_answer(engine: VllmEngine, ids: list[int], adapter_at: Any) -> None:
    count = engine._settings.max_loaded + 4
    adapters = [adapter_at(f"trap-many-{i}", seed=i, rank=1) for i in range(count)]
    answers = await asyncio.gather(*(engine.generate(ids, Sampling(max_tokens=3), adapter) for adapter in adapters))
    assert [answer.usage.completion_tokens for answer in answers] == [3] * count
    assert len(await loaded(engine)) <= engine._settings.max_loaded
    numbers = await asyncio.wrap_future(engine._runner.call(lambda llm: llm.engine_core.list_loras()))
    assert len(numbers) <= engine._settings.max_loaded
    for i in (0, count - 1):
        assert (await engine.generate(ids, Sampling(max_tokens=3), adapters[i])).text == answers[i].text


async def test_an_evicted_adapter_that_is_gone_fails_alone(engine: VllmEngine, ids: list[int], adapter_at: Any) -> None:
    adapter = adapter_at("trap-evicted")
    await engine.generate(ids, SHORT, adapter)
    await engine.evict(adapter.name)
    shutil.rmtree(adapter.path)
    with pytest.raises(AdapterError, match="trap-evicted"):
        await engine.generate(ids, SHORT, adapter)
    assert (await engine.generate(ids, SHORT)).text


async def test_new_weights_under_an_old_name_after_evict(engine: VllmEngine, ids: list[int], adapter_at: Any) -> None:
    """Same name, same path, other bytes: neither vLLM's adapter nor its prefix cache may be the old one's."""
    old = adapter_at("trap-same", seed=1)
    first = await engine.generate(ids, SHORT, old)
    number = (await loaded(engine))["trap-same"]
    await engine.evict("trap-same")
    new = adapter_at("trap-same", seed=2)
    fresh = await engine.generate(ids, SHORT, adapter_at("trap-other-name", seed=2))
    second = await engine.generate(ids, SHORT, new)
    assert second.text == fresh.text != first.text
    assert (await loaded(engine))["trap-same"] > number


async def test_evict_while_in_use_waits_for_the_request(engine: VllmEngine, ids: list[int], adapter_at: Any) -> None:
    adapter = adapter_at("trap-busy", seed=3)
    alone = await engine.generate(ids, SHORT, adapter)
    stream = engine.stream(ids, SHORT, adapter)
    pieces = [(await anext(stream)).text]
    await engine.evict(adapter.name)
    assert "trap-busy" in await loaded(engine)
    later = asyncio.create_task(engine.generate(ids, SHORT, adapter))  # loads it anew, once the old one has ended
    pieces += [delta.text async for delta in stream]
    assert "".join(pieces) == alone.text == (await later).text


async def test_first_requests_at_once_load_an_adapter_once(engine: VllmEngine, ids: list[int], adapter_at: Any) -> None:
    adapter = adapter_at("trap-once", seed=4)
    before = engine._runner.adapters.loads
    answers = await asyncio.gather(*(engine.generate(ids, SHORT, adapter) for _ in range(6)))
    assert len({answer.text for answer in answers}) == 1
    assert engine._runner.adapters.loads == before + 1


async def test_a_step_that_fails_does_not_kill_the_engine(engine: VllmEngine, ids: list[int], tmp_path: Path) -> None:
    """An adapter that vLLM cannot read during a step: what ends a stock engine for good."""

    def slip_in(llm: Any) -> None:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        unloadable = LoRARequest("trap-raw", 10**6, str(tmp_path / "nowhere"))
        llm.add_request("raw", {"prompt_token_ids": ids}, SamplingParams(max_tokens=4), lora_request=unloadable)

    alone = await engine.generate(ids, SHORT)
    await asyncio.wrap_future(engine._runner.call(slip_in))
    with pytest.raises(EngineError, match="step of vLLM failed"):
        await engine.generate(ids, SHORT)
    await asyncio.wrap_future(engine._runner.call(lambda llm: llm.abort_request(["raw"])))
    assert (await engine.generate(ids, SHORT)).text == alone.text


async def test_a_closed_engine_says_so_and_leaves_others_alone(
    engine: VllmEngine, tiny_model: ModelFolder, ids: list[int]
) -> None:
    """A second engine in the process, closed while it answers; the first goes on."""
    alone = await engine.generate(ids, SHORT)
    second = VllmEngine(tiny_model, dtype="float32", max_model_len=512, max_lora_rank=8, max_stacks=1, kv_cache_mb=32)
    await asyncio.gather(second.start(), second.start())
    assert (await second.generate(ids, Sampling(max_tokens=3))).usage.completion_tokens <= 3
    task = asyncio.create_task(second.generate(ids, Sampling(max_tokens=400, temperature=1.0, seed=0)))
    await asyncio.sleep(0.05)
    await second.close()
    with pytest.raises(EngineClosedError):
        await task
    with pytest.raises(EngineClosedError):
        await second.generate(ids, SHORT)
    await second.close()
    assert (await engine.generate(ids, SHORT)).text == alone.text


async def test_a_model_that_cannot_be_loaded_is_named(tiny_model: ModelFolder) -> None:
    from hybridqa.errors import ModelError

    hungry = VllmEngine(tiny_model, dtype="float32", max_model_len=512, kv_cache_mb=10**8)
    with pytest.raises(ModelError, match="KV_CACHE_MB"):
        await hungry.start()
    await hungry.close()


async def test_importing_the_engine_loads_no_vllm() -> None:
    import sys

    code = "import sys, hybridqa.engine.vllm; print(any(m in sys.modules for m in ('vllm', 'torch', 'transformers')))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.decode().strip() == "False"
