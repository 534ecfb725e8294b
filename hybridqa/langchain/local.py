"""A source in this process: an open store of the caller's, or a store's folder, opened at the first question.

Knows nothing about LangChain. Invariant: components that name the same folder with the same settings share one open
store, so its models are loaded once; it is closed when the last of them that still lives is.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

from hybridqa.answering.options import AskOptions, RetrieveOptions
from hybridqa.config import Settings
from hybridqa.errors import EngineClosedError, InputError
from hybridqa.langchain.source import Json, Reply
from hybridqa.pipeline import HybridQA
from hybridqa.server.found import found
from hybridqa.server.modes import MODELS
from hybridqa.server.replies import extension, finish_reason, usage
from hybridqa.types import DEFAULT_COLLECTION, Answer, Mode


class LocalSource:
    """One component's hold on a store."""

    def __init__(self, store: HybridQA | str | Path | None, settings: Mapping[str, Any]) -> None:
        """Opens nothing yet; `settings` are those of `HybridQA.open`."""
        self._store = store
        self._settings = dict(settings)
        self._closed = False

    def _opened(self) -> HybridQA:
        if self._closed:
            raise EngineClosedError("this component is closed; expected an open one: make another.")
        return self._store if isinstance(self._store, HybridQA) else _SHARED.take(self, self._store, self._settings)

    def retrieve(self, question: str, options: RetrieveOptions) -> list[Json]:
        """See `Source`."""
        store = self._opened()
        return found(store, store.retrieve(question, **options), options.get("collection", DEFAULT_COLLECTION))

    async def aretrieve(self, question: str, options: RetrieveOptions) -> list[Json]:
        """See `Source`."""
        store = await asyncio.to_thread(self._opened)
        route = await store.aretrieve(question, **options)
        return await asyncio.to_thread(found, store, route, options.get("collection", DEFAULT_COLLECTION))

    def ask(self, question: str, model: str, options: AskOptions) -> Reply:
        """See `Source`."""
        return _reply(self._opened().ask(question, **_with_mode(model, options)), options)

    async def aask(self, question: str, model: str, options: AskOptions) -> Reply:
        """See `Source`."""
        store = await asyncio.to_thread(self._opened)
        return _reply(await store.aask(question, **_with_mode(model, options)), options)

    def stream(self, question: str, model: str, options: AskOptions) -> Iterator[str | Reply]:
        """See `Source`."""
        pieces = self._opened().stream(question, **_with_mode(model, options))
        with closing(pieces):  # type: ignore[type-var]  # it is a generator
            for piece in pieces:
                yield _reply(piece, options) if isinstance(piece, Answer) else piece.text

    async def astream(self, question: str, model: str, options: AskOptions) -> AsyncIterator[str | Reply]:
        """See `Source`."""
        store = await asyncio.to_thread(self._opened)
        async with aclosing(store.astream(question, **_with_mode(model, options))) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield _reply(piece, options) if isinstance(piece, Answer) else piece.text

    def token_ids(self, text: str) -> list[int]:
        """See `Source`."""
        return list(self._opened().prompts.encode_plain(text))

    def close(self) -> None:
        """Gives the store back; one that the caller opened stays open."""
        self._closed = True
        _SHARED.give_back(self)


class SharedStores:
    """The stores of this process that components have opened."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[tuple[str, str], HybridQA] = {}
        self._holders: dict[tuple[str, str], WeakSet[LocalSource]] = {}

    def take(self, holder: LocalSource, folder: str | Path | None, settings: Mapping[str, Any]) -> HybridQA:
        """The open store of a folder, for a holder to use until it gives it back. Raises as `HybridQA.open` does."""
        resolved = Settings.load(folder, **settings)
        key = (str(resolved.store.resolve()), resolved.model_dump_json(exclude={"store"}))
        with self._lock:
            if key not in self._stores:
                self._stores[key], self._holders[key] = HybridQA.open(folder, **settings), WeakSet()
            self._holders[key].add(holder)
            return self._stores[key]

    def give_back(self, holder: LocalSource) -> None:
        """Closes the stores that nobody else holds."""
        with self._lock:  # whoever opens one of them now waits until it is closed
            for key, holders in list(self._holders.items()):
                if holder not in holders:
                    continue
                holders.discard(holder)
                if not holders:
                    del self._holders[key]
                    self._stores.pop(key).close()


_SHARED = SharedStores()


def mode_of(model: str) -> Mode:
    """The mode that a model's name stands for. Raises `InputError`."""
    if model not in MODELS:
        raise InputError(f"there is no model {model!r}; expected one of {', '.join(map(repr, MODELS))}.")
    return MODELS[model]


def _with_mode(model: str, options: AskOptions) -> AskOptions:
    return cast(AskOptions, {**options, "mode": mode_of(model)})


def _reply(answer: Answer, options: AskOptions) -> Reply:
    told = extension(answer, options.get("collection", DEFAULT_COLLECTION))
    return Reply(answer.text, finish_reason(answer), usage(answer.usage), told)
