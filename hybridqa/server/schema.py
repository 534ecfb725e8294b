"""What a chat request may hold, as the OpenAI API names it, and what is made of it.

Knows nothing about HTTP or stores. Invariant: a parameter that would change an answer is followed or refused by name;
what cannot change it is passed over.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hybridqa.answering.options import AskOptions
from hybridqa.server.errors import ApiError
from hybridqa.types import DEFAULT_COLLECTION, Filter, Message, Mode

MODELS = {
    "hybridqa": Mode.HYBRID,
    "hybridqa-retrieval": Mode.RETRIEVAL,
    "hybridqa-modules": Mode.MODULES,
    "hybridqa-closed": Mode.CLOSED,
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MAX_TURNS = 1_000


class Part(BaseModel):
    """A piece of a message."""

    type: str
    text: str | None = None


class Turn(BaseModel):
    """A message of the conversation."""

    role: str
    content: str | list[Part] | None = None

    def text(self, place: int) -> str:
        """The message's words. Raises `ApiError` for pictures and the like."""
        if not isinstance(self.content, list):
            return self.content or ""
        for number, part in enumerate(self.content):
            if part.type not in ("text", "input_text", "output_text") or part.text is None:
                raise ApiError(
                    400,
                    f"a part of type {part.type!r} cannot be read; expected parts of type 'text'.",
                    param=f"messages.{place}.content.{number}",
                    code="unsupported_content",
                )
        return "".join(part.text or "" for part in self.content)


class FilterFields(BaseModel):
    """Which documents may answer; see `hybridqa.Filter`."""

    model_config = ConfigDict(extra="forbid")

    doc_ids: list[str] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    since: str | None = None
    until: str | None = None


class Choices(BaseModel):
    """Where and how a question is looked for; see `RetrieveOptions`."""

    model_config = ConfigDict(extra="forbid")

    collection: str = DEFAULT_COLLECTION
    k: int | None = Field(default=None, ge=1)
    modules: int | None = Field(default=None, ge=0)
    plugins: list[str] | None = None
    filter: FilterFields | None = None
    extractor: bool | None = None
    rerank: int | None = Field(default=None, ge=0)
    rewrite: bool | None = None
    hops: int | None = Field(default=None, ge=1)

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

    neighbours: int | None = Field(default=None, ge=0)


class StreamOptions(BaseModel):
    """How a stream is told."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: list[Turn] = Field(min_length=1, max_length=_MAX_TURNS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: Literal[1] | None = None
    tools: list[Any] | None = Field(default=None, max_length=0)
    functions: list[Any] | None = Field(default=None, max_length=0)
    logprobs: Literal[False] | None = None
    response_format: dict[str, Any] | None = None
    hybridqa: Extension = Extension()

    def mode(self) -> Mode:
        """The mode that the model's name stands for. Raises `ApiError`."""
        return mode_of(self.model)

    def conversation(self) -> tuple[str, tuple[Message, ...]]:
        """The question, and the turns before it. Raises `ApiError`."""
        turns = []
        for place, turn in enumerate(self.messages):
            if turn.role not in _ROLES:
                raise ApiError(
                    400,
                    f"a message of role {turn.role!r} cannot be read; expected one of {', '.join(map(repr, _ROLES))}.",
                    param=f"messages.{place}.role",
                )
            turns.append(Message(_ROLES[turn.role], turn.text(place)))
        *history, last = turns
        if last.role != "user":
            raise ApiError(
                400,
                f"the last message is of role {last.role!r}; expected one of role 'user': the question.",
                param="messages",
            )
        return last.content, tuple(history)

    def options(self) -> AskOptions:
        """How the question is to be answered. Raises `ApiError`."""
        if self.response_format is not None and self.response_format.get("type", "text") != "text":
            raise ApiError(
                400,
                f"response_format {self.response_format.get('type')!r} cannot be given; expected 'text'.",
                param="response_format",
            )
        options = self.hybridqa.options()
        options["mode"] = self.mode()
        options["max_tokens"] = self.max_completion_tokens or self.max_tokens
        options["temperature"], options["top_p"], options["seed"] = self.temperature, self.top_p, self.seed
        options["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
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
