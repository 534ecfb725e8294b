"""`POST /v1/search`: the passages that a question would be answered from, and no answer.

Knows nothing of how passages are found. Invariant: a name that is no option of `retrieve` is refused.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from hybridqa.answering.options import RetrieveOptions
from hybridqa.pipeline import HybridQA
from hybridqa.server.access import Asking
from hybridqa.server.body import Body
from hybridqa.server.found import found
from hybridqa.server.schema import MAX_TURNS, Choices
from hybridqa.server.streaming import while_there
from hybridqa.types import Message


class Said(BaseModel):
    """An earlier turn of the conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class SearchRequest(Body, Choices):
    """The body of the request."""

    query: str
    history: list[Said] = Field(default_factory=list, max_length=MAX_TURNS)

    def options(self) -> RetrieveOptions:  # type: ignore[override]  # it is narrower: a test says that the names are its
        """The same for `HybridQA.retrieve`."""
        given: dict[str, Any] = {**super().options()}
        del given["query"]
        given["history"] = tuple(Message(turn.role, turn.content) for turn in self.history)
        options: RetrieveOptions = given  # type: ignore[assignment]
        return options


def search_routes(store: HybridQA) -> APIRouter:
    """The path, answered from a store."""
    router = APIRouter()

    @router.post("/v1/search")
    async def search(access: Asking, body: SearchRequest, request: Request) -> dict[str, object]:
        options = body.options()
        collection = options["collection"] = access.collection(body.collection)
        route = await while_there(request, store.aretrieve(body.query, **options))
        return {"object": "list", "data": await asyncio.to_thread(found, store, route, collection)}

    return router
