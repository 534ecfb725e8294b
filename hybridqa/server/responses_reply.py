"""An answer in the shapes of OpenAI's Responses API: a response, and the events that tell it.

Knows nothing about HTTP. Invariant: the events say what the last one's response holds, and nothing else; each has the
number behind the one before it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from hybridqa.server.errors import ApiError
from hybridqa.server.replies import Json, extension, url_citations
from hybridqa.server.responses_schema import ResponsesRequest
from hybridqa.types import Answer, Usage

_ERRORS = {429: "rate_limit_exceeded"}  # the codes that the API has for a response that failed
_PLACE = {"output_index": 0, "content_index": 0}  # there is one item with one part


class ResponsesReply:
    """One response, whole or in events."""

    def __init__(self, asked: ResponsesRequest, collection: str) -> None:
        self._id = f"resp_{uuid.uuid4().hex}"
        self._item_id = f"msg_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._asked = asked
        self._collection = collection
        self._number = -1
        self._said = ""

    def whole(self, answer: Answer) -> Json:
        """The body of an answer that is not streamed."""
        cut = answer.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        return {
            **self._response(status, [self._item(status, [self._part(answer)])]),
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": _usage(answer.usage),
            "hybridqa": extension(answer, self._collection),
        }

    def begin(self) -> Iterator[Json]:
        """The events before the first text."""
        for name in ("created", "in_progress"):
            yield self._event(name, response=self._response("in_progress", []))
        yield self._event("output_item.added", output_index=0, item=self._item("in_progress", []))
        yield self._event("content_part.added", **self._here(), part=_text("", []))

    def piece(self, text: str) -> Json:
        """The event of some text."""
        self._said += text
        return self._event("output_text.delta", **self._here(), delta=text, logprobs=[])

    def end(self, answer: Answer) -> Iterator[Json]:
        """The events behind the last text."""
        response = self.whole(answer)
        (item,) = response["output"]
        (part,) = item["content"]
        for number, annotation in enumerate(part["annotations"]):
            yield self._event(
                "output_text.annotation.added", **self._here(), annotation_index=number, annotation=annotation
            )
        yield self._event("output_text.done", **self._here(), text=part["text"], logprobs=[])
        yield self._event("content_part.done", **self._here(), part=part)
        yield self._event("output_item.done", output_index=0, item=item)
        yield self._event(response["status"], response=response)

    def failed(self, error: ApiError) -> Json:
        """The event that ends a stream without an answer; what was said stays said."""
        output = [self._item("incomplete", [_text(self._said, [])])] if self._said else []
        code = _ERRORS.get(error.status, "invalid_prompt" if error.status < 500 else "server_error")
        said = {"code": code, "message": str(error)}
        return self._event("failed", response={**self._response("failed", output), "error": said})

    def _event(self, name: str, **content: Any) -> Json:
        self._number += 1
        return {"type": f"response.{name}", "sequence_number": self._number, **content}

    def _here(self) -> Json:
        return {"item_id": self._item_id, **_PLACE}

    def _part(self, answer: Answer) -> Json:
        found = url_citations(answer, self._collection)
        return _text(answer.text, [{"type": one["type"], **one["url_citation"]} for one in found])

    def _item(self, status: str, content: list[Json]) -> Json:
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _response(self, status: str, output: list[Json]) -> Json:
        asked = self._asked
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "metadata": asked.metadata or {},
            "model": asked.model,
            "output": output,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": asked.temperature or 0.0,  # greedy, as `ask` is
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "auto",
            "usage": None,
            "user": asked.user,
        }


def _text(text: str, annotations: list[Json]) -> Json:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}


def _usage(spent: Usage) -> Json:
    """Tokens, as this API has them."""
    return {
        "input_tokens": spent.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": spent.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": spent.total_tokens,
    }
