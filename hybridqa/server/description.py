"""What `GET /openapi.json` says beyond what the paths' own types do: errors, uploads, streams.

Knows nothing of how a request is answered. Invariant: it says of each answer what every client may rely on; a test asks
the server for what is described here and compares.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

Json = dict[str, Any]


class ErrorSaid(BaseModel):
    """What is wrong with a request, or with the server."""

    model_config = ConfigDict(extra="forbid")

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every answer that is no success."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorSaid


ERRORS: dict[int | str, Json] = {
    "4XX": {"model": ErrorReply, "description": "What is wrong with the request"},
    "5XX": {"model": ErrorReply, "description": "What the server cannot do, or cannot do now"},
}
_OBJECT: Json = {"schema": {"type": "object"}}
_TEXT: Json = {"schema": {"type": "string"}}
STREAMED: dict[int | str, Json] = {
    200: {
        "description": "The answer; with `stream`, its events as they come",
        "content": {"application/json": _OBJECT, "text/event-stream": {}},
    }
}
READY: dict[int | str, Json] = {503: {"description": "Not yet", "content": {"application/json": _OBJECT}}}
METRICS: dict[int | str, Json] = {200: {"description": "For Prometheus", "content": {"text/plain": _TEXT}}}
_STRING: Json = {"type": "string"}
_FILES: Json = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1},
        "id": {**_STRING, "description": "of one file; else each has its name"},
        "title": {**_STRING, "description": "of one file; else the one in it"},
        "collection": _STRING,
        "metadata": {**_STRING, "description": "a JSON object"},
    },
    "additionalProperties": False,
}


def upload_body(text_document: type[BaseModel]) -> Json:
    """The two bodies of a POST of documents."""
    content = {
        "application/json": {"schema": text_document.model_json_schema()},
        "multipart/form-data": {"schema": _FILES},
    }
    return {"requestBody": {"required": True, "content": content}}
