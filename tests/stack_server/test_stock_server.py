"""A stock vLLM server with the plug-in: every way in which it is known to die or to answer with the wrong weights.

One server for the whole file, with room for two adapters, so that evictions are reads from disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from stock import KEY, ModuleStore, StockServer

from hybridqa.engine.protocol import Adapter, Engine, Sampling
from hybridqa.engine.reference import ReferenceEngine
from hybridqa.engine.remote import RemoteEngine
from hybridqa.errors import AdapterError, ConfigError, EngineClosedError, EngineError, ModelError
from hybridqa.models import ModelFolder, load_tokenizer
from hybridqa.modules.stacks import StackCache
from hybridqa.stack_server.names import name_of
from hybridqa.types import Module, ModuleChoice, Weight

pytest.importorskip("vllm")
pytest.importorskip("openai")

SHORT = Sampling(max_tokens=8)
PROMPT = "The sea is"
RANK = 16


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, model_folder: ModelFolder, make_adapter: Callable[..., Path]
) -> ModuleStore:
    made = ModuleStore(tmp_path_factory.mktemp("served") / "store", model_folder, make_adapter)
    for collection in ("team b", "secret"):
        made.catalog.create_collection(collection)
    return made


@pytest.fixture(scope="module")
def modules(store: ModuleStore) -> dict[str, Module]:
    made = {doc_id: store.publish(doc_id, seed=seed) for seed, doc_id in enumerate("abcdef", start=1)}
    made["style"] = store.publish("style", seed=7, plugin="house-style")
    made["team"] = store.publish("team", seed=8, collection="team b")
    made["secret"] = store.publish("secret", seed=9, collection="secret")
    made["rejected"] = store.publish("rejected", passed=False)
    made["foreign"] = store.publish("foreign", base="0" * 64)
    made["damaged"] = store.damage(store.publish("damaged"))
    made["stale"] = store.publish("stale")
    store.put("stale", "another text")
    return made


@pytest.fixture(scope="module")
def server(store: ModuleStore, modules: dict[str, Module]) -> Iterator[StockServer]:
    options = ("--max-lora-rank", str(RANK), "--max-loras", "2", "--max-cpu-loras", "2")
    started = StockServer(store.model.path, store.folder.parent, *options, **store.environment(["default", "team b"]))
    try:
        yield started.wait()
    finally:
        started.stop()


@pytest.fixture(scope="module")
def stacks(store: ModuleStore) -> Iterator[StackCache]:
    """A gateway's."""
    cache = StackCache(store.module_dir / "stacks", 500)
    yield cache
    cache.close()


@pytest.fixture
async def remote(server: StockServer, store: ModuleStore) -> AsyncIterator[RemoteEngine]:
    engine = RemoteEngine(store.model, [server.url], KEY, max_model_len=2048, max_lora_rank=RANK)
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def ids(model_folder: ModelFolder) -> list[int]:
    return list(load_tokenizer(model_folder.path)(PROMPT).input_ids)


def stack_of(cache: StackCache, *parts: tuple[Module, Weight]) -> Adapter:
    adapter = cache.stack([ModuleChoice(module, weight, 1.0) for module, weight in parts], RANK)
    assert adapter is not None
    return adapter


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def is_alive(server: StockServer) -> bool:
    return httpx.get(f"{server.url}/health", timeout=30).status_code == 200


def cause(response: httpx.Response) -> str:
    assert response.status_code == 400, response.text
    return str(response.json()["error"]["message"])


def test_a_readable_name_answers_in_any_order_as_one_adapter(server: StockServer, modules: dict[str, Module]) -> None:
    a, b = modules["a"].name, modules["b"].name
    first = server.ask(f"stack:{b}*0.5+{a}")
    second = server.ask(f"stack:{a}*1.0+{b}*0.50")
    assert text(first) == text(second) != text(server.ask(f"stack:{a}"))
    assert first.json()["model"] == second.json()["model"] == f"stack:{a}+{b}*0.5"
    cards = [card for card in server.listed() if card["id"] == f"stack:{a}+{b}*0.5"]
    assert len(cards) == 2 and len({card["root"] for card in cards}) == 1  # one adapter under both spellings


def test_eight_first_requests_at_once_compose_once(
    server: StockServer, store: ModuleStore, modules: dict[str, Module]
) -> None:
    name = f"stack:{modules['c'].name}*0.75"
    before = {path.name for path in (store.module_dir / "stacks").glob("stack-*")}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: text(server.ask(name)), range(8)))
    assert len(set(answers)) == 1
    assert len({path.name for path in (store.module_dir / "stacks").glob("stack-*")} - before) == 1
    assert server.text().count(f"Resolved and loaded LoRA adapter '{name}'") == 1


