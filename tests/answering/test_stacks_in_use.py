"""Stacks that running requests need stay, the others go: from the engine first, then from the disk."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridqa.answering.plan import Plan
from hybridqa.answering.stacks_in_use import StacksInUse
from hybridqa.engine.protocol import Adapter, Sampling
from hybridqa.modules.stacks import StackCache
from hybridqa.types import Mode, Route


class Memory:
    """What an engine does about adapters that it is to forget."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    async def evict(self, name: str) -> None:
        self.forgotten.append(name)


@pytest.fixture
def cache(tmp_path: Path) -> StackCache:
    """A cache that has room for no stack: each is surplus as soon as nobody needs it."""
    made = StackCache(tmp_path / "stacks", 1)
    made._max_bytes = 0
    return made


def hold(cache: StackCache, name: str) -> Adapter:
    """A stack on disk that the cache has handed out."""
    adapter = Adapter(name, cache._directory / name, 1)
    adapter.path.mkdir()
    record = {"format": 1, "name": name, "rank": 1, "parts": [{"module": f"{name}@1"}], "files": {}}
    (adapter.path / "stack.json").write_text(json.dumps(record))
    cache._lease(adapter)
    return adapter


def plan_with(adapter: Adapter | None) -> Plan:
    return Plan("Who?", "default", Mode.HYBRID, Route(Mode.HYBRID), None, adapter, Sampling())


def maker(cache: StackCache, name: str) -> Callable[[], Plan]:
    return lambda: plan_with(hold(cache, name))


async def test_a_stack_stays_until_its_last_request_ends(cache: StackCache) -> None:
    engine = Memory()
    in_use = StacksInUse(cache, lambda: engine)  # type: ignore[arg-type,return-value]
    async with in_use.planned(maker(cache, "stack-a")) as first:
        assert first.adapter is not None
        async with in_use.planned(lambda: plan_with(first.adapter)):
            pass
        async with in_use.planned(maker(cache, "stack-b")) as other:
            pass
        assert engine.forgotten == ["stack-b"]
        assert first.adapter.path.is_dir() and other.adapter is not None and not other.adapter.path.exists()
    assert engine.forgotten == ["stack-b", "stack-a"]
    assert not first.adapter.path.exists()


async def test_a_plan_under_way_keeps_the_stack_that_it_was_given(cache: StackCache) -> None:
    engine = Memory()
    in_use = StacksInUse(cache, lambda: engine)  # type: ignore[arg-type,return-value]
    given, go_on = threading.Event(), threading.Event()

    def slow() -> Plan:
        adapter = hold(cache, "stack-slow")
        given.set()
        assert go_on.wait(30)
        return plan_with(adapter)

    async def ask() -> bool:
        async with in_use.planned(slow) as plan:
            await asyncio.sleep(0.2)  # long enough for the other request's end
            assert plan.adapter is not None
            return plan.adapter.path.is_dir()

    asking = asyncio.create_task(ask())
    await asyncio.to_thread(given.wait, 30)
    asyncio.get_running_loop().call_later(0.2, go_on.set)
    async with in_use.planned(maker(cache, "stack-quick")):
        pass
    assert "stack-slow" not in engine.forgotten
    assert await asking
    assert engine.forgotten == ["stack-quick", "stack-slow"]


async def test_a_removed_module_s_stack_goes_at_once_or_with_its_request(cache: StackCache) -> None:
    cache._max_bytes = 1_000_000
    engine = Memory()
    in_use = StacksInUse(cache, lambda: engine)  # type: ignore[arg-type,return-value]
    idle = hold(cache, "stack-idle")
    async with in_use.planned(maker(cache, "stack-busy")) as busy:
        await in_use.let_go(cache.keep_only(()))  # no module is known any more
        assert engine.forgotten == ["stack-idle"] and not idle.path.exists()
        assert busy.adapter is not None and busy.adapter.path.is_dir()
    assert engine.forgotten == ["stack-idle", "stack-busy"] and not busy.adapter.path.exists()


async def test_a_plan_that_fails_or_is_cancelled_holds_nothing_up(cache: StackCache) -> None:
    in_use = StacksInUse(cache, lambda: None)
    go_on = threading.Event()

    def fail() -> Plan:
        raise ValueError("no plan")

    def wait() -> Plan:
        go_on.wait(30)
        return plan_with(None)

    async def ask() -> None:
        async with in_use.planned(wait):
            pass

    with pytest.raises(ValueError, match="no plan"):
        async with in_use.planned(fail):
            pass
    asking = asyncio.create_task(ask())
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    async with asyncio.timeout(10), in_use.planned(maker(cache, "stack-a")) as plan:
        pass
    go_on.set()
    assert plan.adapter is not None and not plan.adapter.path.exists()
