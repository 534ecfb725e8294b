"""`POST /v1/responses`: a conversation in, a response out, whole or in events, and kept nowhere.

Knows nothing of how questions are answered. Invariant: a client that hangs up stops its generation.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from hybridqa.server.access import Asking
from hybridqa.server.asking import Asker
from hybridqa.server.description import STREAMED
from hybridqa.server.errors import ApiError
from hybridqa.server.replies import Json
from hybridqa.server.responses_reply import ResponsesReply
from hybridqa.server.responses_schema import ResponsesRequest
from hybridqa.server.sse import event
from hybridqa.server.streaming import streamed, while_there
from hybridqa.types import Answer


def responses_routes(asker: Asker) -> APIRouter:
    """The path, answered from a store."""
    router = APIRouter()

    @router.post("/v1/responses", response_model=None, responses=STREAMED)
    async def respond(access: Asking, body: ResponsesRequest, request: Request) -> Response:
        question, history = body.conversation()
        options = body.options()
        options["history"] = history
        options["collection"] = access.collection(body.hybridqa.collection, "hybridqa.collection")
        reply = ResponsesReply(body, options["collection"])
        if body.stream:
            return await streamed(request, asker.astream(question, **options), _ResponseEvents(reply))
        return JSONResponse(reply.whole(await while_there(request, asker.aask(question, **options))))

    return router


class _ResponseEvents:
    """A response's events, each under its name."""

    def __init__(self, reply: ResponsesReply) -> None:
        self._reply = reply

    def begin(self) -> Iterable[str]:
        yield from map(_named, self._reply.begin())

    def piece(self, text: str) -> Iterable[str]:
        yield _named(self._reply.piece(text))

    def end(self, answer: Answer) -> Iterable[str]:
        yield from map(_named, self._reply.end(answer))

    def failed(self, error: ApiError) -> Iterable[str]:
        yield _named(self._reply.failed(error))


def _named(data: Json) -> str:
    return event(data, data["type"])
