"""The resolver inside vLLM's own `OpenAIServingModels`: ids, locks, loads and what is kept, over a recorded engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stock import ModuleStore

from hybridqa.config import Settings
from hybridqa.models import ModelFolder

pytest.importorskip("vllm")

from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.resolver import LoRAResolverRegistry

from hybridqa.stack_server import resolver as resolving
from hybridqa.stack_server.resolver import NAME, StackResolver, register_resolver
from hybridqa.stack_server.served import ServedStacks


class RecordedEngine:
    """What `OpenAIServingModels` needs of an engine; remembers what it was told to load."""

    def __init__(self, model: Path, api_servers: int = 1) -> None:
        self.model_config = SimpleNamespace(model=str(model), max_model_len=512)
        self.renderer = self.input_processor = None
        self.output_processor: Any = SimpleNamespace(request_states={})
        self.vllm_config = SimpleNamespace(
            lora_config=SimpleNamespace(max_lora_rank=16),
            parallel_config=SimpleNamespace(_api_process_count=api_servers),
        )
        self.errored = False
        self.loaded: list[tuple[int, str]] = []
        self.failing = 0
        self.removed: list[int] = []

    async def add_lora(self, request: Any) -> bool:
        await asyncio.sleep(0.01)
        if self.failing:
            self.failing -= 1
            raise RuntimeError("no room")
        assert not request.load_inplace and Path(request.lora_path, "adapter_model.safetensors").is_file()
        if (request.lora_int_id, request.lora_path) not in self.loaded:
            assert request.lora_int_id not in {number for number, _ in self.loaded}
            self.loaded.append((request.lora_int_id, request.lora_path))
        return True

    async def remove_lora(self, number: int) -> bool:
        self.removed.append(number)
        return True


@pytest.fixture
def store(tmp_path: Path, tiny_model: ModelFolder, make_adapter: Callable[..., Path]) -> ModuleStore:
    return ModuleStore(tmp_path / "store", tiny_model, make_adapter)


@pytest.fixture
def make(
    store: ModuleStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Any, RecordedEngine, Any]]]:
    """Makes vLLM's models with our resolver registered as its plug-in would be."""
    opened: list[ServedStacks] = []

    def call(api_servers: int = 1, **settings: Any) -> tuple[Any, RecordedEngine, Any]:
        stacks = ServedStacks(Settings.load(store.folder, **settings))
        opened.append(stacks)
        resolver = StackResolver(stacks)
        monkeypatch.setattr(LoRAResolverRegistry, "resolvers", {NAME: resolver})
        engine = RecordedEngine(store.model.path, api_servers)
        return OpenAIServingModels(engine, [SimpleNamespace(name="base", model_path="base")]), engine, resolver

    monkeypatch.setattr(resolving, "TICK_S", 0.02)
    monkeypatch.setattr(resolving, "GRACE_S", 0.1)
    yield call
    for each in opened:
        each.close()


async def test_one_stack_has_one_id_however_it_is_written(store: ModuleStore, make: Callable[..., Any]) -> None:
    a, b = store.publish("a", seed=1), store.publish("b", seed=2)
    models, engine, _ = make()
    spellings = [f"stack:{a.name}+{b.name}", f"stack:{b.name}+{a.name}", f"stack:{b.name}*1.0+{a.name}"]
    found = await asyncio.gather(*(models.resolve_lora(name) for name in spellings for _ in range(8)))
    assert len({request.lora_int_id for request in found}) == len(engine.loaded) == 1
    assert {request.lora_name for request in found} == {spellings[0]} or len(
        {request.lora_name for request in found}
    ) == 1
    single = await models.resolve_lora(f"stack:{a.name}")
    assert single.lora_int_id > found[0].lora_int_id and single.lora_path != found[0].lora_path


async def test_ids_grow_and_are_never_given_twice(store: ModuleStore, make: Callable[..., Any]) -> None:
    models, engine, _ = make()
    last = 0
    for round_ in range(3):
        for doc_id in ("a", "b"):
            store.put(doc_id)
            module = store.publish(doc_id, seed=round_)
            await models.resolve_lora(f"stack:no-such-{round_}@1")
            request = await models.resolve_lora(f"stack:{module.name}")
            assert request.lora_int_id > last
            last = request.lora_int_id
    assert len({path for _, path in engine.loaded}) == len(engine.loaded) == 6


async def test_a_failed_load_says_so_and_leaves_nothing(store: ModuleStore, make: Callable[..., Any]) -> None:
    a = store.publish("a")
    models, engine, _ = make()
    engine.failing = 1
    with pytest.raises(ValueError, match="could not load"):
        await models.resolve_lora(f"stack:{a.name}")
    assert engine.removed and not models.lora_requests
    request = await models.resolve_lora(f"stack:{a.name}")
    assert request.lora_int_id > engine.removed[0]  # the half-loaded one is never taken for it
    engine.failing, engine.errored = 1, True
    with pytest.raises(RuntimeError, match="no room"):  # a dead engine is no fault of the stack's
        await models.resolve_lora(f"stack:{a.name}*0.5")