def test_unknown_and_not_for_this_server_are_the_same(server: StockServer, modules: dict[str, Module]) -> None:
    secret = modules["secret"]
    names = [
        "stack:no-such-module@1", f"stack:{modules['a'].module_id}@2", "stack:nowhere/a@1",
        f"stack:secret/{secret.name}", "stack:secret/no-such-module@1", f"stack:{secret.name}",
        f"stack:{modules['team'].name}", f"stack:team%20b/{modules['a'].name}", f"stack:{'0' * 32}",
    ]  # fmt: skip
    answers = [server.ask(name) for name in names]
    assert {answer.status_code for answer in answers} == {404}
    told = {answer.text.replace(name, "NAME") for answer, name in zip(answers, names, strict=True)}
    assert len(told) == 1
    lines = {line.split("INFO")[-1].split(" - ")[-1] for line in server.text().splitlines() if "secret" in line}
    assert not lines, "an unauthorised name is not logged otherwise than an unknown one"
    assert text(server.ask(f"stack:team%20b/{modules['team'].name}"))


def test_what_cannot_be_served_says_why(server: StockServer, modules: dict[str, Module]) -> None:
    a = modules["a"].name
    three = "+".join(f"{modules[doc_id].name}" for doc_id in "abc")
    assert "expected at most 16" in cause(server.ask(f"stack:{three}"))
    for weight in ("0", "nan", "1e9", "heavy", "-0.0001"):
        assert "no weight" in cause(server.ask(f"stack:{a}*{weight}"))
    assert "twice" in cause(server.ask(f"stack:{a}+{a}*2"))
    assert "no part of a stack" in cause(server.ask(f"stack:{modules['a'].module_id}"))
    assert "rejected by its gate" in cause(server.ask(f"stack:{modules['rejected'].name}"))
    assert "stale" in cause(server.ask(f"stack:{modules['stale'].name}"))
    assert "belongs to the base model '000000000000'" in cause(server.ask(f"stack:{modules['foreign'].name}"))
    damaged = cause(server.ask(f"stack:{modules['damaged'].name}+{a}"))
    assert "CorruptModuleError" in damaged and "/" not in damaged.replace("hybridqa/", "")
    assert is_alive(server) and text(server.ask(f"stack:{a}"))


def test_what_the_engine_cannot_load_harms_nobody(server: StockServer, store: ModuleStore) -> None:
    """Matrices that are too wide pass every check of files and fail half way, in a slot that must not stay taken."""
    from safetensors.numpy import load_file, save_file

    plain = text(server.ask(str(store.model.path)))
    make = store._make

    def wide(*arguments: Any, **options: Any) -> Path:
        path = make(*arguments, **options)
        tensors = load_file(path / "adapter_model.safetensors")
        tensors = {name: value.repeat(2, axis=1) if "lora_A" in name else value for name, value in tensors.items()}
        save_file(tensors, path / "adapter_model.safetensors")
        return path

    store._make = wide
    try:
        module = store.publish("wide")
    finally:
        store._make = make
    for weight in ("1", "0.5", "0.25", "1"):  # more than there are slots
        assert "could not load" in cause(server.ask(f"stack:{module.name}*{weight}"))
    assert text(server.ask(str(store.model.path))) == plain


def test_more_stacks_than_memory_and_folders_that_others_give_up(
    server: StockServer, store: ModuleStore, modules: dict[str, Module], stacks: StackCache
) -> None:
    """The trap that kills a stock engine: an evicted adapter is read again, and its folder is gone."""
    names = [f"stack:{modules[doc_id].name}" for doc_id in "abcdef"]
    before = [text(server.ask(name)) for name in names]
    other = StackCache(
        store.module_dir / "stacks", 1
    )  # a gateway with room for nothing, which clears what nobody holds
    doomed = other.forget([modules[doc_id] for doc_id in "abcdef"])
    other.close()
    assert not doomed
    assert [text(server.ask(name)) for name in names] == before
    with ThreadPoolExecutor(8) as pool:  # at once, beside the base model
        base = text(server.ask(str(store.model.path)))
        asked = [*names, str(store.model.path), str(store.model.path)]
        assert list(pool.map(lambda name: text(server.ask(name)), asked)) == [*before, base, base]
    assert is_alive(server)


