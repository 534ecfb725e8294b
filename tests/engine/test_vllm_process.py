"""vLLM in a process of its own: the same words, every error, and nothing is left when either process goes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hybridqa.engine.environment import engine_environment
from hybridqa.engine.protocol import Adapter, Engine, Sampling
from hybridqa.engine.reference import ReferenceEngine
from hybridqa.engine.vllm import VllmEngine
from hybridqa.engine.vllm_process import VllmProcess
from hybridqa.errors import AdapterError, EngineClosedError, EngineError, ModelError, QuestionError
from hybridqa.models import ModelFolder
from hybridqa.processes import import_path

pytest.importorskip("vllm")

PROMPT = [1200 + 97 * place for place in range(60)]
LONG = Sampling(max_tokens=400, temperature=1.0, seed=3)
SIZES: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "max_lora_rank": 8, "max_stacks": 2}
OWNER = """
import asyncio, sys, time
from pathlib import Path
from hybridqa.engine.protocol import Sampling
from hybridqa.engine.vllm import VllmEngine
from hybridqa.models import ModelFolder

async def main():
    engine = VllmEngine(ModelFolder(Path(sys.argv[1]), "tiny", "0" * 64), dtype="float32", max_model_len=512,
                        kv_cache_mb=32, apart=True)
    if sys.argv[2] == "loading":
        asyncio.create_task(engine.start())
        await asyncio.sleep(0.1)
    else:
        async for piece in engine.stream([5] * 20, Sampling(max_tokens=400, temperature=1.0, seed=0)):
            break
    print(engine._runner.pid, "vllm" in sys.modules, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def new_engine(model: ModelFolder, **sizes: Any) -> VllmEngine:
    return VllmEngine(model, **{**SIZES, "kv_cache_mb": 32, "apart": True, **sizes})


@pytest.fixture(scope="module")
def apart(tiny_model: ModelFolder) -> Iterator[VllmEngine]:
    engine = new_engine(tiny_model)
    asyncio.run(engine.start())
    yield engine
    asyncio.run(engine.close())


@pytest.fixture
def adapter(tmp_path: Path, make_adapter: Any, tiny_model: ModelFolder) -> Adapter:
    return Adapter("apart", make_adapter(tmp_path / "apart", tiny_model, rank=4, alpha=8, strength=1.0), 4)


def process_of(engine: VllmEngine) -> VllmProcess:
    assert isinstance(engine._runner, VllmProcess)
    return engine._runner


def pid_of(engine: VllmEngine) -> int:
    pid = process_of(engine).pid
    assert pid is not None
    return pid


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def wait_for(done: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.05)


async def test_it_says_what_the_reference_says(apart: VllmEngine, tiny_model: ModelFolder, adapter: Adapter) -> None:
    assert isinstance(apart, Engine)
    plain = ReferenceEngine(tiny_model, dtype="float32", max_model_len=512, max_lora_rank=8)
    await plain.start()
    greedy = Sampling(max_tokens=12)
    asked = [(PROMPT, None), (PROMPT[:30], adapter), (PROMPT[10:50], None), (PROMPT, adapter)]
    found = await asyncio.gather(*(apart.generate(ids, greedy, one) for ids, one in asked))
    expected = [await plain.generate(ids, greedy, one) for ids, one in asked]
    assert [(one.text, one.finish_reason, one.usage) for one in found] == [
        (one.text, one.finish_reason, one.usage) for one in expected
    ]
    assert len({one.text for one in found}) == len(asked)
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-2)
    target = PROMPT[20:26]
    for one in (None, adapter):
        told = [await apart.score(PROMPT, target, one), await apart.score(PROMPT, target, one)]  # fresh, then cached
        assert told == pytest.approx([await plain.score(PROMPT, target, one)] * 2, abs=1e-2)
    await plain.close()


async def test_pieces_make_the_completion(apart: VllmEngine) -> None:
    sampling = Sampling(max_tokens=20, temperature=1.0, seed=5)
    pieces = [piece async for piece in apart.stream(PROMPT, sampling)]
    whole = await apart.generate(PROMPT, sampling)
    assert "".join(piece.text for piece in pieces) == whole.text and len(pieces) > 5
    assert (pieces[-1].finish_reason, pieces[-1].usage) == (whole.finish_reason, whole.usage)


