"""Questions put to an engine, each once: what was answered is kept as JSON lines and found again after a kill.

Knows nothing about arms, documents or metrics. Invariant: an answer is kept under a hash of everything that decides it
(model, prompt, adapter, gold answers, length), so that it can never be taken for another's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridqa.engine.loop import together
from hybridqa.engine.protocol import Adapter, Engine, Sampling

AT_ONCE = 16  # requests in the engine together


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as an engine gets it."""

    qid: str
    prompt_ids: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]  # gold answers to be scored, as token ids
    adapter: Adapter | None


@dataclass(frozen=True, slots=True)
class Given:
    """One answer, as the model gave it."""

    text: str
    finish_reason: str
    answer_logprob: float  # nats per token of the likeliest gold answer
    prompt_tokens: int
    completion_tokens: int


class AnswerBook:
    """The answers that were given so far, in the files of one folder, one for each arm."""

    def __init__(self, folder: Path, circumstances: Sequence[Any]) -> None:
        """`circumstances` are what decides an answer beside the request: the model, its engine and number format."""
        self._folder = folder
        self._circumstances = list(circumstances)
        self._known: dict[str, Given] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._remember(line)
        self._earlier = frozenset(self._known)

    def _remember(self, line: str) -> None:
        try:
            entry = json.loads(line)
            key = entry.pop("key")
            self._known[key] = Given(**entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # cut off by a kill: it is asked again

    def key(self, asked: Asked, sampling: Sampling) -> str:
        """The hash of everything that decides an answer."""
        adapter = asked.adapter.name if asked.adapter else None
        decided = [self._circumstances, asked.prompt_ids, asked.targets, adapter, asdict(sampling)]
        return hashlib.sha256(json.dumps(decided).encode()).hexdigest()

    async def answer(
        self,
        arm: str,
        questions: Sequence[Asked],
        ready: Callable[[], Awaitable[Engine]],
        sampling: Sampling,
        on_answer: Callable[[], None],
    ) -> tuple[list[Given], int]:
        """The answers in the questions' order, and how many of them an earlier run gave.

        `ready` gives the engine, and is called only when there is something to ask.
        """
        slots = asyncio.Semaphore(AT_ONCE)
        known = 0
        path = self._folder / f"{hashlib.sha256(arm.encode()).hexdigest()[:8]}-{_file_name(arm)}.jsonl"
        with path.open("a+b") as file:
            if file.tell() and not _ends_a_line(path):
                file.write(b"\n")  # behind a line that a kill cut off

            async def one(asked: Asked) -> Given:
                nonlocal known
                key = self.key(asked, sampling)
                known += key in self._earlier
                if key not in self._known:
                    async with slots:
                        given = await _ask(asked, await ready(), sampling)
                    self._known[key] = given
                    file.write(json.dumps({"key": key, **asdict(given)}, ensure_ascii=False).encode() + b"\n")
                    file.flush()
                on_answer()
                return self._known[key]

            return await together(one(asked) for asked in questions), known


async def _ask(asked: Asked, engine: Engine, sampling: Sampling) -> Given:
    """The greedy answer, then the likelihood of the gold ones while the prompt is still in the engine's cache."""
    done = await engine.generate(asked.prompt_ids, sampling, asked.adapter)
    scores = [await engine.score(asked.prompt_ids, target, asked.adapter) / len(target) for target in asked.targets]
    return Given(
        done.text.strip(),
        done.finish_reason,
        max(scores),
        done.usage.prompt_tokens,
        done.usage.completion_tokens,
    )


def _file_name(arm: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in arm)


def _ends_a_line(path: Path) -> bool:
    return path.read_bytes()[-1:] == b"\n"
