"""The LoRA resolver that a stock vLLM server asks for a model it does not know: composes stacks on demand.

Knows vLLM's resolver interface and `Serving`; which stacks there are is `ServedStacks`' to say. Invariants: one stack
has one integer id, vLLM's own next, however its name was written, and never that of another; its folder stays while the
server lists it, while a request runs with it, and `GRACE_S` beyond; what is kept here, and in vLLM's list, is bounded.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from dataclasses import dataclass
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from hybridqa.config import Settings
from hybridqa.engine.protocol import Adapter
from hybridqa.errors import ConfigError
from hybridqa.stack_server.names import PREFIX
from hybridqa.stack_server.served import ServedStack, ServedStacks
from hybridqa.stack_server.serving import Serving
from hybridqa.types import Module

log = logging.getLogger(__name__)
NAME = "hybridqa stacks"
TICK_S = 1.0  # between two looks at what the server lists and whether modules have changed
GRACE_S = 120.0  # a request that has passed vLLM's check of its model may not be running yet
MOST_NAMES = 1024  # listed at once


class StackRequest(LoRARequest):  # type: ignore[misc]  # vLLM is not typed for us
    """A LoRARequest whose id stays: vLLM gives what a resolver returns a new one each time, and loads it again."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "lora_int_id":
            super().__setattr__(name, value)


@dataclass(slots=True)
class _Held:
    """A stack whose folder is leased for the server."""

    request: StackRequest
    adapter: Adapter
    modules: tuple[Module, ...]
    size: int
    used: float  # when it was last asked for or seen running, on the monotonic clock


class StackResolver(LoRAResolver):  # type: ignore[misc]
    """Answers for every name that begins with "stack:"; lives on the server's event loop."""

    def __init__(self, stacks: ServedStacks) -> None:
        self._stacks = stacks
        self._serving: Serving | None = None
        self._held: dict[str, _Held] = {}  # by the stack's own name
        self._loading: dict[str, asyncio.Lock] = {}  # by the stack's own name, while somebody loads it
        self._finding = 0  # names that are being resolved now
        self._upkeep: asyncio.Task[None] | None = None
        self._seen: tuple[int, ...] = ()  # of the catalog, when the modules were last looked at

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter for a stack's name, or None for a name that is not ours, unknown or not for this server.

        Raises `ValueError`, which vLLM answers with 400 and its text, for a name or stack that cannot be served.
        """
        if not lora_name.startswith(PREFIX):
            return None
        serving = self._serving = self._serving or Serving.calling(inspect.currentframe())
        if serving is not None and serving.api_servers > 1:
            raise RuntimeError("stacks need --api-server-count 1: each API server would give the same ids to others.")
        rank = serving.max_lora_rank if serving is not None else None
        self._finding += 1
        try:
            found = await asyncio.to_thread(
                self._stacks.find, base_model_name, lora_name, rank or self._stacks.max_rank
            )
            if found is None:
                return None
            if serving is None:  # vLLM gives the id, and loads it
                return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(found.adapter.path))
            return await self._once(serving, found)
        finally:
            self._finding -= 1
            if serving is not None and (self._upkeep is None or self._upkeep.done()):
                self._upkeep = asyncio.create_task(self._keep_up(serving))

    async def _once(self, serving: Serving, found: ServedStack) -> StackRequest:
        """The one request of a stack, loaded by the first who asks."""
        key = found.adapter.name
        lock = self._loading.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                held = self._held.get(key)
                if held is None:
                    held = await self._load(serving, found)
                    self._held[key] = held
                held.used = time.monotonic()
                return held.request
        finally:
            if not lock.locked():
                self._loading.pop(key, None)

    async def _load(self, serving: Serving, found: ServedStack) -> _Held:
        request = StackRequest(lora_name=found.name, lora_int_id=serving.next_id(), lora_path=str(found.adapter.path))
        try:
            await serving.load(request)
        except Exception as error:
            log.exception("vLLM could not load %s", found.name)
            if serving.is_dead:
                raise
            raise ValueError(
                f"{found.name!r} was composed, but the engine could not load it; the server's log says more."
            ) from error
        size = sum(entry.stat().st_size for entry in os.scandir(found.adapter.path))
        return _Held(request, found.adapter, found.modules, size, time.monotonic())

    # Upkeep

    async def _keep_up(self, serving: Serving) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self._tick(serving)
            except Exception:
                log.exception("stacks could not be looked after; this is tried again")

    async def _tick(self, serving: Serving) -> None:
        """Unlists what may not answer any more and what is too much; lets go of folders that nobody needs."""
        now, running = time.monotonic(), serving.running()
        for held in self._held.values():
            if running is None or held.request.lora_name in running:
                held.used = now
        await self._unlist_unusable(serving)
        self._unlist_surplus(serving, now)
        serving.prune_locks()
        if self._finding:
            return  # one of them may have been found in the cache just now
        listed = {request.lora_int_id for request in serving.listed().values()}
        unheld = [key for key, held in self._held.items() if held.request.lora_int_id not in listed]
        gone = [self._held.pop(key).adapter for key in unheld if now - self._held[key].used > GRACE_S]
        if gone:
            self._stacks.release(gone)  # on the loop: nothing is found meanwhile

    async def _unlist_unusable(self, serving: Serving) -> None:
        changed = self._stacks.changed()
        if changed == self._seen:
            return
        for held in list(self._held.values()):
            if problem := await asyncio.to_thread(self._stacks.why_not, held.modules):
                log.info("%s is not served any more: %s", held.request.lora_name, problem)
                self._unlist(serving, held)
        self._seen = changed

    def _unlist_surplus(self, serving: Serving, now: float) -> None:
        """The least recently used, until the rest fits."""
        total, names = sum(held.size for held in self._held.values()), len(serving.listed())
        for held in sorted(self._held.values(), key=lambda held: held.used):
            if (total <= self._stacks.max_bytes and names <= MOST_NAMES) or now - held.used <= TICK_S:
                return
            names -= self._unlist(serving, held)
            total -= held.size

    def _unlist(self, serving: Serving, held: _Held) -> int:
        names = [name for name, request in serving.listed().items() if request is held.request]
        serving.unlist(names)
        return len(names)


def register_resolver() -> None:
    """Makes this process's vLLM answer stacks of the store that HYBRIDQA_STORE names; a second call does nothing."""
    if NAME in LoRAResolverRegistry.get_supported_resolvers():
        return
    try:
        settings = Settings.load()
    except ConfigError as error:
        log.error("no stacks are served: %s", error)
        return
    if not settings.catalog_path.is_file():
        log.error(
            "no stacks are served: there is no store at %r (HYBRIDQA_STORE), expected %r",
            str(settings.store), str(settings.catalog_path),
        )  # fmt: skip
        return
    LoRAResolverRegistry.register_resolver(NAME, StackResolver(ServedStacks(settings)))
