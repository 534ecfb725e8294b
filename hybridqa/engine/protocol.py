"""What an engine is: token ids in, text out, with at most one composed adapter per request.

Knows nothing about documents, prompts or modules. Invariant: a request that cannot be served raises `EngineError`
(or an `AdapterError`) for itself alone; the engine goes on answering the others.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from hybridqa.errors import EngineError
from hybridqa.types import Usage


@dataclass(frozen=True, slots=True)
class Adapter:
    """A composed stack on disk: a PEFT LoRA folder whose scale is 1 (alpha = rank)."""

    name: str  # a hash of its parts; the same name always means the same bytes
    path: Path
    rank: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode."""

    max_tokens: int = 128
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    scope: str = (
        ""  # whose request it is: what an engine keeps of its prompt, only requests of the same scope profit by
    )


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed completion; the last one carries `finish_reason` and `usage`."""

    text: str
    finish_reason: str | None = None  # "stop", "length" or "abort"
    usage: Usage | None = None
    logprob: float = 0.0  # sum of this piece's token log-probabilities


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole completion."""

    text: str
    finish_reason: str  # "stop", "length" or "abort"
    usage: Usage = field(default_factory=Usage)
    logprob: float = 0.0  # sum over completion tokens, natural log
    first_token_s: float = 0.0  # seconds from submission to the first token
    total_s: float = 0.0


@runtime_checkable
class Engine(Protocol):
    """Generates from token ids; safe to call from many tasks of its own event loop at once."""

    @property
    def max_model_len(self) -> int:
        """Prompt plus completion, in tokens."""
        ...

    @property
    def max_lora_rank(self) -> int:
        """The largest rank of one adapter."""
        ...

    async def start(self) -> None:
        """Loads the model; a second call does nothing."""
        ...

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: Adapter | None = None
    ) -> Completion:
        """One whole completion; cancelling the task stops the generation in the engine."""
        ...

    def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: Adapter | None = None
    ) -> AsyncIterator[Delta]:
        """The completion in pieces; closing the iterator stops the generation in the engine."""
        ...

    async def score(
        self, prompt_ids: Sequence[int], target_ids: Sequence[int], adapter: Adapter | None = None, *, scope: str = ""
    ) -> float:
        """The log-probability, in nats, of exactly `target_ids` behind the prompt: the sum over its tokens.

        `scope` is as `Sampling.scope`.
        """
        ...

    async def evict(self, name: str) -> None:
        """Forgets an adapter, so that its folder may be deleted; requests that use it go on."""
        ...

    async def close(self) -> None:
        """Frees the model; later calls raise `EngineClosedError`."""
        ...


async def completion_of(deltas: AsyncIterator[Delta]) -> Completion:
    """The whole of a stream that begins now. Raises what the stream raises."""
    begun = time.perf_counter()
    first: float | None = None
    pieces: list[str] = []
    logprob = 0.0
    async for delta in deltas:
        first = time.perf_counter() - begun if first is None else first
        pieces.append(delta.text)
        logprob += delta.logprob
        if delta.finish_reason is not None:
            total = time.perf_counter() - begun
            return Completion("".join(pieces), delta.finish_reason, delta.usage or Usage(), logprob, first, total)
    raise EngineError("the engine ended a request without a reason. Ask again.")
