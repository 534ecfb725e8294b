"""One event loop in a thread of its own, where an engine lives, so that any thread or loop can ask it.

Knows nothing about what runs on it. Invariant: work submitted after `close` raises `EngineClosedError`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from hybridqa.errors import EngineClosedError

T = TypeVar("T")


class EngineLoop:
    """One event loop in a thread of its own, where the engine lives; callable from any thread or loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hybridqa-engine", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts `work` on the loop."""
        if not self._thread.is_alive():
            work.close()
            raise EngineClosedError("this HybridQA is closed; expected an open one: call HybridQA.open again.")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` to its end; an interrupt of the caller cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancels what still runs, then stops the loop and its thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(timeout=30)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=30)
            self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def next_piece(pieces: AsyncIterator[T]) -> T | None:
    """The next piece of a stream, or None at its end: a StopAsyncIteration cannot cross a future."""
    return await anext(pieces, None)


async def close_stream(pieces: AsyncIterator[Any]) -> None:
    """Ends a stream that may not have been read to its end."""
    close = getattr(pieces, "aclose", None)
    if close is not None:
        await close()
