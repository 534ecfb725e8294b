"""One event loop in a thread of its own, where an engine lives, so that any thread or loop can ask it.

Knows nothing about what runs on it. Invariant: work submitted after `close` raises `EngineClosedError`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

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

    def iterate(self, pieces: AsyncIterator[T]) -> Iterator[T]:
        """The pieces of a stream that runs on the loop; closing the iterator ends the stream."""
        stream = _Stream(pieces)
        try:
            while (piece := self.run(stream.next())) is not None:
                yield piece
        finally:
            with suppress(EngineClosedError):  # then the loop has ended it
                self.run(stream.close())

    async def aiterate(self, pieces: AsyncIterator[T]) -> AsyncIterator[T]:
        """`iterate` for a caller on another event loop."""
        stream = _Stream(pieces)
        try:
            while (piece := await asyncio.wrap_future(self.submit(stream.next()))) is not None:
                yield piece
        finally:
            with suppress(EngineClosedError):
                await asyncio.wrap_future(self.submit(stream.close()))

    def close(self) -> None:
        """Cancels what still runs, then stops the loop and its thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(timeout=30)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=30)
            self._loop.close()


class _Stream(Generic[T]):
    """A stream on the loop, read one step at a time; each step is a task, so that `close` can wait for it."""

    def __init__(self, pieces: AsyncIterator[T]) -> None:
        self._pieces = pieces
        self._step: asyncio.Task[T | None] | None = None

    async def next(self) -> T | None:
        """The next piece, or None at the end: a StopAsyncIteration cannot cross a future."""
        self._step = asyncio.ensure_future(_next_piece(self._pieces))
        return await self._step

    async def close(self) -> None:
        """Ends the stream; a step that was cancelled ends first, for a generator that runs cannot be closed."""
        if self._step is not None:
            await _end([self._step])
        await close_stream(self._pieces)


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results, in order; when one fails, or the caller is cancelled, the others are stopped first."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _end(tasks)


async def close_stream(pieces: AsyncIterator[Any]) -> None:
    """Ends a stream that may not have been read to its end."""
    close = getattr(pieces, "aclose", None)
    if close is not None:
        await close()


async def _next_piece(pieces: AsyncIterator[T]) -> T | None:
    return await anext(pieces, None)


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks and waits until they have ended; what they end with is dropped."""
    tasks = list(tasks)
    for task in tasks:
        if not task.cancelling():  # a second time would cut its tidying up short
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _cancel_others() -> None:
    current = asyncio.current_task()
    await _end(task for task in asyncio.all_tasks() if task is not current)
