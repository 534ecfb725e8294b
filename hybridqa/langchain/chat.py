"""`ChatHybridQA`: hybridqa as a LangChain chat model, whose model's name is the mode.

Knows nothing of how questions are answered. Invariant: the pieces of a stream sum to a whole message, of which the
last one alone has citations and usage.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, field_validator, model_validator

from hybridqa.answering.options import AskOptions
from hybridqa.langchain import messages as told
from hybridqa.langchain.component import Component
from hybridqa.langchain.local import LocalSource, mode_of
from hybridqa.langchain.source import Reply


class ChatHybridQA(Component, BaseChatModel):
    """A chat model that answers from a store's documents; see `Component` for whom it asks.

    `model` is the mode: "hybridqa", "hybridqa-retrieval", "hybridqa-modules" or "hybridqa-closed". It and the options
    may also be given to a call: `chat.invoke("...", model="hybridqa-closed", temperature=0.7)`. There are no tools, no
    structured output and no pictures.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, populate_by_name=True)

    model: str = "hybridqa"
    temperature: float | None = None  # 0 (greedy) to 2
    max_tokens: int | None = None  # of the answer, at most
    top_p: float | None = None  # above 0, to 1
    stop: list[str] | None = Field(default=None, alias="stop_sequences")  # texts that end the answer
    seed: int | None = None  # of what is drawn
    neighbours: int | None = None  # passages on each side that come with one
    streaming: bool = False  # whether `invoke` streams for those who listen

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value or None

    @model_validator(mode="after")
    def _know_model(self) -> Self:
        if isinstance(self._source, LocalSource):
            mode_of(self.model)
        return self

    @classmethod
    def _option_names(cls) -> frozenset[str]:
        own = ("temperature", "max_tokens", "top_p", "stop", "seed", "neighbours")
        return super()._option_names().union(own)

    @property
    def model_name(self) -> str:
        """The model, as other chat models call it."""
        return self.model

    @property
    def _llm_type(self) -> str:
        return "hybridqa-chat"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"model": self.model, **self._described()}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return super()._get_ls_params(stop=stop or self.stop, **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """The base model's tokens. Raises `NotImplementedError` for a server, which does not tell them."""
        return self.custom_get_token_ids(text) if self.custom_get_token_ids else self._source.token_ids(text)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        question, model, options = self._asked(messages, stop, kwargs)
        return _result(self._source.ask(question, model, options), model)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        question, model, options = self._asked(messages, stop, kwargs)
        return _result(await self._source.aask(question, model, options), model)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        question, model, options = self._asked(messages, stop, kwargs)
        for said in self._source.stream(question, model, options):
            if said:
                yield _chunk(said, model)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        question, model, options = self._asked(messages, stop, kwargs)
        async for said in self._source.astream(question, model, options):
            if said:
                yield _chunk(said, model)

    def _asked(
        self, messages: Sequence[BaseMessage], stop: list[str] | str | None, given: Mapping[str, Any]
    ) -> tuple[str, str, AskOptions]:
        """The question, the model and the options of a call. Raises `InputError`, and `TypeError` for unknown names."""
        question, history = told.as_question(messages)
        called = {name: value for name, value in given.items() if name not in ("model", "stream")}
        for name, instead in (("mode", "model='hybridqa-retrieval' or the like"), ("history", "messages")):
            if name in called:
                raise TypeError(f"{name!r} is no option of a chat model; expected {instead}.")
        if stop:
            called["stop"] = [stop] if isinstance(stop, str) else stop
        options = self._options(AskOptions, called)
        options["history"] = history
        return question, given.get("model") or self.model, cast(AskOptions, options)


def _result(reply: Reply, model: str) -> ChatResult:
    message = told.whole(reply, model)
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunk(said: str | Reply, model: str) -> ChatGenerationChunk:
    message: AIMessageChunk = told.piece(said) if isinstance(said, str) else told.last(said, model)
    return ChatGenerationChunk(message=message)
