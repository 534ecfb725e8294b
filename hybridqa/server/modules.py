"""The modules API: every version of every module, and the way back to an older one.

Knows nothing about how modules are made. Invariant: a rollback is in force for the next question when it has returned.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from hybridqa.errors import AdapterError
from hybridqa.pipeline import HybridQA
from hybridqa.server.access import Asking, Editing
from hybridqa.server.errors import ApiError
from hybridqa.types import Module

log = logging.getLogger(__name__)
Json = dict[str, Any]
CollectionName = Annotated[str | None, Query(max_length=200)]


class Rollback(BaseModel):
    """The body of a rollback."""

    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(default=None, ge=1, lt=2**53)  # None: the one before the current one
    collection: str | None = None


def module_routes(store: HybridQA) -> APIRouter:
    """The paths, over a store."""
    router = APIRouter()

    @router.get("/v1/modules")
    async def modules(access: Asking, collection: CollectionName = None) -> Json:
        name = access.collection(collection)
        found = await asyncio.to_thread(store.modules, name)
        return {"object": "list", "collection": name, "data": [module_json(module) for module in found]}

    @router.post("/v1/modules/{module_id}/rollback")
    async def rollback(access: Editing, module_id: str, body: Rollback | None = None) -> Json:
        body = body or Rollback()
        name = access.collection(body.collection)
        work = partial(store.rollback, module_id, body.version, collection=name)
        try:
            return module_json(await asyncio.to_thread(work))
        except AdapterError as error:  # a rejected version, or one whose files are not what they were
            log.warning("module %r was not rolled back: %s", module_id, error)
            shown = (
                str(error) if type(error) is AdapterError else "its files cannot be used; the server's log says why."
            )
            raise ApiError(409, f"module {module_id!r} was not rolled back: {shown}", code="not_usable") from error

    return router


def module_json(module: Module) -> Json:
    """A version of a module as the API has it; where its files are is the server's own business."""
    return {
        "id": module.module_id,
        "object": "module",
        "version": module.version,
        "name": module.name,
        "kind": str(module.kind),
        "collection": module.collection,
        "documents": sorted(module.documents),
        "status": str(module.status),
        "current": module.current,
        "created_at": module.created_at,
        "rank": module.rank,
        "metrics": dict(module.metrics),
    }
