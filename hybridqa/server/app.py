"""The application: every path, over one open store.

Knows nothing of what the paths do. Invariant: a request has an answer in the API's own shapes, whatever it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from hybridqa import __version__
from hybridqa.errors import HybridQAError
from hybridqa.pipeline import HybridQA
from hybridqa.server import errors
from hybridqa.server.chat import chat_routes
from hybridqa.server.schema import MODELS, mode_of
from hybridqa.server.search import search_routes

log = logging.getLogger(__name__)


def create_app(store: HybridQA) -> FastAPI:
    """The application of an open store, which stays the caller's to close; models are loaded when it starts."""
    state = "loading"

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        async def warm_up() -> None:
            nonlocal state
            try:
                await asyncio.to_thread(store.warm_up)
                state = "ready"
            except HybridQAError as error:  # each request says it too; one of them may yet succeed
                state = "failed"
                log.error("the models could not be loaded: %s", error)

        warming = asyncio.create_task(warm_up())
        yield
        warming.cancel()

    app = FastAPI(title="hybridqa", version=__version__, lifespan=life)
    errors.install(app)
    app.include_router(chat_routes(store))
    app.include_router(search_routes(store))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", response_model=None)
    async def ready() -> JSONResponse:
        return JSONResponse({"status": state}, status_code=200 if state == "ready" else 503)

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [_model(name) for name in MODELS]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, object]:
        mode_of(name)
        return _model(name)

    return app


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "hybridqa"}