async def test_names_that_nobody_has_leave_nothing_behind(store: ModuleStore, make: Callable[..., Any]) -> None:
    a = store.publish("a")
    models, _, resolver = make()
    kept = await models.resolve_lora(f"stack:{a.name}")
    for number in range(200):
        assert (await models.resolve_lora(f"stack:made-up-{number}@1")).error.code == 404
        assert (await models.resolve_lora(f"other-{number}")).error.code == 404
    await asyncio.sleep(0.2)
    assert set(models.lora_resolver_lock) == {f"stack:{a.name}"} == set(models.lora_requests)
    assert len(resolver._held) == 1 and not resolver._loading
    assert (await models.resolve_lora(f"stack:{a.name}")) is kept


async def test_what_is_kept_is_bounded_but_never_what_runs(store: ModuleStore, make: Callable[..., Any]) -> None:
    a = store.publish("a", rank=16)
    models, engine, resolver = make(stack_cache_mb=1)
    running = await models.resolve_lora(f"stack:{a.name}*0.001")
    engine.output_processor.request_states["r"] = SimpleNamespace(lora_name=running.lora_name)
    requests = [await models.resolve_lora(f"stack:{a.name}*0.{number}") for number in range(101, 120)]
    size = sum(path.stat().st_size for path in Path(running.lora_path).iterdir())
    for _ in range(100):
        await asyncio.sleep(0.02)
        if len(resolver._held) * size <= 1_000_000:
            break
    assert 1 < len(resolver._held) * size <= 1_000_000 < len(requests) * size
    assert running.lora_name in models.lora_requests and Path(running.lora_path).is_dir()
    folders = list((store.module_dir / "stacks").glob("stack-*"))
    assert len(folders) * size <= 1_000_000 + size
    gone = next(request for request in requests if request.lora_name not in models.lora_requests)
    again = await models.resolve_lora(gone.lora_name)
    assert again.lora_int_id > requests[-1].lora_int_id and Path(again.lora_path).is_dir()


async def test_an_unloaded_stack_keeps_its_folder_while_a_request_runs(
    store: ModuleStore, make: Callable[..., Any]
) -> None:
    a = store.publish("a")
    models, engine, resolver = make()
    request = await models.resolve_lora(f"stack:{a.name}")
    engine.output_processor.request_states["r"] = SimpleNamespace(lora_name=request.lora_name)
    del models.lora_requests[request.lora_name]  # what an unload over HTTP does
    await asyncio.sleep(0.3)
    assert len(resolver._held) == 1
    engine.output_processor.request_states.clear()
    await asyncio.sleep(0.3)
    assert not resolver._held
    unseen = await models.resolve_lora(f"stack:{a.name}")
    engine.output_processor = None  # another vLLM, where it cannot be seen what runs: everything may
    del models.lora_requests[unseen.lora_name]
    await asyncio.sleep(0.3)
    assert len(resolver._held) == 1


async def test_stale_stacks_are_unlisted(store: ModuleStore, make: Callable[..., Any]) -> None:
    a, b = store.publish("a"), store.publish("b")
    models, _, _ = make()
    for module in (a, b):
        await models.resolve_lora(f"stack:{module.name}")
    store.put("a", "changed")
    await asyncio.sleep(0.3)
    assert set(models.lora_requests) == {f"stack:{b.name}"}
    with pytest.raises(ValueError, match="stale"):
        await models.resolve_lora(f"stack:{a.name}")


async def test_several_api_servers_would_share_ids(store: ModuleStore, make: Callable[..., Any]) -> None:
    a = store.publish("a")
    models, _, _ = make(api_servers=2)
    with pytest.raises(RuntimeError, match="api-server-count 1"):
        await models.resolve_lora(f"stack:{a.name}")


async def test_a_server_that_cannot_be_seen_is_served_plainly(store: ModuleStore, make: Callable[..., Any]) -> None:
    a = store.publish("a")
    _, _, resolver = make()
    request = await resolver.resolve_lora(str(store.model.path), f"stack:{a.name}")  # not called by vLLM's models
    assert request.lora_name == f"stack:{a.name}" and Path(request.lora_path).is_dir()
    request.lora_int_id = 77  # as vLLM does
    assert request.lora_int_id == 77


def test_the_plug_in_registers_once_and_only_for_a_store(
    store: ModuleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hybridqa.vllm_plugin import register

    monkeypatch.setattr(LoRAResolverRegistry, "resolvers", {})
    monkeypatch.delenv("HYBRIDQA_STORE", raising=False)
    register()
    assert not LoRAResolverRegistry.get_supported_resolvers()
    monkeypatch.setenv("HYBRIDQA_STORE", str(tmp_path / "nowhere"))
    register()
    assert not LoRAResolverRegistry.get_supported_resolvers() and "no stacks are served" in caplog.text
    monkeypatch.setenv("HYBRIDQA_STORE", str(store.folder))
    monkeypatch.setenv("HYBRIDQA_PASSAGES", "none")
    register_resolver()
    assert not LoRAResolverRegistry.get_supported_resolvers()
    monkeypatch.delenv("HYBRIDQA_PASSAGES")
    register()
    first = dict(LoRAResolverRegistry.resolvers)
    register()
    assert set(first) == {NAME} and LoRAResolverRegistry.resolvers == first
