"""Repetitions: what says the same is found, what differs in anything that counts is not taken for it."""

from __future__ import annotations

import pytest

from hybridqa.retrieval.duplicates import Repetitions

TEXT = "The Lumen kettle holds 1.7 litres of water and is made by hand in the town of Oskvar."


@pytest.mark.parametrize(
    "other",
    [
        TEXT,
        TEXT.upper(),
        "The Lumen kettle holds 1.7 litres of water, and is made (by hand) in the town of Oskvar",
        "The Lumen kettle holds 1.7 litres of water and is made by hand in a town of Oskvar.",
    ],
)
def test_what_says_the_same_is_found(other: str) -> None:
    taken = Repetitions()
    assert taken.same_as(1, TEXT) is None
    assert taken.same_as(2, other) == 1
    assert taken.same_as(3, other) == 1  # the one that was taken


@pytest.mark.parametrize(
    "other",
    [
        TEXT.replace("1.7", "1.8"),
        TEXT.replace("Oskvar", "Tarn"),
        TEXT.replace("is made", "is not made"),
        TEXT.replace("holds 1.7 litres", "holds under 1.7 litres"),
        TEXT + " It costs 89 euros.",
        "The kettle Lumen holds 1.7 litres of water and is made by hand in the town of Oskvar.",
        "",
    ],
)
def test_what_differs_is_taken_too(other: str) -> None:
    taken = Repetitions()
    assert taken.same_as(1, TEXT) is None
    assert taken.same_as(2, other) is None
