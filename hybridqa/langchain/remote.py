"""A source behind a URL: a `hybridqa serve` that is running somewhere, by the `openai` client.

Knows nothing about LangChain or stores. Invariant: no connection outlives its event loop, and what a server refuses is
raised as the `openai` client raises it.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit
from weakref import WeakKeyDictionary

from hybridqa.answering.options import AskOptions, RetrieveOptions
from hybridqa.errors import EngineClosedError, EngineError, InputError, MissingPackageError
from hybridqa.langchain.source import Json, Reply
from hybridqa.types import Filter, Message

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream, OpenAI, Stream
    from openai.types.chat import ChatCompletionChunk, ChatCompletionStreamOptionsParam

_API = ("max_tokens", "temperature", "top_p", "stop", "seed")  # options that the OpenAI API has
_USAGE: ChatCompletionStreamOptionsParam = {"include_usage": True}


class RemoteSource:
    """One component's way to a server."""

    def __init__(self, base_url: str, api_key: str | None, *, timeout: float | None, max_retries: int) -> None:
        """`timeout` is in seconds, of a request; None: the client's own. Connects to nothing yet."""
        if urlsplit(base_url).scheme not in ("http", "https") or not urlsplit(base_url).netloc:
            raise InputError(f"base_url={base_url!r} is no address; expected one such as 'http://127.0.0.1:8000/v1'.")
        self.base_url = base_url if urlsplit(base_url).path.strip("/") else urljoin(base_url, "/v1")
        self._api_key = api_key or "none"  # the client asks for one; a server without keys does not look
        self._limits: Json = {"max_retries": max_retries, **({} if timeout is None else {"timeout": timeout})}
        self._of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncOpenAI] = WeakKeyDictionary()
        self._closed = False

    @cached_property
    def _sync(self) -> OpenAI:
        client: OpenAI = _openai().OpenAI(base_url=self.base_url, api_key=self._api_key, **self._limits)
        weakref.finalize(self, client.close)  # few programs close their components
        return client

    def _client(self) -> OpenAI:
        self._check_open()
        return self._sync

    def _aclient(self) -> AsyncOpenAI:
        """The running loop's own, which keeps no idle connections: nobody would close them when the loop ends."""
        self._check_open()
        loop = asyncio.get_running_loop()
        if loop not in self._of_loops:
            import httpx

            openai = _openai()
            http = openai.DefaultAsyncHttpxClient(limits=httpx.Limits(max_connections=100, max_keepalive_connections=0))
            self._of_loops[loop] = openai.AsyncOpenAI(
                base_url=self.base_url, api_key=self._api_key, http_client=http, **self._limits
            )
        return self._of_loops[loop]

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("this component is closed; expected an open one: make another.")

    def retrieve(self, question: str, options: RetrieveOptions) -> list[Json]:
        """See `Source`."""
        body = {"query": question, **_choices(options)}
        return _data(self._client().post("/search", body=body, cast_to=object))

    async def aretrieve(self, question: str, options: RetrieveOptions) -> list[Json]:
        """See `Source`."""
        body = {"query": question, **_choices(options)}
        return _data(await self._aclient().post("/search", body=body, cast_to=object))

    def ask(self, question: str, model: str, options: AskOptions) -> Reply:
        """See `Source`."""
        return self._reply(self._client().chat.completions.create(**_request(question, model, options)).to_dict())

    async def aask(self, question: str, model: str, options: AskOptions) -> Reply:
        """See `Source`."""
        done = await self._aclient().chat.completions.create(**_request(question, model, options))
        return self._reply(done.to_dict())

    def stream(self, question: str, model: str, options: AskOptions) -> Iterator[str | Reply]:
        """See `Source`."""
        written, completions = _Written(), self._client().chat.completions
        chunks: Stream[ChatCompletionChunk]
        chunks = completions.create(**_request(question, model, options), stream=True, stream_options=_USAGE)
        with chunks:
            for chunk in chunks:
                if text := written.add(chunk.to_dict()):
                    yield text
        yield self._reply(written.whole())

    async def astream(self, question: str, model: str, options: AskOptions) -> AsyncIterator[str | Reply]:
        """See `Source`."""
        written, completions = _Written(), self._aclient().chat.completions
        chunks: AsyncStream[ChatCompletionChunk]
        chunks = await completions.create(**_request(question, model, options), stream=True, stream_options=_USAGE)
        async with chunks:
            async for chunk in chunks:
                if text := written.add(chunk.to_dict()):
                    yield text
        yield self._reply(written.whole())

    def _reply(self, done: Json) -> Reply:
        if "hybridqa" not in done or "usage" not in done:
            raise EngineError(
                f"{self.base_url!r} gave no whole answer of hybridqa's; expected a running `hybridqa serve`."
            )
        (choice,) = done["choices"]
        message = choice["message"]
        annotations = message.get("annotations") or ()
        return Reply(
            message["content"] or "",
            choice["finish_reason"],
            done["usage"],
            done["hybridqa"],
            tuple(urljoin(self.base_url, one["url_citation"]["url"]) for one in annotations),
            done["id"],
        )

    def token_ids(self, text: str) -> list[int]:
        """A server tells no tokens: always raises `NotImplementedError`."""
        raise NotImplementedError(
            "a server's tokens cannot be counted from here; expected a count of your own: give "
            "custom_get_token_ids, or count with token_counter='approximate'."
        )

    def close(self) -> None:
        """Closes the connections."""
        self._closed = True
        if "_sync" in self.__dict__:
            self._sync.close()


class _Written:
    """A stream's chunks, put together."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._done: Json = {}
        self._finish_reason = "stop"
        self._annotations: list[Json] = []

    def add(self, chunk: Json) -> str:
        """The text of a chunk."""
        told = {name: chunk[name] for name in ("id", "usage", "hybridqa") if chunk.get(name) is not None}
        self._done |= told
        text = ""
        for choice in chunk["choices"]:
            delta = choice["delta"]
            text += delta.get("content") or ""
            self._annotations += delta.get("annotations") or ()
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._text.append(text)
        return text

    def whole(self) -> Json:
        """The same in the shape of an answer that was not streamed."""
        message = {"content": "".join(self._text), "annotations": self._annotations}
        return {**self._done, "choices": [{"message": message, "finish_reason": self._finish_reason}]}


def _request(question: str, model: str, options: AskOptions) -> Json:
    turns = [*options.get("history", ()), Message("user", question)]
    api = {name: value for name, value in options.items() if name in _API}
    choices = {name: value for name, value in _choices(options).items() if name not in (*_API, "history")}
    return {
        "model": model,
        "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
        "extra_body": {"hybridqa": choices},
        **api,
    }


def _choices(options: Mapping[str, Any]) -> Json:
    """The options as JSON has them."""
    given = dict(options)
    if isinstance(chosen := given.get("filter"), Filter):
        given["filter"] = {
            "doc_ids": None if chosen.doc_ids is None else list(chosen.doc_ids),
            "metadata": dict(chosen.metadata),
            "since": chosen.since,
            "until": chosen.until,
        }
    if "history" in given:
        given["history"] = [{"role": turn.role, "content": turn.content} for turn in given["history"]]
    return given


def _data(answered: Any) -> list[Json]:
    if not isinstance(answered, dict) or not isinstance(answered.get("data"), list):
        raise EngineError(
            f"the server answered {answered!r:.200}; expected a list of passages, as of `hybridqa serve`."
        )
    data: list[Json] = answered["data"]
    return data


def _openai() -> Any:
    try:
        import openai
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "base_url needs the openai client; install it with `pip install 'hybridqa[langchain]'`.", name="openai"
        ) from error
    return openai
