"""The prompts that a pair is put into: the one that serves, and others, so that a module does not hang on one wording.

Invariant: the first wording is exactly what the engine is asked in modules mode, and the teacher's prompt is what it is
asked with the chunk as its source.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from hybridqa.answering.prompt import PromptBuilder, messages_for
from hybridqa.training.packing import Example
from hybridqa.training.pairs import Pair
from hybridqa.training.synthesis import Curriculum
from hybridqa.types import Message

WORDINGS = ("serving", "bare")


def closed_example(prompts: PromptBuilder, pair: Pair, key: int, wording: int) -> Example:
    """The pair without its document, in one of `WORDINGS`."""
    messages = messages_for(pair.question) if wording == 0 else [Message("user", pair.question)]
    return Example(prompts.encode(messages), prompts.encode_answer(pair.answer), key)


def sourced_example(prompts: PromptBuilder, pair: Pair, key: int, lesson: Curriculum) -> Example:
    """The pair with the chunks that it came from, and no others, as its sources."""
    messages = messages_for(pair.question, lesson.sources(pair))
    return Example(prompts.encode(messages), prompts.encode_answer(pair.answer), key)


def lessons(prompts: PromptBuilder, lesson: Curriculum, *, reading: float, seed: int) -> list[list[Example]]:
    """The student's examples, in lists whose prompts begin alike: a list for each wording, and one for each chunk.

    Every pair is asked without its document. A share of them, `reading`, is asked with its chunk as well: a module that
    has learned to answer from memory alone would do so with the right passage in front of it, too.
    """
    closed: list[list[Example]] = [[] for _ in WORDINGS]
    sourced: dict[tuple[int, ...], list[Example]] = {}
    rng = random.Random(seed)
    for key, pair in enumerate(lesson.pairs):
        wording = key % len(WORDINGS)
        closed[wording].append(closed_example(prompts, pair, key, wording))
        if rng.random() < reading:
            read = (pair.passage, *pair.also)
            sourced.setdefault(read, []).append(sourced_example(prompts, pair, key, lesson))
    return [examples for examples in [*closed, *(sourced[read] for read in sorted(sourced))] if examples]


def contrasts(pairs: Sequence[Pair], *, most: int = 2, seed: int = 0) -> list[list[str]]:
    """For each pair, other pairs' questions, to which its answer is wrong; their answers are of its kind if possible.

    The same answer to another question is as likely as here for a model that knows only what answers look like.
    """
    rng = random.Random(seed)
    found = []
    for pair in pairs:
        others = [other for other in pairs if other.answer != pair.answer]
        rng.shuffle(others)
        digits = _has_digit(pair.answer)
        others.sort(key=lambda other: _has_digit(other.answer) != digits)
        found.append([other.question for other in others[:most]])
    return found


def _has_digit(text: str) -> bool:
    return any(char.isdigit() for char in text)
