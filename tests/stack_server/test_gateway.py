"""A gateway and two stock vLLM servers over one store: the same answers as alone, and one of them killed under load."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stock import KEY, ModuleStore, StockServer

from hybridqa import HybridQA
from hybridqa.engine.protocol import Completion, Sampling
from hybridqa.engine.remote import RemoteEngine
from hybridqa.errors import EngineError
from hybridqa.models import ModelFolder
from hybridqa.modules.stacks import StackCache
from hybridqa.types import ModuleChoice

pytest.importorskip("vllm")
pytest.importorskip("openai")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
QUESTIONS = ("How heavy is a grown marbled tammerel?", "Who described the marbled tammerel first?")
SAMPLING = Sampling(max_tokens=16)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that comes with the checkout: one document and its module."""
    folder = tmp_path_factory.mktemp("demo")
    for kind in ("indexes", "modules"):
        shutil.copytree(ROOT / kind / "demo", folder / kind / "demo")
    return folder


def test_a_gateway_answers_as_its_own_engine_does(demo: Path, model_folder: ModelFolder) -> None:
    fields = {"name": "demo", "dtype": "float32", "max_model_len": 2048}
    with HybridQA.open(demo, **fields) as alone:
        expected = [alone.ask(question, mode=mode) for question in QUESTIONS for mode in ("hybrid", "modules")]
    assert any(answer.modules for answer in expected)
    server = StockServer(
        model_folder.path, demo, "--max-lora-rank", "64", HYBRIDQA_STORE=str(demo), HYBRIDQA_NAME="demo"
    )
    try:
        server.wait()
        with HybridQA.open(demo, engine="remote", engine_urls=[server.url], engine_key=KEY, **fields) as gateway:
            found = [gateway.ask(question, mode=mode) for question in QUESTIONS for mode in ("hybrid", "modules")]
            served = [card["id"] for card in server.listed() if card["id"].startswith("stack:")]
    finally:
        server.stop()
    assert [answer.text for answer in found] == [answer.text for answer in expected]
    assert [answer.modules for answer in found] == [answer.modules for answer in expected]
    assert served and not any("left out" in answer.route_reason for answer in found)


@pytest.fixture
def store(tmp_path: Path, model_folder: ModelFolder, make_adapter: Callable[..., Path]) -> ModuleStore:
    return ModuleStore(tmp_path / "store", model_folder, make_adapter)


@pytest.fixture
def servers(store: ModuleStore, tmp_path: Path) -> Iterator[list[StockServer]]:
    started = [
        StockServer(store.model.path, tmp_path, "--max-lora-rank", "16", "--max-loras", "2", **store.environment())
        for _ in range(2)
    ]
    try:
        yield [server.wait(500) for server in started]
    finally:
        for server in started:
            server.kill()


async def test_a_server_killed_under_load_costs_no_request_that_had_not_begun(
    servers: list[StockServer], store: ModuleStore
) -> None:
    modules = [store.publish(doc_id, seed=seed) for seed, doc_id in enumerate("abcd")]
    cache = StackCache(store.module_dir / "stacks", 500)
    adapters = [None, *(cache.stack([ModuleChoice(module, 1.0, 1.0)], 16) for module in modules)]
    engine = RemoteEngine(store.model, [server.url for server in servers], KEY, max_model_len=2048, max_lora_rank=16)
    prompts = [[100 + number, 200, 300] for number in range(4)]
    expected = {}
    for place, adapter in enumerate(adapters):
        for number, ids in enumerate(prompts):
            expected[place, number] = (await engine.generate(ids, SAMPLING, adapter)).text
    begun = 0
    stopped = asyncio.Event()

    async def one(place: int, number: int) -> str | EngineError:
        nonlocal begun
        first = False
        pieces = []
        try:
            async for delta in engine.stream(prompts[number], SAMPLING, adapters[place]):
                first = True
                pieces.append(delta.text)
        except EngineError as error:
            assert first, f"a request that had not begun has failed: {error}"
            begun += 1
            return error
        return "".join(pieces)

    async def keep_asking(place: int) -> list[tuple[tuple[int, int], str | EngineError]]:
        found = []
        number = place
        while not stopped.is_set():
            number = (number + 1) % len(prompts)
            found.append(((place, number), await one(place, number)))
        return found

    clients = [asyncio.create_task(keep_asking(place)) for place in range(len(adapters)) for _ in range(2)]
    await asyncio.sleep(5)
    await asyncio.to_thread(servers[0].kill)
    await asyncio.sleep(10)
    stopped.set()
    answers = [answer for found in await asyncio.gather(*clients) for answer in found]
    assert all(text == expected[key] for key, text in answers if isinstance(text, str))
    assert begun <= 2 * len(adapters) < len(answers)
    servers[0].start()
    await asyncio.to_thread(servers[0].wait, 500)
    for _ in range(100):
        if all(server.card is not None for server in engine._servers.all):
            break
        await asyncio.sleep(0.2)
    done: list[Completion] = await asyncio.gather(
        *(engine.generate(prompts[0], SAMPLING, adapter) for adapter in adapters for _ in range(4))
    )
    assert [each.text for each in done] == [expected[place, 0] for place in range(len(adapters)) for _ in range(4)]
    assert "POST /v1/completions" in servers[0].text().rpartition("Application startup complete")[2]
    await engine.close()
    cache.close()


def test_a_server_without_the_plug_in_answers_for_no_stacks(store: ModuleStore, tmp_path: Path) -> None:
    """VLLM_PLUGINS that leaves ours out: 404 for stacks, and the gateway and its doctor say so."""
    from hybridqa.config import Settings
    from hybridqa.doctor import Report
    from hybridqa.doctor_engine import check_remote

    module = store.publish("a")
    environment = {**store.environment(), "VLLM_PLUGINS": "none"}
    server = StockServer(store.model.path, tmp_path, "--max-lora-rank", "16", **environment)
    try:
        server.wait(500)
        assert server.ask(f"stack:{module.name}").status_code == 404
        settings = Settings.load(
            store.folder,
            engine="remote",
            engine_urls=[server.url],
            engine_key=KEY,
            max_lora_rank=16,
            max_model_len=2048,
        )
        report = Report()
        check_remote(report, settings, store.model.hash)
        assert [finding.level for finding in report.findings] == ["note"] and "no stacks" in report.findings[0].text
    finally:
        server.stop()
