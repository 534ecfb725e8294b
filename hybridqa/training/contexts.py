"""The prompts of a behaviour: what the teacher has with its context, and what the student has without.

A document is read by its teacher as a source; instructions stand in the teacher's system turn, examples are earlier
turns, and a scratchpad is what the assistant has written before it answers. Knows nothing about losses. Invariant:
without its context the teacher's conversation is the student's, and both have the same target ids.
"""

from __future__ import annotations

from collections.abc import Sequence

from hybridqa.answering.prompt import PromptBuilder, messages_for
from hybridqa.training.packing import Example
from hybridqa.training.pairs import Pair
from hybridqa.training.synthesis import Curriculum
from hybridqa.types import Message

SERVING, SOURCES, BARE = "serving", "sources", "bare"  # kinds of a behaviour's pairs: the forms of a conversation
ANSWER_MARK = "\n\nAnswer:\n"  # between a scratchpad and the answer


def conversation(lesson: Curriculum, pair: Pair) -> list[Message]:
    """What the student is asked: as when serving, without or with a source, or the bare question."""
    if pair.kind == BARE:
        return [Message("user", pair.question)]
    return messages_for(pair.question, [lesson.chunks[pair.passage]] if pair.passage >= 0 else [])


def teacher_prompt(prompts: PromptBuilder, lesson: Curriculum, pair: Pair) -> tuple[int, ...]:
    """The teacher's token ids: the student's conversation with the pair's context in it."""
    asked = conversation(lesson, pair)
    context = lesson.contexts[pair.context] if pair.context >= 0 else ()
    if context and context[0].role == "assistant":  # a scratchpad
        return prompts.encode(asked, context[0].content + ANSWER_MARK)
    return prompts.encode([*asked[:-1], *context, asked[-1]])


def taught_example(prompts: PromptBuilder, pair: Pair, key: int, lesson: Curriculum) -> Example:
    """The pair as the teacher has it."""
    return Example(teacher_prompt(prompts, lesson, pair), prompts.encode_answer(pair.answer), key)


def student_example(prompts: PromptBuilder, pair: Pair, key: int, lesson: Curriculum) -> Example:
    """The pair as the student has it."""
    return Example(prompts.encode(conversation(lesson, pair)), prompts.encode_answer(pair.answer), key)


def student_lists(prompts: PromptBuilder, lesson: Curriculum, pairs: Sequence[Pair]) -> list[list[Example]]:
    """The student's examples, in lists whose prompts begin alike: one for each form and source."""
    lists: dict[tuple[str, int], list[Example]] = {}
    for key, pair in enumerate(pairs):
        lists.setdefault((pair.kind, pair.passage), []).append(student_example(prompts, pair, key, lesson))
    return list(lists.values())
