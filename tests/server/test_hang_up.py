"""Clients that hang up: how soon it is noticed, and that nothing of them goes on in a real engine."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from itertools import product
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import OpenAI

from hybridqa import HybridQA
from hybridqa.engine.protocol import Delta
from hybridqa.engine.vllm import VllmEngine
from hybridqa.engine.vllm_process import VllmProcess
from hybridqa.models import ModelFolder
from hybridqa.server.sse import KEEP_ALIVE_S
from hybridqa.server.streaming import LOOK_S
from hybridqa.types import Answer
from tests.server.conftest import open_filled, serving

QUESTION = "Who designed the Lumen kettle?"
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 900},
    "/v1/responses": {"input": QUESTION, "max_output_tokens": 900},
}
SOON_S = 2 * LOOK_S + 1  # and what a busy machine takes
BEGUN_WITH = {"/v1/chat/completions": b'"content": "', "/v1/responses": b"output_text.delta"}
both = pytest.mark.parametrize("path", list(PATHS))


def wait_for(happened: Callable[[], object], at_most_s: float = 30) -> float:
    """Seconds until it has happened."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < at_most_s
        time.sleep(0.01)
    return time.monotonic() - began


def generating() -> int:
    """Requests that the reference engine has in work: each has a thread."""
    return sum(thread.name.endswith("(_serve)") for thread in threading.enumerate())


def asked(store: HybridQA) -> int:
    """What the store's loop is busy with."""
    return len(asyncio.all_tasks(store._loop._loop))


@contextmanager
def asking(url: str, path: str, **body: Any) -> Iterator[socket.socket]:
    """A request on a connection of its own, which is closed in the end, read or not."""
    content = json.dumps({"model": "hybridqa-retrieval", "temperature": 1.5, **PATHS[path], **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=30) as connection:
        connection.sendall(head.encode() + content)
        yield connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    read = b""
    while mark not in read:
        more = connection.recv(4096)
        assert more, read
        read += more
    return read


@pytest.fixture
def quiet(store: HybridQA, client: OpenAI) -> Iterator[None]:
    """Nothing in work before and behind; the models are loaded."""
    client.chat.completions.create(
        model="hybridqa-retrieval", messages=[{"role": "user", "content": QUESTION}], max_tokens=1
    )
    wait_for(lambda: not generating() and not asked(store))
    yield
    wait_for(lambda: not generating() and not asked(store))


@pytest.fixture
def ended(store: HybridQA, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that the store is through with, or was told to leave."""
    whole, pieces, found = store.aask, store.astream, []

    async def aask(question: str, **options: Any) -> Answer:
        try:
            return await whole(question, **options)
        finally:
            found.append(question)

    async def astream(question: str, **options: Any) -> AsyncIterator[Delta | Answer]:
        try:
            async with aclosing(pieces(question, **options)) as stream:  # type: ignore[type-var]
                async for piece in stream:
                    yield piece
        finally:
            found.append(question)

    monkeypatch.setattr(store, "aask", aask)
    monkeypatch.setattr(store, "astream", astream)
    return found


@both
@pytest.mark.parametrize("stream", [False, True])
def test_before_the_first_piece(
    url: str, store: HybridQA, quiet: None, ended: list[str], path: str, stream: bool
) -> None:
    """The engine is busy, so that nothing comes that would find nobody there."""
    assert SOON_S < KEEP_ALIVE_S / 2
    engine: Any = store.run(store.engine_ready())
    with engine._lock:  # as while it answers another
        with asking(url, path, stream=stream):
            wait_for(lambda: asked(store))
            time.sleep(2 * LOOK_S)
            assert not ended
        took = wait_for(lambda: ended)
        assert took < SOON_S and not generating()


@both
def test_in_the_middle_of_a_stream(url: str, store: HybridQA, quiet: None, path: str) -> None:
    with asking(url, path, stream=True) as connection:
        read_until(connection, BEGUN_WITH[path])
        assert generating() == 1
    assert wait_for(lambda: not asked(store) and not generating()) < SOON_S


@both
def test_while_nothing_is_read(url: str, store: HybridQA, quiet: None, path: str) -> None:
    """What is said stays in buffers, so that nothing is ever sent that would say that nobody is there."""
    with asking(url, path, stream=True):
        wait_for(lambda: generating() == 1)
    assert wait_for(lambda: not asked(store) and not generating()) < SOON_S


@both
def test_in_a_pause_behind_the_first_piece(
    url: str, store: HybridQA, quiet: None, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, closed = store.astream, []

    async def paused(question: str, **options: Any) -> AsyncIterator[Delta | Answer]:
        try:
            yield Delta("It ")
            await asyncio.sleep(60)
            yield await anext(answer(question, **options))
        finally:
            closed.append(path)

    monkeypatch.setattr(store, "astream", paused)
    with asking(url, path, stream=True) as connection:
        read_until(connection, b"It ")
    assert wait_for(lambda: closed) < SOON_S


def test_many_at_once_leave_nothing_behind(url: str, store: HybridQA, quiet: None, client: OpenAI) -> None:
    with ExitStack() as callers:
        for path, stream, _ in product(PATHS, (True, False), range(4)):
            callers.enter_context(asking(url, path, stream=stream))
        wait_for(generating)
    assert wait_for(lambda: not asked(store)) < SOON_S
    wait_for(lambda: not generating())
    done = client.responses.create(model="hybridqa-retrieval", input=QUESTION, max_output_tokens=2)
    assert done.usage is not None and done.usage.output_tokens == 2  # and it answers


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder) -> Iterator[tuple[VllmEngine, str]]:
    """The engine that answers many at once, and where its store is served."""
    folder = tmp_path_factory.mktemp("batched")
    with open_filled(folder, tiny_model, engine="vllm", kv_cache_mb=64) as store, serving(store) as address:
        engine = store.run(store.engine_ready())
        assert isinstance(engine, VllmEngine)
        yield engine, address


def unfinished(engine: VllmEngine) -> int:
    """Requests in vLLM itself, and those on their way to it."""
    return engine._runner.unfinished().result(30)


@both
@pytest.mark.parametrize("stream", [True, False])
def test_nothing_goes_on_in_vllm(batched: tuple[VllmEngine, str], path: str, stream: bool) -> None:
    engine, url = batched
    with ExitStack() as callers:
        connections = [callers.enter_context(asking(url, path, stream=stream)) for _ in range(8)]
        if stream:
            for connection in connections:
                read_until(connection, BEGUN_WITH[path])
        wait_for(lambda: unfinished(engine) == 8)
    assert wait_for(lambda: not unfinished(engine)) < SOON_S
    assert isinstance(engine._runner, VllmProcess) and not engine._runner._requests
