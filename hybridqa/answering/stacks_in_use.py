"""Which stacks running requests need; the others may be let go of, by the engine first and then by the cache.

Lives on the engine's loop; knows nothing about how stacks are composed or answers generated. Invariant: a stack is kept
from the moment that a plan is given it until the request of that plan has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from hybridqa.answering.plan import Plan
from hybridqa.engine.protocol import Engine
from hybridqa.errors import EngineError
from hybridqa.modules.stacks import StackCache

log = logging.getLogger(__name__)


class StacksInUse:
    """The stacks of one store's running requests."""

    def __init__(self, stacks: StackCache, engine: Callable[[], Engine | None]) -> None:
        """`engine` gives the one that is running, if any."""
        self._stacks = stacks
        self._engine = engine
        self._requests: Counter[str] = Counter()  # by stack
        self._planning: set[asyncio.Task[Plan]] = set()

    @asynccontextmanager
    async def planned(self, make: Callable[[], Plan]) -> AsyncIterator[Plan]:
        """What `make` gives, in a thread; its stack stays, then those that are doomed or have no room are let go."""
        planning = asyncio.create_task(asyncio.to_thread(make))
        self._planning.add(planning)
        try:
            plan = await planning
        finally:
            self._planning.discard(planning)
        if plan.adapter is None:
            yield plan
            return
        name = plan.adapter.name
        self._requests[name] += 1  # in the same step as the end of the planning: see `let_go`
        try:
            yield plan
        finally:
            self._requests[name] -= 1
            self._requests += Counter()  # drops the zeros
            await self.let_go(await asyncio.to_thread(self._stacks.surplus, set(self._requests)))

    async def let_go(self, names: Sequence[str]) -> None:
        """Gives up those of the stacks, which the cache has just marked, that no request needs; one needed stays.

        A plan that begins after the marking and asks for a stack makes the cache keep it. One that was under way may
        have been given it before: it is waited for, and is then among the requests.
        """
        if not names:
            return
        if self._planning:
            await asyncio.wait(set(self._planning))
        idle = [name for name in names if name not in self._requests]
        engine = self._engine()
        if engine is not None:
            try:
                for name in idle:
                    await engine.evict(name)
            except EngineError as error:  # it has ended, and reads no stack again
                log.info("the engine could not forget a stack: %s", error)
        await asyncio.to_thread(self._stacks.release, idle)
