"""The prompts that a pair is put into: the one that serves, and others, so that a module does not hang on one wording.

Invariant: the first wording is exactly what the engine is asked in modules mode, and the teacher's prompt is what it is
asked with the chunk as its source.
"""

from __future__ import annotations

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
    """The pair with the chunk that it came from as its only source."""
    chunk = lesson.chunks[pair.passage]
    source = f"{lesson.title}\n{chunk}" if lesson.title else chunk
    return Example(prompts.encode(messages_for(pair.question, [source])), prompts.encode_answer(pair.answer), key)
