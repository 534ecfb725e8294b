"""Who writes synthetic data: the serving engine, or a stronger model behind an OpenAI-compatible endpoint.

A prompt has two forms, a text to continue and a conversation; each generator takes the form that suits it. Knows
nothing about what the texts are for. Invariant: there is one completion for each prompt, in order; a prompt that a
model has no room for gets an empty one that is "abort"ed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.engine.protocol import Completion, Sampling
from hybridqa.types import Message

Complete = Callable[[Sequence[Sequence[int]], Sampling], list[Completion]]  # token ids of prompts → completions
NO_ROOM = Completion("", "abort")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One thing to write."""

    text: str  # for a base model to continue
    messages: tuple[Message, ...] = ()  # for a model that converses
    stop: str = "\n"  # ends the continuation; a conversation ends by itself


class Generator(Protocol):
    """Writes texts."""

    @property
    def identity(self) -> str:
        """Names the model and where it runs, without secrets: two generators of one identity write alike."""
        ...

    @property
    def strong(self) -> bool:
        """Whether it is worth asking for much: an instruct model behind an endpoint."""
        ...

    def write(self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0) -> list[Completion]:
        """A completion for each prompt. Raises `EngineError` or `ConfigError` when it cannot write."""
        ...


class EngineGenerator:
    """The serving engine, as a base model that continues texts."""

    strong = False

    def __init__(self, complete: Complete, prompts: PromptBuilder, *, max_model_len: int, identity: str) -> None:
        self._complete = complete
        self._prompts = prompts
        self._max_model_len = max_model_len
        self.identity = identity

    def write(self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float = 0.0) -> list[Completion]:
        """See `Generator`."""
        written = [NO_ROOM] * len(prompts)
        for stop in sorted({prompt.stop for prompt in prompts}):
            places = [place for place, prompt in enumerate(prompts) if prompt.stop == stop]
            ids = [self._prompts.encode_plain(prompts[place].text) for place in places]
            sampling = Sampling(max_tokens=max_tokens, temperature=temperature, stop=(stop,), seed=0)
            for place, done in zip(places, self._fitting(ids, sampling), strict=True):
                written[place] = done
        return written

    def answer(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[Completion]:
        """What the model says in conversations put into its chat template: what it would say when it serves."""
        ids = [self._prompts.encode(messages) for messages in conversations]
        return self._fitting(ids, sampling)

    def _fitting(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        room = self._max_model_len - sampling.max_tokens
        fitting = [ids for ids in prompts if len(ids) <= room]
        done = iter(self._complete(fitting, sampling) if fitting else [])
        return [next(done) if len(ids) <= room else NO_ROOM for ids in prompts]
