"""What a chat request may hold, as the OpenAI API names it, and what is made of it.

Knows nothing about HTTP or stores. Invariant: a parameter that would change an answer is followed or refused by name;
what cannot change it is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hybridqa.answering.options import AskOptions
from hybridqa.server.body import Allowed, Body, refuse
from hybridqa.server.errors import ApiError
from hybridqa.server.modes import MODELS
from hybridqa.types import Filter, Message, Mode

MAX_TURNS = 1_000
MAX_STOPS = 4  # as the API has it
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXTS = ("text", "input_text", "output_text")
UNHEARD: Allowed = {  # what other servers of this API take, and would change an answer
    "top_k": (-1, 0),
    "min_p": (0,),
    "min_tokens": (0,),
    "repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "moderation": (),
}
_UNHEARD_IN_CHAT: Allowed = {
    **UNHEARD,
    "n": (1,),
    "logprobs": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
}


class Part(BaseModel):
    """A piece of a message."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Turn(BaseModel):
    """A message of the conversation."""

    role: str
    content: str | list[Part] | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None

    def message(self, place: str) -> Message:
        """The message as `HybridQA.ask` takes it; `place` is where it stood. Raises `ApiError`."""
        if self.role not in _ROLES:
            raise ApiError(
                400,
                f"a message of role {self.role!r} cannot be read; expected one of {', '.join(map(repr, _ROLES))}.",
                param=f"{place}.role",
            )
        if self.tool_calls:
            raise ApiError(
                400,
                "a message with calls of tools cannot be read; expected messages of text alone.",
                param=f"{place}.tool_calls",
                code="unsupported_content",
            )
        return Message(_ROLES[self.role], self._text(place))

    def _text(self, place: str) -> str:
        if isinstance(self.content, str):
            return self.content
        if self.content is None:
            if self.role == "assistant":
                return self.refusal or ""
            raise ApiError(400, "the message has no content; expected a text.", param=f"{place}.content")
        return "".join(_words(part, f"{place}.content.{number}") for number, part in enumerate(self.content))


def _words(part: Part, place: str) -> str:
    if part.type in _TEXTS and part.text is not None:
        return part.text
    if part.type == "refusal" and part.refusal is not None:
        return part.refusal
    raise ApiError(
        400,
        f"a part of type {part.type!r} cannot be read; expected parts of type 'text', with a text.",
        param=place,
        code="unsupported_content",
    )


class Conversation(NamedTuple):
    """What is asked, and the turns before it."""

    question: str
    history: tuple[Message, ...]


def conversation_of(turns: Sequence[Message], param: str) -> Conversation:
    """The turns as a question with a history; `param` is where they stood. Raises `ApiError`."""
    *history, last = turns
    if last.role != "user":
        raise ApiError(
            400,
            f"the last message is of role {last.role!r}; expected one of role 'user': the question.",
            param=param,
        )
    return Conversation(last.content, tuple(history))


class FilterFields(BaseModel):
    """Which documents may answer; see `hybridqa.Filter`."""

    model_config = ConfigDict(extra="forbid")

    doc_ids: list[str] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    since: str | None = None
    until: str | None = None


class Choices(BaseModel):
    """Where and how a question is looked for; see `RetrieveOptions`.

    Numbers end where one request would keep the server from all others.
    """

    model_config = ConfigDict(extra="forbid")

    collection: str | None = None  # None: the default one, or the only one that the key reaches
    k: int | None = Field(default=None, ge=1, le=1_000)
    modules: int | None = Field(default=None, ge=0, le=1_000)
    plugins: list[str] | None = None
    filter: FilterFields | None = None
    extractor: bool | None = None
    rerank: int | None = Field(default=None, ge=0, le=100)
    rewrite: bool | None = None
    hops: int | None = Field(default=None, ge=1, le=10)

    def options(self) -> AskOptions:
        """The same for `HybridQA.ask`."""
        given: dict[str, Any] = self.model_dump(exclude={"filter"})
        if self.filter is not None:
            fields = self.filter.model_dump()
            doc_ids = None if self.filter.doc_ids is None else tuple(self.filter.doc_ids)
            given["filter"] = Filter(**{**fields, "doc_ids": doc_ids})
        options: AskOptions = given  # type: ignore[assignment]  # the names are AskOptions' own: a test says so
        return options


class Extension(Choices):
    """What hybridqa can be asked beside the OpenAI API's parameters; see `AskOptions`."""

    neighbours: int | None = Field(default=None, ge=0, le=100)


class TextFormat(BaseModel):
    """How the answer is to be written."""

    type: str = "text"

    def check(self, param: str) -> None:
        """Raises `ApiError` for all but plain text."""
        if self.type != "text":
            raise ApiError(
                400,
                f"{param} {self.type!r} cannot be given; expected 'text'.",
                param=param,
                code="unsupported_parameter",
            )


class StreamOptions(BaseModel):
    """How a stream is told."""

    include_usage: bool = False


class ChatRequest(Body):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: list[Turn] = Field(min_length=1, max_length=MAX_TURNS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    response_format: TextFormat | None = None
    hybridqa: Extension = Extension()

    @model_validator(mode="before")
    @classmethod
    def _is_heard(cls, body: Any) -> Any:
        refuse(body, _UNHEARD_IN_CHAT)
        return body

    def conversation(self) -> Conversation:
        """The question, and the turns before it. Raises `ApiError`."""
        turns = [turn.message(f"messages.{place}") for place, turn in enumerate(self.messages)]
        return conversation_of(turns, "messages")

    def options(self) -> AskOptions:
        """How the question is to be answered. Raises `ApiError`."""
        if self.response_format is not None:
            self.response_format.check("response_format")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        if stop is not None and len(stop) > MAX_STOPS:
            raise ApiError(400, f"{len(stop)} texts end the answer; expected at most {MAX_STOPS}.", param="stop")
        options = self.hybridqa.options()
        options["mode"] = mode_of(self.model)
        options["max_tokens"] = self.max_completion_tokens or self.max_tokens
        options["temperature"], options["top_p"], options["seed"] = self.temperature, self.top_p, self.seed
        options["stop"] = stop
        return options


def mode_of(model: str) -> Mode:
    """The mode that a model's name stands for. Raises `ApiError`."""
    if model not in MODELS:
        raise ApiError(
            404,
            f"there is no model {model!r}; expected one of {', '.join(map(repr, MODELS))}.",
            param="model",
            code="model_not_found",
        )
    return MODELS[model]
