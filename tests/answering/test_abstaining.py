"""How far a question is about what the user has said, and what is withheld."""

from __future__ import annotations

import pytest

from hybridqa.answering.abstaining import share_said
from hybridqa.types import Message


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
