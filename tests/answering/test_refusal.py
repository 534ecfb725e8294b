"""Answers that say that they are none."""

from __future__ import annotations

import pytest

from hybridqa.answering.refusal import is_refusal


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.",
        "I don’t know who wrote it.",
        "I do not know",
        "Sorry, I cannot find that.",
        "I'm not sure.",
        "The sources do not say who wrote it.",
        "The provided context does not contain this.",
        "There is no information about that.",
        "Unknown.",
        "",
        " … ",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Mira Tolland.",
        "It opened in 1987. I don't know who paid for it.",
        "Unknown Pleasures is the name of the ship.",
        "No dogs are allowed on the ferry.",
        "No.",
        "She does not know the code.",
        "It does not float.",
        "It does not contain lead.",
        "This does not include VAT: it costs 30 euros.",
        "1987",
    ],
)
def test_answers(text: str) -> None:
    assert not is_refusal(text)
