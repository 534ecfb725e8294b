"""Limits of keys and of the queue, alone and through the server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridqa import HybridQA
from hybridqa.keys import new_key
from hybridqa.models import ModelFolder
from hybridqa.server.errors import ApiError
from hybridqa.server.limits import Limits
from tests.server.conftest import QUESTION, client_of, open_filled, serving

ASKED: list[Any] = [{"role": "user", "content": QUESTION}]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refused(work: Callable[[], None]) -> ApiError:
    with pytest.raises(ApiError) as error:
        work()
    return error.value


def test_a_minute_holds_so_many_requests() -> None:
    clock = Clock()
    limits = Limits(per_minute=3, at_once=0, queue=9, clock=clock)
    for _ in range(3):
        limits.enter(None, queued=False)
        limits.leave(None, queued=False)
    error = refused(lambda: limits.enter(None, queued=False))
    assert (error.status, error.code, error.headers) == (429, "rate_limited", {"Retry-After": "20"})
    clock.now += 20
    limits.enter(None, queued=False)
    _, own = new_key("a", per_minute=1)
    limits.enter(own, queued=False)
    assert refused(lambda: limits.enter(own, queued=False)).headers == {"Retry-After": "60"}


def test_at_once_and_the_queue_are_counted_out_again() -> None:
    limits = Limits(per_minute=0, at_once=2, queue=3)
    _, one = new_key("one")
    _, two = new_key("two", at_once=5)
    limits.enter(one, queued=True)
    limits.enter(one, queued=True)
    assert refused(lambda: limits.enter(one, queued=False)).code == "too_many_at_once"
    limits.enter(two, queued=True)
    error = refused(lambda: limits.enter(two, queued=True))
    assert (error.status, error.code) == (503, "queue_full") and error.headers["Retry-After"]
    limits.enter(two, queued=False)  # what needs no engine goes on
    limits.leave(one, queued=True)
    limits.enter(two, queued=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.floats(0, 30)), max_size=60))
def test_what_is_let_in_never_passes_the_bounds(steps: list[tuple[int, bool, float]]) -> None:
    clock = Clock()
    limits = Limits(per_minute=6, at_once=3, queue=4, clock=clock)
    keys = [None, new_key("a")[1], new_key("b", per_minute=2, at_once=1)[1]]
    bounds, entered = [(6, 3), (6, 3), (2, 1)], [list[float](), list[float](), list[float]()]
    inside: list[tuple[int, bool]] = []
    for who, queued, wait in steps:
        clock.now += wait
        try:
            limits.enter(keys[who], queued=queued)
        except ApiError:
            if inside:
                left = inside.pop(0)
                limits.leave(keys[left[0]], queued=left[1])
            continue
        inside.append((who, queued))
        entered[who].append(clock.now)
        per_minute, at_once = bounds[who]
        assert sum(one == who for one, _ in inside) <= at_once
        assert sum(counted for _, counted in inside) == limits.working <= 4
        lately = [at for at in entered[who] if at > clock.now - 60]
        assert len(lately) <= 2 * per_minute  # a full allowance, and what was earned meanwhile


def test_the_client_hears_when_to_come_again(tmp_path: Path, tiny_model: ModelFolder) -> None:
    with open_filled(tmp_path, tiny_model) as qa:
        token, _ = qa.add_key("test", per_minute=2)
        with serving(qa) as url, client_of(url, token) as client:
            client.models.list()
            client.models.list()
            with pytest.raises(openai.RateLimitError) as error:
                client.models.list()
            assert error.value.code == "rate_limited" and int(error.value.response.headers["retry-after"]) >= 1


def test_a_full_queue_sends_away_and_goes_on(
    tmp_path: Path, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_filled(tmp_path, tiny_model, queue=2) as qa, serving(qa) as url:
        held, answer = threading.Event(), qa.aask

        async def slow(question: str, **options: Any) -> Any:
            while not held.is_set():
                await asyncio.sleep(0.01)
            return await answer(question, **options)

        monkeypatch.setattr(qa, "aask", slow)
        found: list[int] = []

        def ask() -> None:
            body = {"model": "hybridqa", "messages": ASKED}
            found.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code)

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 30
        while len(found) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert found == [503, 503, 503]
        assert httpx.get(f"{url}/v1/documents").status_code == 200  # the rest of the server goes on
        held.set()
        for thread in threads:
            thread.join()
        assert sorted(found) == [200, 200, 503, 503, 503]
        ask()
        assert found[-1] == 200


def test_a_client_that_hangs_up_is_counted_out(
    tmp_path: Path, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_filled(tmp_path, tiny_model, queue=1) as qa, serving(qa) as url:
        stream = qa.astream

        async def endless(question: str, **options: Any) -> AsyncIterator[Any]:
            async for piece in stream(question, **options):
                yield piece
                await asyncio.sleep(60)

        monkeypatch.setattr(qa, "astream", endless)
        body = {"model": "hybridqa", "messages": ASKED, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as asked:
            assert asked.status_code == 200
            lines = asked.iter_lines()  # its end would close the stream
            next(lines)
            assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=5).status_code == 503
        monkeypatch.setattr(qa, "astream", stream)
        until = time.monotonic() + 10
        while (again := httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)).status_code == 503:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert again.status_code == 200


def test_settings_bound_keys_without_bounds_of_their_own(tmp_path: Path, tiny_model: ModelFolder) -> None:
    given: dict[str, Any] = {"requests_per_minute": 1}
    with open_filled(tmp_path, tiny_model, **given) as qa, serving(qa) as url:
        assert isinstance(qa, HybridQA)
        assert httpx.get(f"{url}/v1/models").status_code == 200
        done = httpx.get(f"{url}/v1/models")
        assert done.status_code == 429 and 1 <= int(done.headers["retry-after"]) <= 60
        assert httpx.get(f"{url}/health").status_code == 200  # a probe is nobody's request
