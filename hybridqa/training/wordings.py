"""The prompts that a pair is put into: the one that serves, and others, so that a module does not hang on one wording.

And, for what is learned as plain text, the document's own words. Invariant: the first wording is exactly what the
engine is asked in modules mode, and the teacher's prompt is what it is asked with the chunk as its source.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from hybridqa.answering.prompt import PromptBuilder, messages_for
from hybridqa.training.contexts import student_lists, taught_example
from hybridqa.training.packing import Example
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import Recipe
from hybridqa.training.synthesis import Curriculum
from hybridqa.types import Message, ModuleKind

WORDINGS = ("serving", "bare")
TEXT_TOKENS = 1024  # of one row of plain text, all of whose logits are computed


def closed_example(prompts: PromptBuilder, pair: Pair, key: int, wording: int) -> Example:
    """The pair without its document, in one of `WORDINGS`."""
    messages = messages_for(pair.question) if wording == 0 else [Message("user", pair.question)]
    return Example(prompts.encode(messages), prompts.encode_answer(pair.answer), key)


def sourced_example(prompts: PromptBuilder, pair: Pair, key: int, lesson: Curriculum) -> Example:
    """The pair with the chunks that it came from, and no others, as its sources."""
    messages = messages_for(pair.question, lesson.sources(pair))
    return Example(prompts.encode(messages), prompts.encode_answer(pair.answer), key)


def teacher_example(prompts: PromptBuilder, pair: Pair, key: int, lesson: Curriculum) -> Example:
    """The pair as the teacher has it: with its chunk, or its behaviour's context, in the prompt."""
    if lesson.kind is ModuleKind.DOCUMENT:
        return sourced_example(prompts, pair, key, lesson)
    return taught_example(prompts, pair, key, lesson)


def lesson_pairs(lesson: Curriculum, objective: str) -> tuple[Pair, ...]:
    """The pairs that an objective learns from: prompt distillation those that were sampled, where any were."""
    return (lesson.sampled if objective == "prompt-distillation" else ()) or lesson.pairs


def lessons(
    prompts: PromptBuilder, lesson: Curriculum, pairs: Sequence[Pair], *, reading: float, seed: int
) -> list[list[Example]]:
    """The student's examples, in lists whose prompts begin alike: a list for each wording, and one for each chunk.

    Every pair is asked without its document. A share of them, `reading`, is asked with its chunk as well: a module that
    has learned to answer from memory alone would do so with the right passage in front of it, too. Of a behaviour every
    pair is asked once, in its own form.
    """
    if lesson.kind is not ModuleKind.DOCUMENT:
        return student_lists(prompts, lesson, pairs)
    closed: list[list[Example]] = [[] for _ in WORDINGS]
    sourced: dict[tuple[int, ...], list[Example]] = {}
    rng = random.Random(seed)
    for key, pair in enumerate(pairs):
        wording = key % len(WORDINGS)
        closed[wording].append(closed_example(prompts, pair, key, wording))
        if rng.random() < reading:
            read = (pair.passage, *pair.also)
            sourced.setdefault(read, []).append(sourced_example(prompts, pair, key, lesson))
    return [examples for examples in [*closed, *(sourced[read] for read in sorted(sourced))] if examples]


def first_lessons(
    prompts: PromptBuilder, lesson: Curriculum, pairs: Sequence[Pair], recipe: Recipe, *, max_model_len: int
) -> list[list[Example]]:
    """All that the first round learns from: `lessons`, and of a document its text where the recipe asks for that."""
    found = lessons(prompts, lesson, pairs, reading=recipe.reading, seed=recipe.seed)
    if lesson.kind is ModuleKind.DOCUMENT:
        text = text_examples(prompts, lesson, window=min(max_model_len, TEXT_TOKENS))
        found.extend([text] * recipe.text_passes)
    return [examples for examples in found if examples]


def text_examples(prompts: PromptBuilder, lesson: Curriculum, *, window: int) -> list[Example]:
    """The document's chunks, each under its title, as text to continue, in rows of at most `window` (2 or more) tokens.

    Every token but a text's first is a target, once: a row begins with the token that the row before it ended with.
    A text has no teacher, and so no key.
    """
    examples = []
    for chunk in lesson.chunks:
        ids = prompts.encode_plain(f"{lesson.title}\n{chunk}" if lesson.title else chunk)
        for first in range(0, len(ids) - 1, window - 1):
            examples.append(Example(ids[first : first + 1], ids[first + 1 : first + window], -1))
    return examples


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
