"""How far a question is about what the user has said, and what is withheld."""

from __future__ import annotations

import pytest

from hybridqa.answering.abstaining import confidence, share_said
from hybridqa.types import Message, Mode, Route


@pytest.mark.parametrize(
    ("question", "turns", "share"),
    [
        ("What is my name?", [("user", "Hello! My name is Ida.")], 1.0),
        ("What is my name?", [("assistant", "Your name is Ida.")], 0.0),
        ("What is my name?", [("user", "What is my name?"), ("assistant", "I don't know.")], 0.0),
        ("Which boat did I rent?", [("user", "I rented the Solvang. It has (who knows?) no sails.")], 0.5),
        ("Which boat did I rent?", [("user", "I rented a boat (who knows why?)")], 0.0),
        ("Why?", [], 0.0),
        ("", [("user", "I rented the Solvang.")], 0.0),
    ],
)
def test_statements_of_the_user_alone_count(question: str, turns: list[tuple[str, str]], share: float) -> None:
    assert share_said(question, [Message(role, text) for role, text in turns]) == share


def test_an_answer_is_trusted_as_far_as_its_words_and_its_documents_are() -> None:
    found = Route(Mode.HYBRID, evidence={"kettle": 0.5, "museum": 0.25})
    assert confidence(found, 0.8, False) == 0.4
    assert confidence(found, 0.8, True) == 0.0 == confidence(found, None, True)
    assert confidence(found, None, False) is None
    assert confidence(Route(Mode.RETRIEVAL), 0.8, False) == 0.0  # nothing says that it is there
    assert confidence(Route(Mode.CLOSED), 0.8, False) == 0.8
