"""`POST /v1/chat/completions`: a conversation in, its next turn out, whole or as it is written.

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
from hybridqa.server.replies import ChatReply
from hybridqa.server.schema import ChatRequest
from hybridqa.server.sse import DONE, event
from hybridqa.server.streaming import streamed, while_there
from hybridqa.types import Answer


def chat_routes(asker: Asker) -> APIRouter:
    """The path, answered from a store."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=None, responses=STREAMED)
    async def chat(access: Asking, body: ChatRequest, request: Request) -> Response:
        question, history = body.conversation()
        options = body.options()
        options["history"] = history
        options["collection"] = access.collection(body.hybridqa.collection, "hybridqa.collection")
        usage = body.stream_options is not None and body.stream_options.include_usage
        reply = ChatReply(body.model, options["collection"], usage=usage)
        if body.stream:
            return await streamed(request, asker.astream(question, **options), _ChatEvents(reply))
        return JSONResponse(reply.whole(await while_there(request, asker.aask(question, **options))))

    return router


class _ChatEvents:
    """A chat completion's chunks."""

    def __init__(self, reply: ChatReply) -> None:
        self._reply = reply

    def begin(self) -> Iterable[str]:
        yield event(self._reply.first())

    def piece(self, text: str) -> Iterable[str]:
        yield event(self._reply.piece(text))

    def end(self, answer: Answer) -> Iterable[str]:
        yield from map(event, self._reply.last(answer))
        yield DONE

    def failed(self, error: ApiError) -> Iterable[str]:
        yield event(error.body())
