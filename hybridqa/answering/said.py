"""How far a question is about what the user has said before it, so that it can be answered without any document.

Knows nothing about documents or routes. Invariant: what was asked is not said: only sentences that are no questions
count, and of the user's turns alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from hybridqa.ingest.sentences import split_sentences
from hybridqa.retrieval.lexical import AskedWords
from hybridqa.types import Message


def share_said(question: str, history: Sequence[Message]) -> float:
    """The share of the question's words that stand in what the user has stated, 0 to 1."""
    stated = [
        sentence
        for turn in history
        if turn.role == "user"
        for start, end in split_sentences(turn.content)
        if "?" not in (sentence := turn.content[start:end])[-3:]  # it may be quoted or in brackets
    ]
    return AskedWords(question).share_in("\n".join(stated)) if stated else 0.0
