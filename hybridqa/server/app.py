"""The application: every path, over one open store, behind the gate.

Knows nothing of what the paths do. Invariant: a request has an answer in the API's own shapes, whatever it was, and no
path but those of `gate.OPEN` is answered without a key where there are keys.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from hybridqa import __version__
from hybridqa.errors import HybridQAError
from hybridqa.pipeline import HybridQA
from hybridqa.server import errors, metrics
from hybridqa.server.access import Admin, Asking
from hybridqa.server.asking import Asker
from hybridqa.server.chat import chat_routes
from hybridqa.server.description import ERRORS, METRICS, READY
from hybridqa.server.documents import document_routes
from hybridqa.server.gate import Gate
from hybridqa.server.limits import Limits
from hybridqa.server.metrics import Counted, Metrics
from hybridqa.server.modes import MODELS
from hybridqa.server.modules import module_routes
from hybridqa.server.page import page_routes
from hybridqa.server.responses import responses_routes
from hybridqa.server.schema import mode_of
from hybridqa.server.search import search_routes
from hybridqa.server.uploads import Uploads

log = logging.getLogger(__name__)
_FORM_BYTES = 100_000  # of an upload beside its files


def create_app(store: HybridQA) -> FastAPI:
    """The application of an open store, which stays the caller's to close; models are loaded when it starts."""
    state = "loading"
    settings = store.settings
    max_bytes = int(settings.max_document_mb * 1e6)

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

    app = FastAPI(title="hybridqa", version=__version__, lifespan=life, docs_url=None, redoc_url=None, responses=ERRORS)
    counted = Metrics()
    limits = Limits(per_minute=settings.requests_per_minute, at_once=settings.requests_at_once, queue=settings.queue)
    uploads = Uploads(max_bytes=max_bytes, limit_s=settings.parse_seconds, memory_mb=settings.parse_memory_mb)
    errors.install(app)
    app.add_middleware(Gate, catalog=store.catalog, limits=limits, max_upload_bytes=max_bytes + _FORM_BYTES)
    app.add_middleware(Counted, metrics=counted)  # the last that is added is the first that a request meets
    asker = Asker(store, counted)
    app.include_router(chat_routes(asker))
    app.include_router(responses_routes(asker))
    app.include_router(search_routes(store))
    app.include_router(document_routes(store, uploads))
    app.include_router(module_routes(store))
    app.include_router(page_routes())

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", response_model=None, responses=READY)
    async def ready() -> JSONResponse:
        return JSONResponse({"status": state}, status_code=200 if state == "ready" else 503)

    @app.get("/metrics", response_model=None, response_class=Response, responses=METRICS)
    async def prometheus(_: Admin) -> Response:
        return Response(counted.text(), media_type=metrics.CONTENT_TYPE)

    @app.get("/v1/models")
    async def models(_: Asking) -> dict[str, object]:
        return {"object": "list", "data": [_model(name) for name in MODELS]}

    @app.get("/v1/models/{name}")
    async def model(_: Asking, name: str) -> dict[str, object]:
        mode_of(name)
        return _model(name)

    @app.get("/v1/collections")
    async def collections(access: Asking) -> dict[str, object]:
        names = await asyncio.to_thread(store.catalog.list_collections)
        if access.key is not None and access.key.collections is not None:
            names = list(access.key.collections)  # also those that are not made yet: it may add to them
        data = [{"id": name, "object": "collection"} for name in names]
        return {"object": "list", "role": str(access.role), "data": data}

    return app


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "hybridqa"}
