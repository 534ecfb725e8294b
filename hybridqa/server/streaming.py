"""An answer to whoever waits for it, whole or as it is written, for as long as they wait.

Knows nothing about any API's shapes: those are the events'. Invariant: a client that hangs up, be it before the first
piece, between two or while it reads none, stops its generation; what cannot be asked is refused with its status.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from hybridqa.engine.loop import close_stream
from hybridqa.engine.protocol import Delta
from hybridqa.server.errors import ApiError, api_error
from hybridqa.server.sse import KEEP_ALIVE_S, kept_alive
from hybridqa.types import Answer

T = TypeVar("T")
GONE = 499  # what nginx calls a client that closed its request
LOOK_S = 0.25  # how often a waiting request looks whether its client is still there
_NO_CACHE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Events(Protocol):
    """How an API says a stream."""

    def begin(self) -> Iterable[str]:
        """Before the first piece."""
        ...

    def piece(self, text: str) -> Iterable[str]:
        """Some text, never empty."""
        ...

    def end(self, answer: Answer) -> Iterable[str]:
        """The last ones; the answer's text is what the pieces said."""
        ...

    def failed(self, error: ApiError) -> Iterable[str]:
        """The last ones, where no answer comes; its status can be said no more."""
        ...


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What comes of the work, which is cancelled when the client hangs up."""
    task = asyncio.ensure_future(work)
    try:
        await _wait(request, task)
        return task.result()
    finally:
        await _end(task)


async def streamed(request: Request, pieces: AsyncIterator[Delta | Answer], events: Events) -> StreamingResponse:
    """The pieces as a response that is told in events.

    Begun when the first piece is there or has been waited for long enough; raises what comes in its place.
    """
    source = _Begun(pieces)
    try:
        await _wait(request, source.first, KEEP_ALIVE_S)
        if source.first.done():
            source.first.result()
    except BaseException:
        await source.aclose()
        raise
    return _EventStream(source, events)


class _Begun:
    """A stream whose first piece is on its way."""

    def __init__(self, pieces: AsyncIterator[Delta | Answer]) -> None:
        self._pieces = pieces
        self._given = False
        self.first = asyncio.ensure_future(anext(pieces))

    def __aiter__(self) -> AsyncIterator[Delta | Answer]:
        return self

    async def __anext__(self) -> Delta | Answer:
        if self._given:
            return await anext(self._pieces)
        self._given = True
        return await self.first

    async def aclose(self) -> None:
        """Ends it, wherever it is."""
        await _end(self.first)
        await close_stream(self._pieces)


class _EventStream(StreamingResponse):
    """Server-sent events, told while somebody listens."""

    def __init__(self, source: _Begun, events: Events) -> None:
        self._source = source
        super().__init__(kept_alive(_told(source, events)), media_type="text/event-stream", headers=_NO_CACHE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tells them to the end, or until the client hangs up; then closes where they come from.

        Starlette's own leaves the events to the garbage collector where a client hangs up between two of them, and
        behind newer servers it finds out at the next one.
        """
        telling = asyncio.ensure_future(self.stream_response(send))
        leaving = asyncio.ensure_future(self.listen_for_disconnect(receive))
        try:
            await asyncio.wait([telling, leaving], return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                with suppress(OSError):  # it hung up while something was sent
                    telling.result()
        finally:
            await _end(telling, leaving)
            await close_stream(self.body_iterator)  # type: ignore[arg-type]  # it is `kept_alive`'s
            await self._source.aclose()


async def _told(source: _Begun, events: Events) -> AsyncIterator[str]:
    try:
        for event in events.begin():
            yield event
        async for piece in source:
            if isinstance(piece, Answer):
                for event in events.end(piece):
                    yield event
                return
            if piece.text:
                for event in events.piece(piece.text):
                    yield event
    except Exception as error:  # noqa: BLE001  # the status has been sent: the stream itself has to say it
        for event in events.failed(api_error(error)):
            yield event


async def _wait(request: Request, task: asyncio.Future[Any], at_most_s: float = math.inf) -> None:
    """Waits until the task is done, or for so long. Raises `ApiError` when the client hangs up."""
    until = time.monotonic() + at_most_s
    while not task.done() and (left := until - time.monotonic()) > 0:
        await asyncio.wait([task], timeout=min(LOOK_S, left))
        if not task.done() and await request.is_disconnected():
            raise ApiError(GONE, "the client closed the request.")


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancels what still runs and waits until it has ended; what it ends with is dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
