"""What the retriever and the chat model have in common: whom they ask, and with which options.

Knows nothing about documents or messages. Invariant: an unknown name is an error, whether it is given to a constructor
or a call, and an option that is not given is the store's or the server's to decide.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from langchain_core.load.serializable import Serializable
from langchain_core.utils import secret_from_env
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator, model_validator

from hybridqa.answering.options import AskOptions, check_options, check_values
from hybridqa.config import Settings
from hybridqa.errors import InputError, StoreNotFoundError
from hybridqa.langchain.local import LocalSource
from hybridqa.langchain.remote import RemoteSource
from hybridqa.langchain.source import Source
from hybridqa.pipeline import HybridQA
from hybridqa.types import Filter

KEY_VARIABLE = "HYBRIDQA_API_KEY"
URL_VARIABLE = "HYBRIDQA_BASE_URL"
_FILTER = {field.name for field in fields(Filter)}


class Component(Serializable):
    """A LangChain component over a store or a server.

    One of `store` and `base_url` says whom to ask; with neither it is the server of HYBRIDQA_BASE_URL, or else the
    store that `HybridQA.open()` opens. A store given as a folder is opened at the first question and shared by all
    components of the process that name it; `close()` gives it back.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    store: HybridQA | str | Path | None = None  # an open store, which stays yours to close, or its folder
    settings: dict[str, Any] = Field(default_factory=dict)  # of a store given as a folder; as for `HybridQA.open`
    base_url: str | None = None  # of a running server, such as "http://127.0.0.1:8000/v1"
    api_key: SecretStr | None = Field(default_factory=secret_from_env(KEY_VARIABLE, default=None))  # for the server
    timeout: float | None = Field(default=None, gt=0)  # seconds, of a request to a server
    max_retries: int = Field(default=2, ge=0)  # of a request to a server

    collection: str | None = None  # whose documents; "default", or the only one that the api_key reaches
    k: int | None = None  # passages, at most
    filter: Filter | None = None  # which documents; a mapping is taken for their metadata, or for a Filter's own fields
    modules: int | None = None  # documents' modules that are plugged in, at most
    plugins: list[str] | None = None  # ids of plug-ins
    extractor: bool | None = None  # whether to use the collection's extractor
    rerank: int | None = None  # so many passages are ranked anew by the base model
    rewrite: bool | None = None  # whether a follow-up question that cannot stand alone is restated
    hops: int | None = None  # searches, each for what those before it found

    _source: Source = PrivateAttr()

    @field_validator("filter", mode="before")
    @classmethod
    def _read_filter(cls, value: Any) -> Filter | None:
        return as_filter(value)

    @model_validator(mode="after")
    def _know_whom(self) -> Self:
        if self.store is not None and self.base_url is not None:
            raise InputError(
                f"store={self._store_name()!r} and base_url={self.base_url!r} are two places to ask; expected one."
            )
        if self.settings and (self.store is None or isinstance(self.store, HybridQA)):
            raise InputError(
                f"settings={self.settings!r} are of a store that is opened here; expected store= to be its folder."
            )
        if "generator_key" in self.settings:
            raise InputError("settings cannot hold the generator_key, a secret that answers do not need; leave it out.")
        check_values("?", cast(AskOptions, self._own_options()))
        url = self._url()
        if url is None:
            self._check_store()
            self._source = LocalSource(self.store, self.settings)
        else:
            key = self.api_key.get_secret_value() if self.api_key else None
            self._source = RemoteSource(url, key, timeout=self.timeout, max_retries=self.max_retries)
        return self

    def _url(self) -> str | None:
        return self.base_url or (os.environ.get(URL_VARIABLE) if self.store is None else None)

    def _check_store(self) -> None:
        """Raises `StoreNotFoundError` for a folder without a store: now, and not at the first question."""
        if not isinstance(self.store, str | Path):
            return
        resolved = Settings.load(self.store, **self.settings)
        if not resolved.catalog_path.is_file():
            raise StoreNotFoundError(
                f"there is no store at {str(self.store)!r}; expected a folder that `hybridqa --store {self.store} "
                "init` has made."
            )

    @classmethod
    def _option_names(cls) -> frozenset[str]:
        """The fields that are options of a question."""
        return frozenset(("collection", "k", "filter", "modules", "plugins", "extractor", "rerank", "rewrite", "hops"))

    def _own_options(self) -> dict[str, Any]:
        """What the constructor was given; what is None is left to the store."""
        return {name: value for name in sorted(self._option_names()) if (value := getattr(self, name)) is not None}

    def _options(self, options: type, given: Mapping[str, Any]) -> dict[str, Any]:
        """The constructor's options with a call's in their place.

        Raises `TypeError` for a name that is none, `InputError` for a value that cannot be used.
        """
        check_options(given, options)
        called = {name: value for name, value in given.items() if value is not None}
        if "filter" in called:
            called["filter"] = as_filter(called["filter"])
        merged = {**self._own_options(), **called}
        check_values("?", cast(AskOptions, {name: value for name, value in merged.items() if name != "history"}))
        return merged

    def _store_name(self) -> str | None:
        if isinstance(self.store, HybridQA):
            return str(self.store.settings.store.resolve())
        return None if self.store is None else str(self.store)

    def _described(self) -> dict[str, Any]:
        """Whom it asks and how, without secrets: what caches and traces tell two components apart by."""
        options = {**self._own_options()}
        if self.filter is not None:
            options["filter"] = filter_fields(self.filter)
        index = {"name": self.store.settings.name} if isinstance(self.store, HybridQA) else self.settings
        return {"store": self._store_name(), "settings": dict(index), "base_url": self._url(), **options}

    def close(self) -> None:
        """Gives back what it has opened: connections, or a store that no other component uses. It answers no more."""
        self._source.close()

    async def aclose(self) -> None:
        """`close` for asyncio."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def as_filter(value: Any) -> Filter | None:
    """A filter from one, or from a mapping: the fields of one, or else values of the documents' metadata.

    Raises `InputError` where both could be meant.
    """
    if value is None or isinstance(value, Filter):
        return value
    if not isinstance(value, Mapping):
        raise InputError(
            f"filter={value!r} cannot be used; expected a Filter, or metadata such as {{'team': 'travel'}}."
        )
    _refuse_operators(value)
    named = set(value) & _FILTER
    if not named:
        return Filter(metadata=dict(value))
    if named != set(value):
        raise InputError(
            f"filter={dict(value)!r} mixes {', '.join(map(repr, sorted(named)))} of a Filter with other names; "
            "expected metadata alone, or Filter(metadata={…}, …)."
        )
    doc_ids = value.get("doc_ids")
    return Filter(
        doc_ids=tuple(doc_ids) if isinstance(doc_ids, list) else doc_ids,
        metadata=value.get("metadata") or {},
        since=value.get("since"),
        until=value.get("until"),
    )


def filter_fields(chosen: Filter) -> dict[str, Any]:
    """A filter's fields that say something, as JSON has them."""
    given = {field.name: getattr(chosen, field.name) for field in fields(Filter)}
    if chosen.doc_ids is not None:
        given["doc_ids"] = list(chosen.doc_ids)
    return {name: value for name, value in given.items() if value or value == []} or {"metadata": {}}


def _refuse_operators(value: Mapping[Any, Any]) -> None:
    """Raises `InputError` for a vector store's query language: it would find nothing, and say nothing."""
    for key, wanted in value.items():
        inner = wanted if isinstance(wanted, Mapping) else {}
        for name in (key, *inner):
            if isinstance(name, str) and name.startswith("$"):
                raise InputError(
                    f"filter={dict(value)!r} has the operator {name!r}, which is not known; expected a value, a "
                    "list of values any of which fits, or Filter(since=…, until=…) for dates."
                )
