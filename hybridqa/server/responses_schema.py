"""What a request for a response may hold, as OpenAI's Responses API names it, and what is made of it.

Knows nothing about HTTP or stores. Invariant: as `schema`'s: a parameter that would change an answer is followed or
refused by name.
"""

from __future__ import annotations

import reprlib
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, model_validator

from hybridqa.answering.options import AskOptions
from hybridqa.server.body import Allowed, Body, refuse
from hybridqa.server.errors import ApiError
from hybridqa.server.schema import (
    MAX_TURNS,
    UNHEARD,
    Conversation,
    Extension,
    TextFormat,
    Turn,
    conversation_of,
    mode_of,
)
from hybridqa.types import Message

_NOT_KEPT = "responses are not kept here; send the conversation's turns as `input`."
_UNHEARD: Allowed = {
    **UNHEARD,
    "background": (False,),
    "prompt": (),
    "context_management": ([],),
    "truncation": ("auto",),  # the oldest turns of a conversation that is too long are always left out
    "stop": ([],),  # of the chat API; here they would be passed over
    "seed": (),
    "n": (1,),
    "messages": (),
    "max_tokens": (),
    "max_completion_tokens": (),
    "response_format": (),
}
_LOGPROBS = "message.output_text.logprobs"

Label = Annotated[str, StringConstraints(max_length=64)]
Note = Annotated[str, StringConstraints(max_length=512)]


class Item(Turn):
    """One item of the input: a message of anybody, or one that came back as an earlier response's output."""

    role: str = ""
    type: str | None = None

    def turn(self, place: str) -> Message:
        """The item as a turn of the conversation. Raises `ApiError`."""
        if self.type == "item_reference":
            raise ApiError(400, f"an 'item_reference' leads nowhere: {_NOT_KEPT}", param=place, code="not_kept")
        if self.type not in (None, "message"):
            raise ApiError(
                400,
                f"an item of type {self.type!r} cannot be read; expected items of type 'message'.",
                param=f"{place}.type",
                code="unsupported_content",
            )
        return self.message(place)


class TextOptions(BaseModel):
    """How the text is to be written."""

    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(BaseModel):
    """How long a model is to think; these do not."""

    effort: str | None = None


class ResponsesRequest(Body):
    """The body of `POST /v1/responses`."""

    model: str
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_TURNS)]
    instructions: str | None = None
    stream: bool = False
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    metadata: dict[Label, Note] | None = Field(default=None, max_length=16)
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    hybridqa: Extension = Extension()

    @model_validator(mode="before")
    @classmethod
    def _is_heard(cls, body: Any) -> Any:
        refuse(body, _UNHEARD)
        for name in ("previous_response_id", "conversation"):
            if isinstance(body, dict) and (value := body.get(name)) is not None:
                raise ApiError(
                    400, f"{name}={reprlib.repr(value)} leads nowhere: {_NOT_KEPT}", param=name, code="not_kept"
                )
        return body

    def conversation(self) -> Conversation:
        """The question, and the turns before it. Raises `ApiError`."""
        turns = [] if self.instructions is None else [Message("system", self.instructions)]
        if isinstance(self.input, str):
            turns.append(Message("user", self.input))
        else:
            turns += [item.turn(f"input.{place}") for place, item in enumerate(self.input)]
        return conversation_of(turns, "input")

    def options(self) -> AskOptions:
        """How the question is to be answered. Raises `ApiError`."""
        self._check_text()
        options = self.hybridqa.options()
        options["mode"] = mode_of(self.model)
        options["max_tokens"] = self.max_output_tokens
        options["temperature"], options["top_p"] = self.temperature, self.top_p
        return options

    def _check_text(self) -> None:
        if self.text is not None and self.text.format is not None:
            self.text.format.check("text.format")
        for param, value, expected in (
            ("text.verbosity", self.text and self.text.verbosity, "medium"),
            ("reasoning.effort", self.reasoning and self.reasoning.effort, "none"),
        ):
            if value not in (None, expected):
                raise ApiError(
                    400,
                    f"{param}={value!r} cannot be followed; expected {expected!r}.",
                    param=param,
                    code="unsupported_parameter",
                )
        if self.include and _LOGPROBS in self.include:
            raise ApiError(
                400,
                f"{_LOGPROBS!r} cannot be included; expected it left out.",
                param="include",
                code="unsupported_parameter",
            )