async def test_a_mixed_batch_is_right_for_the_base_and_every_stack(
    remote: RemoteEngine,
    reference_engine: ReferenceEngine,
    stacks: StackCache,
    modules: dict[str, Module],
    ids: list[int],
) -> None:
    """With vLLM's own CPU kernel a base request in a batch with stacks gets one of theirs."""
    assert isinstance(remote, Engine)
    adapters = [
        None,
        stack_of(stacks, (modules["d"], 1.0)),
        None,
        stack_of(stacks, (modules["e"], -1.0), (modules["f"], 0.5)),
    ]
    done = await asyncio.gather(*(remote.generate(ids, SHORT, adapter) for adapter in adapters))
    for adapter, got in zip(adapters, done, strict=True):
        want = await reference_engine.generate(ids, SHORT, adapter)
        assert (got.text, got.finish_reason, got.usage) == (want.text, want.finish_reason, want.usage)
        assert got.logprob == pytest.approx(want.logprob, abs=1e-2)
        assert 0 < got.first_token_s <= got.total_s
    assert len({got.text for got in done}) == 3


async def test_weights_of_each_layer_come_along(
    remote: RemoteEngine,
    reference_engine: ReferenceEngine,
    server: StockServer,
    stacks: StackCache,
    modules: dict[str, Module],
    ids: list[int],
) -> None:
    layers = {f"model.layers.{layer}.self_attn.v_proj": -1.5 + 0.1 * layer for layer in range(30)}
    adapter = stack_of(stacks, (modules["a"], layers), (modules["style"], 0.5))
    got = await remote.generate(ids, SHORT, adapter)
    assert got.text == (await reference_engine.generate(ids, SHORT, adapter)).text
    assert text(server.ask(name_of(adapter.name))) == got.text
    score = await remote.score(ids, ids[:4], adapter)
    assert score == pytest.approx(await reference_engine.score(ids, ids[:4], adapter), abs=1e-2)
    assert await remote.score(ids, ids[:4]) == pytest.approx(await reference_engine.score(ids, ids[:4]), abs=1e-2)
    await remote.evict(adapter.name)
    assert name_of(adapter.name) not in {card["id"] for card in server.listed()}
    assert (await remote.generate(ids, SHORT, adapter)).text == got.text


async def test_a_record_that_is_not_the_stacks_own_is_refused(
    remote: RemoteEngine, store: ModuleStore, stacks: StackCache, modules: dict[str, Module], ids: list[int]
) -> None:
    """Whoever can write a folder there cannot have another stack pass under its name."""
    import json
    import shutil

    real = stack_of(stacks, (modules["b"], 0.3))
    forged = Adapter(f"stack-{'1' * 32}", real.path.with_name(f"stack-{'1' * 32}"), real.rank)
    shutil.copytree(real.path, forged.path)
    record = json.loads((forged.path / "stack.json").read_text())
    (forged.path / "stack.json").write_text(json.dumps({**record, "name": forged.name}))
    with pytest.raises(AdapterError, match="not that of its modules"):
        await remote.generate(ids, SHORT, forged)
    secret = stack_of(stacks, (modules["secret"], 1.0))
    with pytest.raises(AdapterError, match="stack_collections"):
        await remote.generate(ids, SHORT, secret)


async def test_seeds_stops_and_lengths(remote: RemoteEngine, reference_engine: ReferenceEngine, ids: list[int]) -> None:
    drawn = Sampling(max_tokens=8, temperature=1.0, top_p=0.9, seed=5)
    assert (await remote.generate(ids, drawn)).text == (await remote.generate(ids, drawn)).text
    whole = await reference_engine.generate(ids, Sampling(max_tokens=12))
    word = whole.text.split()[-1]
    stopped = await remote.generate(ids, Sampling(max_tokens=12, stop=(word,)))
    assert stopped.text == whole.text[: whole.text.index(word)] and stopped.finish_reason == "stop"
    pieces = [delta async for delta in remote.stream(ids, SHORT)]
    assert len(pieces) > 4 and pieces[-1].finish_reason == "length"
    assert all(delta.finish_reason is None and delta.usage is None for delta in pieces[:-1])


