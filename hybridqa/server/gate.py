"""The gate in front of every path: a key that is known, room for one more, and a body that is not too large.

Knows nothing of what the paths do. Invariant: a path that nobody has thought of is guarded, since only those in `OPEN`
are not; what was let in is counted out again however it ends.
"""

from __future__ import annotations

import asyncio
import ipaddress
import uuid
from collections.abc import Callable
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybridqa.catalog import Catalog
from hybridqa.keys import Key, is_token_of, key_id_of
from hybridqa.server.access import Access
from hybridqa.server.errors import ApiError
from hybridqa.server.limits import Limits

OPEN = frozenset({"/", "/health", "/ready"})  # they say nothing of what is in the store
# what costs the engine or the embedder; uploads do, too
QUEUED = frozenset({"/v1/chat/completions", "/v1/responses", "/v1/search"})
UPLOADS = "/v1/documents"
MAX_BODY_BYTES = 4_000_000  # of what is no upload
_ASK_FOR_KEY = {"WWW-Authenticate": "Bearer"}


class Gate:
    """ASGI middleware; the only way in."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        catalog: Catalog,
        limits: Limits,
        max_upload_bytes: int,
        refused: Callable[[ApiError], None] = lambda _: None,
    ) -> None:
        self._app = app
        self._catalog = catalog
        self._limits = limits
        self._max_upload_bytes = max_upload_bytes
        self._refused = refused
        self._guarded = catalog.has_keys()  # once there was a key, the last one's end opens nothing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        request_id = uuid.uuid4().hex

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            access = await self._access(scope)
            await self._through(access, scope, receive, named)
        except ApiError as error:
            self._refused(error)
            answer = JSONResponse(error.body(), status_code=error.status, headers=error.headers)
            await answer(scope, receive, named)

    async def _through(self, access: Access, scope: Scope, receive: Receive, send: Send) -> None:
        path = _path(scope)
        scope.setdefault("state", {})["access"] = access
        if path in OPEN:
            await self._app(scope, receive, send)
            return
        limit = self._max_upload_bytes if path == UPLOADS else MAX_BODY_BYTES
        if (length := Headers(scope=scope).get("content-length", "0")).isdecimal() and int(length) > limit:
            raise _too_large(limit)
        queued = path in QUEUED or (path == UPLOADS and scope["method"] == "POST")
        self._limits.enter(access.key, queued=queued)
        try:
            await self._app(scope, _bounded(receive, limit), send)
        finally:
            self._limits.leave(access.key, queued=queued)

    async def _access(self, scope: Scope) -> Access:
        if _path(scope) in OPEN:
            return Access(None)
        headers = Headers(scope=scope)
        token = _token(headers.get("authorization"))
        key, known = await asyncio.to_thread(self._look_up, token)
        if key is not None:
            return Access(key)
        if known:
            raise ApiError(
                401,
                "the key is not known here." if token else "no key was sent; expected `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers=_ASK_FOR_KEY,
            )
        _from_here(headers)
        return Access(None)

    def _look_up(self, token: str) -> tuple[Key | None, bool]:
        """The token's key, and whether this server asks for keys."""
        self._guarded = self._guarded or self._catalog.has_keys()
        if not self._guarded:
            return None, False
        key_id = key_id_of(token)
        key = None if key_id is None else self._catalog.find_key(key_id)
        return (key if is_token_of(token, key) else None), True


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path


def _token(header: str | None) -> str:
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _from_here(headers: Headers) -> None:
    """Refuses what another site's page has a browser send to a server without keys. Raises `ApiError`."""
    host = headers.get("host", "")
    if not is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise ApiError(
            403, f"host {host!r} is not this machine, and the server has no keys: `hybridqa keys add` makes one."
        )
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise ApiError(403, f"a page of {origin!r} may not ask a server without keys; `hybridqa keys add` makes one.")


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bounded(receive: Receive, limit: int) -> Receive:
    """The request's body, up to so many bytes. Raises `HTTPException` where more comes."""
    left = limit

    async def received() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            error = _too_large(limit)
            raise HTTPException(error.status, str(error))  # what FastAPI lets through from reading a body
        return message

    return received


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the request's body is too large; expected at most {limit:,} bytes.", code="too_large")
