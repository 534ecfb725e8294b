"""What a question gets as its gold passage: the training chunk that its answer most likely comes from.

Knows nothing about stores or models. Invariant: a chunk that holds a gold answer always goes before one that does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from hybridqa.evaluation.datasets import EvalQuestion
from hybridqa.evaluation.metrics import contains, normalise


def gold_chunk(question: EvalQuestion, chunks: Sequence[str]) -> int:
    """The place of the chunk that holds a gold answer and shares most words with the question.

    Of chunks that hold none, the one that shares most words with question and answers together; the first of equals.
    """
    asked = set(normalise(question.question).split())
    both = asked.union(*(normalise(answer).split() for answer in question.answers))

    def rank(place: int) -> tuple[float, int]:
        words = set(normalise(chunks[place]).split())
        holds = contains(chunks[place], question.answers)
        return holds, len(words & (asked if holds else both))

    return max(range(len(chunks)), key=rank)