async def test_closing_the_iterator_stops_the_request_in_vllm(
    remote: RemoteEngine, server: StockServer, ids: list[int]
) -> None:
    def running() -> float:
        lines = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{"))

    stream = remote.stream(ids, Sampling(max_tokens=1500, temperature=1.0, seed=1))
    assert (await anext(stream)).text is not None
    assert running() == 1
    await stream.aclose()
    task = asyncio.create_task(remote.generate(ids, Sampling(max_tokens=1500, temperature=1.0, seed=1)))
    await asyncio.sleep(0.3)
    task.cancel()
    for _ in range(50):
        if running() == 0:
            break
        await asyncio.sleep(0.1)
    assert running() == 0
    assert all(each.running == 0 for each in remote._servers.all)


async def test_an_unload_lets_a_running_request_end_on_its_weights(
    remote: RemoteEngine, server: StockServer, stacks: StackCache, modules: dict[str, Module], ids: list[int]
) -> None:
    adapter = stack_of(stacks, (modules["f"], 0.9))
    longer = Sampling(max_tokens=24)
    alone = await remote.generate(ids, longer, adapter)
    stream = remote.stream(ids, longer, adapter)
    pieces = [(await anext(stream)).text]
    await remote.evict(adapter.name)
    assert name_of(adapter.name) not in {card["id"] for card in server.listed()}
    for doc_id in "abc":  # push it out of the engine's memory, which holds two
        server.ask(f"stack:{modules[doc_id].name}")
    pieces += [delta.text async for delta in stream]
    assert "".join(pieces) == alone.text


def test_a_changed_document_ends_the_service_of_its_stacks(
    server: StockServer, store: ModuleStore, modules: dict[str, Module]
) -> None:
    """A stack that was loaded is asked for by its name alone; it must not outlive its document's version."""
    old = store.publish("changing", seed=20)
    removed = store.publish("leaving", seed=21)
    before = text(server.ask(f"stack:{old.name}"))
    assert text(server.ask(f"stack:{removed.name}"))
    store.put("changing", "a new version")
    store.catalog.remove_document("default", "leaving")
    deadline = time.monotonic() + 10
    while server.ask(f"stack:{old.name}").status_code == 200 or server.ask(f"stack:{removed.name}").status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "stale" in cause(server.ask(f"stack:{old.name}"))
    assert server.ask(f"stack:{removed.name}").status_code == 404
    store.put("changing")
    assert text(server.ask(f"stack:{old.name}")) == before


async def test_a_server_that_does_not_fit_is_named(
    server: StockServer, store: ModuleStore, tiny_model: ModelFolder
) -> None:
    async def start(model: ModelFolder = store.model, key: str = KEY, rank: int = RANK, length: int = 2048) -> None:
        engine = RemoteEngine(model, [server.url], key, max_model_len=length, max_lora_rank=rank)
        try:
            await engine.start()
        finally:
            await engine.close()

    await start()
    with pytest.raises(ModelError, match="serves the base model"):
        await start(model=tiny_model, length=512)
    with pytest.raises(ConfigError, match="--max-lora-rank 64"):
        await start(rank=64)
    with pytest.raises(ConfigError, match="--max-model-len 4096"):
        await start(length=4096)
    with pytest.raises(EngineError, match="refuses the key") as refused:
        await start(key="wrong-key")
    assert "wrong-key" not in str(refused.value)


async def test_a_closed_engine_says_so(server: StockServer, store: ModuleStore, ids: list[int]) -> None:
    engine = RemoteEngine(store.model, [server.url], KEY, max_model_len=2048, max_lora_rank=RANK)
    task = asyncio.create_task(engine.generate(ids, Sampling(max_tokens=1500, temperature=1.0, seed=1)))
    await asyncio.sleep(0.5)
    await engine.close()
    with pytest.raises(EngineClosedError):
        await task
    with pytest.raises(EngineClosedError):
        await engine.generate(ids, SHORT)


def test_the_doctor_looks_at_the_servers(
    server: StockServer, store: ModuleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridqa.config import Settings
    from hybridqa.doctor import Report
    from hybridqa.doctor_engine import check_remote

    urls = [server.url, "http://127.0.0.1:1"]
    settings = Settings.load(
        store.folder, engine="remote", engine_urls=urls, engine_key=KEY, max_lora_rank=RANK, max_model_len=2048
    )
    report = Report()
    check_remote(report, settings, store.model.hash)
    assert [finding.level for finding in report.findings] == ["ok", "problem"]
    assert "no vLLM server answers at 'http://127.0.0.1:1'" in report.findings[1].text and report.findings[1].mend
    assert KEY not in str(report.as_json())


def test_the_server_has_logged_no_error_of_ours(server: StockServer) -> None:
    """Last of the file: what went wrong above was meant to."""
    errors = [line for line in server.text().splitlines() if "ERROR" in line and "cannot be served" not in line]
    assert not [line for line in errors if "could not be looked after" in line or "EngineDead" in line]
    assert is_alive(server)