async def test_errors_come_over_as_what_they_are(apart: VllmEngine, adapter: Adapter, tmp_path: Path) -> None:
    before = pid_of(apart)
    with pytest.raises(AdapterError, match="nowhere"):
        await apart.generate(PROMPT, Sampling(max_tokens=2), Adapter("lost", tmp_path / "nowhere", 4))
    with pytest.raises(QuestionError):
        await apart.generate([], Sampling(max_tokens=2))
    (adapter.path / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(AdapterError, match="damaged"):
        await apart.generate(PROMPT, Sampling(max_tokens=2), Adapter("damaged", adapter.path, 4))
    assert (await apart.generate(PROMPT, Sampling(max_tokens=2))).usage.completion_tokens == 2
    assert pid_of(apart) == before


async def test_who_goes_is_stopped_in_the_process(apart: VllmEngine) -> None:
    stream = apart.stream(PROMPT, LONG)
    await anext(stream)
    task = asyncio.create_task(apart.generate(PROMPT, LONG))
    while await asyncio.wrap_future(process_of(apart).unfinished()) < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stream.aclose()
    assert await asyncio.wrap_future(process_of(apart).unfinished()) == 0
    assert not process_of(apart)._requests


async def test_an_adapter_that_is_forgotten_may_change(
    apart: VllmEngine, adapter: Adapter, make_adapter: Any, tiny_model: ModelFolder
) -> None:
    greedy = Sampling(max_tokens=8)
    first = await apart.generate(PROMPT, greedy, adapter)
    make_adapter(adapter.path, tiny_model, rank=4, alpha=8, strength=1.0, seed=9)
    assert (await apart.generate(PROMPT, greedy, adapter)).text == first.text
    await apart.evict(adapter.name)
    assert (await apart.generate(PROMPT, greedy, adapter)).text != first.text


async def test_signals_to_the_group_do_not_end_it(apart: VllmEngine) -> None:
    for told in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid_of(apart), told)
    before = pid_of(apart)
    assert (await apart.generate(PROMPT, Sampling(max_tokens=3))).usage.completion_tokens == 3
    assert pid_of(apart) == before


async def test_when_it_is_killed_its_requests_fail_and_the_next_starts_it_anew(
    apart: VllmEngine, adapter: Adapter
) -> None:
    before = pid_of(apart)
    stream = apart.stream(PROMPT, LONG, adapter)
    await anext(stream)
    waiting = asyncio.create_task(apart.generate(PROMPT, LONG))
    while await asyncio.wrap_future(process_of(apart).unfinished()) < 2:
        await asyncio.sleep(0.01)
    os.kill(before, signal.SIGKILL)
    for broken in (waiting, anext(stream)):
        with pytest.raises(EngineError, match=r"ended by itself \(signal 9\)"):
            while True:
                await broken
                broken = anext(stream)  # pieces that had arrived
    await apart.evict(adapter.name)  # of a process that is gone: nothing to do
    first, second = await asyncio.gather(*(apart.generate(PROMPT, Sampling(max_tokens=3), adapter) for _ in range(2)))
    assert first.text == second.text and pid_of(apart) != before and not is_alive(before)


async def test_when_vllm_cannot_go_on_its_process_ends(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = "import hybridqa.engine.vllm_thread as one\none.VllmThread._step = lambda self: 1 / 0\n"
    (tmp_path / "sitecustomize.py").write_text(fault)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), import_path().get("PYTHONPATH", "")]))
    broken = new_engine(tiny_model)
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        await broken.generate(PROMPT, Sampling(max_tokens=2))
    while not broken._runner.lost:
        await asyncio.sleep(0.05)
    assert not is_alive(pid_of(broken))
    await broken.close()


async def test_a_model_that_cannot_be_loaded_is_named(tiny_model: ModelFolder) -> None:
    hungry = new_engine(tiny_model, kv_cache_mb=10**8)
    with pytest.raises(ModelError, match="KV_CACHE_MB"):
        await hungry.start()
    assert hungry._runner.lost  # so that the next start tries again
    await hungry.close()
    with pytest.raises(EngineClosedError):
        await hungry.start()


async def test_closing_ends_what_runs_and_what_loads(tiny_model: ModelFolder) -> None:
    busy, loading = new_engine(tiny_model), new_engine(tiny_model)
    stream = busy.stream(PROMPT, LONG)
    await anext(stream)
    pids = [pid_of(busy)]
    await busy.close()
    with pytest.raises(EngineClosedError):
        while True:
            await anext(stream)
    start = asyncio.create_task(loading.start())
    await asyncio.sleep(0.1)
    pids.append(pid_of(loading))
    began = time.monotonic()
    await loading.close()
    assert time.monotonic() - began < 5
    with pytest.raises(EngineClosedError):
        await start
    assert not any(is_alive(pid) for pid in pids)
    await loading.close()


@pytest.mark.parametrize("when", ["loading", "answering"])
def test_it_ends_with_its_owner(tiny_model: ModelFolder, when: str) -> None:
    command = [sys.executable, "-c", OWNER, str(tiny_model.path), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **import_path()}) as owner:
        assert owner.stdout is not None
        pid, loaded = owner.stdout.readline().split()
        assert loaded == "False"  # vLLM is in the other process alone
        assert is_alive(int(pid))
        owner.kill()
    wait_for(lambda: not is_alive(int(pid)))


def test_its_threads_are_as_many_as_the_cores_or_as_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for cores, threads in ((1, "1"), (2, "2"), (8, "7")):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=cores: set(range(count)))
        assert engine_environment()["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert (engine_environment()["OMP_NUM_THREADS"], engine_environment()["GOMP_SPINCOUNT"]) == ("3", "7")
