"""One gateway over servers that die, break off, hang and come back.

A real vLLM cannot be made to fail at a given word: these speak its protocol and break where they are told. Real ones
answer in tests/stack_server.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hybridqa.engine import remote_servers
from hybridqa.engine.protocol import Adapter, Engine, Sampling
from hybridqa.engine.remote import RemoteEngine
from hybridqa.errors import AdapterError, ConfigError, EngineClosedError, EngineError, QuestionError
from hybridqa.models import ModelFolder
from hybridqa.stack_server.names import about, name_of

pytest.importorskip("openai")

KEY = "key-of-the-test"
IDS = [5, 6, 7]
SHORT = Sampling(max_tokens=4)
STACKS = [Adapter(f"stack-{number:032x}", Path("nowhere"), 8) for number in range(24)]


class Server:
    """Answers two words, or does what `mode` says; `asked` are the models that were asked for."""

    def __init__(self, model: ModelFolder, port: int = 0) -> None:
        self.model, self.port = model, port
        self.mode = "answer"
        self.known = True  # the stacks
        self.healthy = True
        self.plugin = True
        self.rank = 64
        self.asked: Counter[str] = Counter()
        self.unloaded: list[str] = []
        self.gate = asyncio.Event()  # of the mode "wait", after the first word
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def die(self) -> None:
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            for count in range(10**6):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    (line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-l")), "0"
                )
                body = json.loads(await reader.readexactly(int(length)) or b"{}")
                if not await self._answer(writer, head.split()[1], body, head, count):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any], head: str, count: int
    ) -> bool:
        if path == "/health":
            return self._send(writer, 200 if self.healthy else 503, {})
        if KEY not in head:
            return self._send(writer, 401, {"error": {"message": "Unauthorized"}})
        if path == "/v1/models":
            card = {"id": "base", "object": "model", "root": str(self.model.path), "parent": None, "max_model_len": 512}
            return self._send(writer, 200, {"object": "list", "data": [card]})
        if path == "/v1/unload_lora_adapter":
            self.unloaded.append(body["lora_name"])
            return self._send(writer, 200, "Success")
        if body["model"] == "stack:about":
            said = about(self.model.hash, self.rank) if self.plugin else "The model `stack:about` does not exist."
            return self._send(writer, 400 if self.plugin else 404, {"error": {"message": said, "code": 400}})
        self.asked[body["model"]] += 1
        if self.mode == "drop" or (self.mode == "drop kept" and count):
            return False
        if self.mode.isdigit():
            return self._send(writer, int(self.mode), {"error": {"message": "so it is", "code": int(self.mode)}})
        if body["model"] != "base" and not self.known:
            return self._send(writer, 404, {"error": {"message": "does not exist", "code": 404}})
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        if self.mode == "hang":
            await writer.drain()
            await asyncio.sleep(600)
        for number, word in enumerate(("Hello", f" {self.port}")):
            choice = {"index": 0, "text": word, "logprobs": {"token_logprobs": [-0.5]}, "finish_reason": None}
            if number:
                choice["finish_reason"] = "stop"
            self._event(writer, {"choices": [choice]})
            await writer.drain()
            if self.mode == "half":
                return False
            if self.mode == "half said" and not number:
                self._event(writer, {"error": {"message": "the engine is dead", "code": 500}})
                number = 2
                break
            if self.mode == "wait" and not number:
                await self.gate.wait()
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        if number < 2:
            self._event(writer, {"choices": [], "usage": usage})
        self._chunk(writer, b"data: [DONE]\n\n")
        self._chunk(writer, b"")
        await writer.drain()
        return True

    def _event(self, writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
        fields = {"id": "c", "object": "text_completion", "created": 1, "model": "base", **data}
        self._chunk(writer, f"data: {json.dumps(fields)}\n\n".encode())

    def _chunk(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _send(self, writer: asyncio.StreamWriter, status: int, data: Any) -> bool:
        text = json.dumps(data).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        writer.write(head.encode() + text)
        return True


Start = Callable[..., Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_servers, "PROBE_S", 0.05)


@pytest.fixture
async def start(tiny_model: ModelFolder) -> AsyncIterator[Start]:
    """Starts servers and an engine over them."""
    servers: list[Server] = []
    engines: list[RemoteEngine] = []

    async def call(count: int = 2, **fields: Any) -> tuple[RemoteEngine, list[Server]]:
        own = [await Server(tiny_model).start() for _ in range(count)]
        for server in own:
            for name, value in fields.items():
                setattr(server, name, value)
        servers.extend(own)
        engine = RemoteEngine(tiny_model, [server.url for server in own], KEY, max_model_len=512)
        engines.append(engine)
        return engine, own

    yield call
    for engine in engines:
        await engine.close()
    for server in servers:
        await server.die()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to pass")


def number_of(text: str) -> int:
    """The port in an answer."""
    return int(text.split()[1])


async def test_an_answer_comes_in_pieces_and_whole(start: Start) -> None:
    engine, (server,) = await start(1)
    assert isinstance(engine, Engine) and engine.max_model_len == 512 and engine.max_lora_rank == 64
    pieces = [delta async for delta in engine.stream(IDS, SHORT)]
    assert [delta.text for delta in pieces] == ["Hello", f" {server.port}"]
    assert [delta.finish_reason for delta in pieces] == [None, "stop"]
    done = await engine.generate(IDS, SHORT)
    assert (done.text, done.logprob, done.usage.total_tokens) == (f"Hello {server.port}", -1.0, 5)
    with pytest.raises(QuestionError):
        await engine.generate([], SHORT)
    with pytest.raises(AdapterError, match="no composed stack"):
        await engine.generate(IDS, SHORT, Adapter("my-lora", Path("x"), 4))


async def test_a_stack_stays_on_its_server_and_stacks_spread(start: Start) -> None:
    engine, servers = await start(3)
    for _ in range(3):
        for stack in STACKS:
            await engine.generate(IDS, SHORT, stack)
    asked = [server.asked for server in servers]
    assert all(sum(count[name_of(stack.name)] > 0 for count in asked) == 1 for stack in STACKS)
    assert all(len(count) >= 3 for count in asked)


async def test_base_requests_go_where_least_runs_and_a_busy_stack_spreads(start: Start) -> None:
    engine, servers = await start(2, mode="wait")
    tasks = [asyncio.create_task(engine.generate(IDS, SHORT)) for _ in range(8)]
    await until(lambda: sum(server.asked.total() for server in servers) == 8)
    assert [server.asked["base"] for server in servers] == [4, 4]
    more = [asyncio.create_task(engine.generate(IDS, SHORT, STACKS[0])) for _ in range(16)]
    await until(lambda: sum(server.asked[name_of(STACKS[0].name)] for server in servers) == 16)
    counts = sorted(server.asked[name_of(STACKS[0].name)] for server in servers)
    assert counts[0] == 0  # its own server has no more than twice its share
    even_more = [asyncio.create_task(engine.generate(IDS, SHORT, STACKS[0])) for _ in range(40)]
    await until(lambda: sum(server.asked[name_of(STACKS[0].name)] for server in servers) == 56)
    for server in servers:
        server.gate.set()
    await asyncio.gather(*tasks, *more, *even_more)
    assert all(server.running == 0 for server in engine._servers.all)


async def test_a_server_that_dies_costs_no_request_that_has_not_begun(start: Start) -> None:
    engine, (first, second) = await start(2)
    stack, *_ = [stack for stack in STACKS if await _on(engine, first, stack)]
    await first.die()
    answers = await asyncio.gather(*(engine.generate(IDS, SHORT, each) for each in [None, stack] * 6))
    assert {number_of(answer.text) for answer in answers} == {second.port}
    again = await Server(first.model, first.port).start()  # it comes back, and its stacks go there again
    await until(lambda: all(server.card is not None for server in engine._servers.all))
    assert number_of((await engine.generate(IDS, SHORT, stack)).text) == again.port
    await again.die()


async def _on(engine: RemoteEngine, server: Server, stack: Adapter) -> bool:
    return number_of((await engine.generate(IDS, SHORT, stack)).text) == server.port


@pytest.mark.parametrize("mode", ["drop", "500", "503", "429"])
async def test_what_fails_before_the_first_piece_is_tried_elsewhere(start: Start, mode: str) -> None:
    engine, (first, second) = await start(2)
    first.mode = mode
    answers = await asyncio.gather(*(engine.generate(IDS, SHORT) for _ in range(6)))
    assert {number_of(answer.text) for answer in answers} == {second.port} and first.asked
    second.mode = mode
    with pytest.raises(EngineError, match="no vLLM server could answer") as failed:
        await engine.generate(IDS, SHORT)
    assert first.url in str(failed.value) and second.url in str(failed.value) and KEY not in str(failed.value)


@pytest.mark.parametrize("mode", ["half", "half said"])
async def test_what_breaks_off_half_way_is_never_begun_again(start: Start, mode: str) -> None:
    engine, servers = await start(2, mode=mode)
    stream = engine.stream(IDS, SHORT)
    assert (await anext(stream)).text == "Hello"
    with pytest.raises(EngineError, match="half way"):
        await anext(stream)
    assert sum(server.asked.total() for server in servers) == 1
    assert all(server.running == 0 for server in engine._servers.all)


async def test_a_kept_connection_that_was_closed_is_no_failure(start: Start) -> None:
    engine, _ = await start(1, mode="drop kept")
    for _ in range(4):
        assert (await engine.generate(IDS, SHORT)).text
    assert engine._servers.all[0].card is not None


async def test_a_server_that_hangs_is_found_out(start: Start) -> None:
    engine, (first, second) = await start(2, mode="hang")
    task = asyncio.create_task(engine.generate(IDS, SHORT))
    await until(lambda: bool(first.asked or second.asked))
    hung, other = (first, second) if first.asked else (second, first)
    other.mode = "answer"
    await asyncio.sleep(0.3)
    assert not task.done()  # it is healthy, only slow
    hung.healthy = False
    assert number_of((await task).text) == other.port
    other.mode, other.healthy = "wait", True
    stream = engine.stream(IDS, SHORT)
    assert (await anext(stream)).text == "Hello"
    other.healthy = False
    with pytest.raises(EngineError, match="half way"):
        await anext(stream)


async def test_servers_that_are_not_there_at_the_start(start: Start, tiny_model: ModelFolder) -> None:
    _, (there, gone) = await start(2)
    await gone.die()
    engine = RemoteEngine(tiny_model, [gone.url, there.url], KEY, max_model_len=512)
    assert number_of((await engine.generate(IDS, SHORT)).text) == there.port
    await engine.close()
    with pytest.raises(EngineClosedError):
        await engine.generate(IDS, SHORT)
    lost = RemoteEngine(tiny_model, [gone.url], KEY, max_model_len=512)
    with pytest.raises(EngineError, match="no vLLM server answers at"):
        await lost.generate(IDS, SHORT)
    back = await Server(tiny_model, gone.port).start()
    assert (await lost.generate(IDS, SHORT)).text  # the next request looks again
    await lost.close()
    await back.die()


async def test_what_a_server_says_of_a_stack(start: Start) -> None:
    engine, (first, second) = await start(2)
    await engine.start()
    first.known = second.known = False
    with pytest.raises(AdapterError, match="stack_collections"):
        await engine.generate(IDS, SHORT, STACKS[0])
    assert first.asked and second.asked
    second.known = True
    assert number_of((await engine.generate(IDS, SHORT, STACKS[0])).text) == second.port
    first.mode = second.mode = "400"
    with pytest.raises(AdapterError, match="so it is"):
        await engine.generate(IDS, SHORT, STACKS[0])
    with pytest.raises(EngineError, match="so it is"):
        await engine.generate(IDS, SHORT)
    assert all(server.card is not None for server in engine._servers.all)


async def test_a_server_without_the_plug_in_gets_no_stacks(start: Start) -> None:
    engine, (first, second) = await start(2)
    first.plugin = False
    for stack in STACKS:
        assert number_of((await engine.generate(IDS, SHORT, stack)).text) == second.port


async def test_a_server_that_takes_too_little_is_refused(start: Start) -> None:
    engine, _ = await start(2, rank=16)
    with pytest.raises(ConfigError, match="HYBRIDQA_MAX_LORA_RANK=16"):
        await engine.start()


async def test_only_servers_that_have_a_stack_are_told_to_forget_it(start: Start) -> None:
    engine, servers = await start(3)
    await engine.evict(STACKS[0].name)
    await engine.generate(IDS, SHORT, STACKS[0])
    await engine.evict(STACKS[0].name)
    await engine.evict(STACKS[0].name)
    assert sorted(len(server.unloaded) for server in servers) == [0, 0, 1]
    await engine.generate(IDS, SHORT, STACKS[0])
    for server in servers:
        await server.die()
    await engine.evict(STACKS[0].name)  # a server that is gone has forgotten it


async def test_closing_ends_what_waits(start: Start) -> None:
    engine, _ = await start(2, mode="wait")
    waiting = asyncio.create_task(engine.generate(IDS, SHORT))
    stream = engine.stream(IDS, SHORT)
    await anext(stream)
    await engine.close()
    with pytest.raises(EngineClosedError):
        await waiting
    with pytest.raises(EngineClosedError):
        await anext(stream)
    await engine.close()
