"""`POST /v1/chat/completions`: a conversation in, its next turn out, whole or as it is written.

Knows nothing of how questions are answered. Invariant: a client that hangs up stops its generation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from hybridqa.engine.loop import close_stream
from hybridqa.engine.protocol import Delta
from hybridqa.server.access import Asking
from hybridqa.server.asking import Asker
from hybridqa.server.errors import ApiError, api_error
from hybridqa.server.replies import ChatReply
from hybridqa.server.schema import ChatRequest
from hybridqa.server.sse import DONE, KEEP_ALIVE_S, event, kept_alive
from hybridqa.types import Answer

T = TypeVar("T")
GONE = 499  # what nginx calls a client that closed its request
LOOK_S = 0.25  # how often a waiting request looks whether its client is still there
_NO_CACHE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def chat_routes(asker: Asker) -> APIRouter:
    """The path, answered from a store."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=None)
    async def chat(access: Asking, body: ChatRequest, request: Request) -> Response:
        question, history = body.conversation()
        options = body.options()
        options["history"] = history
        options["collection"] = access.collection(body.hybridqa.collection, "hybridqa.collection")
        reply = ChatReply(body.model, options["collection"])
        if not body.stream:
            answer = await while_there(request, asker.aask(question, **options))
            return JSONResponse(reply.whole(answer))
        pieces = asker.astream(question, **options)
        first = asyncio.ensure_future(anext(pieces))
        try:  # what cannot be asked is refused with its status, before a stream begins
            await asyncio.wait([first], timeout=KEEP_ALIVE_S)
            if first.done():
                first.result()
        except BaseException:
            first.cancel()
            await close_stream(pieces)
            raise
        usage = body.stream_options is not None and body.stream_options.include_usage
        events = kept_alive(_events(reply, first, pieces, usage))
        return StreamingResponse(events, media_type="text/event-stream", headers=_NO_CACHE)

    return router


async def _events(
    reply: ChatReply, first: asyncio.Future[Delta | Answer], pieces: AsyncIterator[Delta | Answer], usage: bool
) -> AsyncIterator[str]:
    try:
        yield event(reply.first())
        piece = await first
        while True:
            if isinstance(piece, Answer):
                yield event(reply.last(piece))
                if usage:
                    yield event(reply.usage(piece))
                break
            if piece.text:
                yield event(reply.piece(piece.text))
            piece = await anext(pieces)
        yield DONE
    except Exception as error:  # noqa: BLE001  # the status has been sent: the stream itself has to say it
        yield event(api_error(error).body())
    finally:
        first.cancel()
        await close_stream(pieces)


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What comes of the work, which is cancelled when the client hangs up."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=LOOK_S)
            if not task.done() and await request.is_disconnected():
                raise ApiError(GONE, "the client closed the request.")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
