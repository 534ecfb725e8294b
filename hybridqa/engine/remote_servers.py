"""The servers of one gateway: which can answer, which should, and a watch that finds those that went and came back.

Knows nothing about requests. Invariant: a server has a card only while it is known to serve this base model and enough
for this gateway; all are tried again for as long as they are here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Sequence
from contextlib import suppress

from hybridqa.engine.remote_server import RemoteServer, fit
from hybridqa.errors import EngineError, HybridQAError
from hybridqa.models import ModelFolder

log = logging.getLogger(__name__)
PROBE_S = 1.0  # between two looks at servers that are down, or that we wait for
MISSES = 2  # of a server that we wait for, before it counts as gone


class RemoteServers:
    """All servers of one engine; lives on one event loop."""

    def __init__(
        self, urls: Sequence[str], key: str, model: ModelFolder, max_model_len: int, max_lora_rank: int
    ) -> None:
        """Each must take `max_model_len` tokens and adapters of `max_lora_rank`, at least."""
        self.all: list[RemoteServer] = []
        self._urls = tuple(urls)
        self._key = key
        self._needs = (model, max_model_len, max_lora_rank)
        self._opening: asyncio.Lock | None = None
        self._watch: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Looks at every server and begins to watch them; a second call does nothing.

        Raises `EngineError` when none can be reached, `ModelError` for one with another base model, `ConfigError` for
        one that takes too little.
        """
        self._opening = self._opening or asyncio.Lock()
        if self._watch is not None:
            return
        async with self._opening:
            if self._watch is not None:
                return
            servers = [RemoteServer(url, self._key) for url in self._urls]
            found = await asyncio.gather(*(self.enlist(server) for server in servers), return_exceptions=True)
            problems = [problem for problem in found if problem is not None]
            wrong = [problem for problem in problems if not isinstance(problem, EngineError)]
            if wrong or len(problems) == len(servers):
                for server in servers:
                    await server.close()
                raise wrong[0] if wrong else EngineError(f"no vLLM server can be used: {' '.join(map(str, problems))}")
            for problem in problems:
                log.warning("%s It is tried again.", problem)
            self.all = servers
            self._watch = asyncio.create_task(self._keep_watch())

    def order(self, stack: str | None) -> list[RemoteServer]:
        """The servers to try, the best first; those that are down come last.

        A stack has an order of its own among the servers (rendezvous hashing), so that few of them hold it, unless the
        one whose turn it is has twice its share of what runs now.
        """
        fewest = sorted(self.all, key=lambda server: (server.card is None, server.running))
        if stack is None:
            return fewest
        up = [server for server in fewest if server.card is not None and server.card.stacks]
        share = 2 * math.ceil((sum(server.running for server in up) + 1) / max(1, len(up)))
        ranked = sorted(up, key=lambda server: hashlib.sha256(f"{server.url} {stack}".encode()).digest())
        ranked.sort(key=lambda server: server.running >= share)
        return [*ranked, *(server for server in fewest if server not in up)]

    async def enlist(self, server: RemoteServer) -> None:
        """Finds a server fit. Raises as `open` does."""
        try:
            server.card = await fit(server, *self._needs)
        except HybridQAError as error:
            server.problem = str(error)
            raise

    async def close(self) -> None:
        """Cuts short whatever waits for a server."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        for server in self.all:
            server.lose("the engine was closed")
        await asyncio.gather(*(server.close() for server in self.all))

    async def _keep_watch(self) -> None:
        """Brings servers back that were down, and finds out when one that we wait for is gone without a word."""
        misses: dict[str, int] = {}
        while True:
            await asyncio.sleep(PROBE_S)
            try:
                await asyncio.gather(*(self._look_after(server, misses) for server in self.all))
            except Exception:
                log.exception("the vLLM servers could not be looked after; this is tried again")

    async def _look_after(self, server: RemoteServer, misses: dict[str, int]) -> None:
        if server.card is None:
            before = server.problem
            try:
                await self.enlist(server)
            except HybridQAError as problem:
                if str(problem) != before:
                    log.warning("%s", problem)
            else:
                log.warning("the vLLM server at %r is back", server.url)
        elif server.running and not await server.is_healthy():
            misses[server.url] = misses.get(server.url, 0) + 1
            if misses[server.url] >= MISSES:
                server.lose(f"the vLLM server at {server.url!r} is not healthy")
        else:
            misses.pop(server.url, None)
