"""Errors as the `openai` client raises them: the right status, and one shape of body.

Knows nothing about any one path. Invariant: every answer that is no success has `{"error": {message, type, param,
code}}`, and a failure that nobody foresaw says nothing of what is inside.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hybridqa.errors import (
    EngineClosedError,
    EngineError,
    HybridQAError,
    InputError,
    NotFoundError,
    RankLimitError,
    StorageFullError,
)

log = logging.getLogger(__name__)
INVALID, MISSING, FAILED = "invalid_request_error", "not_found_error", "server_error"
_SENDERS = ("body", "query", "path", "header")  # where the framework says a value came from, before its name
_KINDS = {400: INVALID, 401: "authentication_error", 403: "permission_error", 404: MISSING, 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that cannot be answered, and why."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """What the client reads."""
        kind = _KINDS.get(self.status, INVALID if self.status < 500 else FAILED)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def api_error(error: Exception) -> ApiError:
    """What a client is told of an error."""
    match error:
        case ApiError():
            return error
        case NotFoundError():
            return ApiError(404, str(error), code="not_found")
        case InputError() | RankLimitError():
            return ApiError(400, str(error))
        case EngineClosedError():
            return ApiError(
                503, "the server is closing; ask again later.", code="closing", headers={"Retry-After": "5"}
            )
        case EngineError():
            return ApiError(503, f"the engine could not answer: {error}", code="engine_error")
        case StorageFullError():
            return ApiError(507, "the server's disk is full.", code="storage_full")
        case HybridQAError():
            log.error("%s: %s", type(error).__name__, error)
            return ApiError(500, "the server's store or model cannot be used; its log says why.")
        case _:
            log.error("a request failed", exc_info=error)
            return ApiError(500, "the server failed; its log says why.")


def install(app: FastAPI) -> None:
    """Has the app answer every error in this shape."""

    def told(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers)

    async def known(_: Request, error: Exception) -> JSONResponse:
        return told(api_error(error))

    async def wrong(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        if isinstance(error.body, bytes):  # it was not read as JSON
            kind = request.headers.get("content-type", "")
            return told(ApiError(415, f"a body of type {kind!r} cannot be read; expected 'application/json'."))
        return told(invalid(error.errors()))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return told(_of_http(request, error))

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(HybridQAError, known)
    app.add_exception_handler(RequestValidationError, wrong)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, known)


def invalid(found: Sequence[Any]) -> ApiError:
    """The first thing that is wrong with a request, of what pydantic found."""
    around = found[0]["loc"][:-1]  # where it may be one of several things, each says why it is not: the nearest counts
    beside = [one for one in found if one["loc"][: len(around)] == around]
    first = max(beside, key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
    loc = first["loc"][1:] if first["loc"] and first["loc"][0] in _SENDERS else first["loc"]
    place = [str(part) for part in loc if part != "str" and not str(part).startswith("list[")]
    param = ".".join(place) or None
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is no JSON; expected an object.", code="json_invalid")
    return ApiError(400, f"{param or 'the body'}: {first['msg']}", param=param, code=first["type"])


def _of_http(request: Request, error: HTTPException) -> ApiError:
    """What the framework refuses, in words."""
    path, headers = str(request.scope["path"]), error.headers or {}
    said = str(error.detail)
    if said == HTTPStatus(error.status_code).phrase:
        match error.status_code:
            case 404:
                said = f"there is no path {path!r}; GET /openapi.json lists those that there are."
            case 405:
                said = f"{path!r} cannot be asked by {request.method}; expected {headers.get('Allow')}."
    elif isinstance(error.__cause__, ValueError | RecursionError):
        said = "the body is no JSON in UTF-8 that can be read; expected an object."
    return ApiError(error.status_code, said, headers=headers)
