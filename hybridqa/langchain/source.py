"""Where LangChain components have their answers from: what a store in this process and a server have in common.

Knows nothing about LangChain. Invariant: a reply says the same, in the same words, whichever of the two gave it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from hybridqa.answering.options import AskOptions, RetrieveOptions

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as the HTTP API tells it."""

    text: str
    finish_reason: str
    usage: Json  # prompt_tokens, completion_tokens
    extension: Json  # citations, modules, mode, abstention and so on
    urls: tuple[str, ...] = ()  # of the cited stretches, one for each marker and citation, in their order; or none
    reply_id: str | None = None


class Source(Protocol):
    """What finds passages and answers questions; the options are those of `HybridQA`."""

    def retrieve(self, question: str, options: RetrieveOptions) -> list[Json]:
        """The passages in the shape of `POST /v1/search`."""
        ...

    async def aretrieve(self, question: str, options: RetrieveOptions) -> list[Json]:
        """`retrieve` for asyncio."""
        ...

    def ask(self, question: str, model: str, options: AskOptions) -> Reply:
        """The answer."""
        ...

    async def aask(self, question: str, model: str, options: AskOptions) -> Reply:
        """`ask` for asyncio."""
        ...

    def stream(self, question: str, model: str, options: AskOptions) -> Iterator[str | Reply]:
        """The answer's text as it comes, then all of it; closing the iterator ends the answer."""
        ...

    def astream(self, question: str, model: str, options: AskOptions) -> AsyncIterator[str | Reply]:
        """`stream` for asyncio."""
        ...

    def token_ids(self, text: str) -> list[int]:
        """A text in the base model's tokens."""
        ...

    def close(self) -> None:
        """Lets go of what the source has opened."""
        ...
