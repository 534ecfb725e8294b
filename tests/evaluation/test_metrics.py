"""Metrics against values worked out by hand, SQuAD's own edge cases among them."""

from __future__ import annotations

import pytest

from hybridqa.evaluation.metrics import METRICS, contains, exact_match, normalise, rouge_l, token_f1


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("The  Cat, sat!", "cat sat"),
        ("an apple a day", "apple day"),
        ("theatre another", "theatre another"),  # articles are whole words
        ("U.S.", "us"),
        ("1.7 litres", "17 litres"),
        ("a", ""),
        ("well-to-do", "welltodo"),
        ("《紅樓夢》由曹雪芹寫。", "紅 樓 夢 由 曹 雪 芹 寫"),
        ("佐々木さん、2024年", "佐 々 木 さ ん 2024 年"),
        ("Łódź é", "łódź é"),
        ("维生素A", "维 生 素 a"),  # no article
    ],
)
def test_normalise(text: str, bare: str) -> None:
    assert normalise(text) == bare


@pytest.mark.parametrize(
    ("answer", "golds", "f1"),
    [
        ("Denver Broncos", ["the Denver Broncos!"], 1.0),
        ("the Broncos of Denver", ["Denver Broncos"], 0.8),  # 2 of 3 said, 2 of 2 gold: 2 * 2 / 5
        ("Broncos", ["Denver Broncos", "Carolina Panthers"], 2 / 3),
        ("Broncos Broncos", ["Broncos"], 2 / 3),  # a word counts as often as it stands on both sides
        ("Panthers", ["Denver Broncos"], 0.0),
        ("", ["Denver"], 0.0),
        ("the", [""], 1.0),  # both are empty once they are bare
        ("Denver [1]", ["Denver"], 1.0),
        ("Denver", [], 0.0),
        ("曹雪芹", ["曹雪"], 0.8),  # each character is a word: 2 of 3 said, 2 of 2 gold
    ],
)
def test_token_f1(answer: str, golds: list[str], f1: float) -> None:
    assert token_f1(answer, golds) == pytest.approx(f1)


def test_exact_match_and_contains() -> None:
    assert exact_match("The Broncos.", ["Panthers", "broncos"]) == 1
    assert exact_match("The Denver Broncos", ["Broncos"]) == 0
    assert exact_match("Broncos [1] [2, 3]", ["Broncos"]) == 1
    assert contains("The Denver Broncos won.", ["the broncos"]) == 1
    assert contains("Broncosaurus", ["broncos"]) == 0  # words are whole
    assert contains("Denver won, Broncos", ["Denver Broncos"]) == 0  # and in a row
    assert contains("It was 1[1], I think", ["11"]) == 0  # a citation is no part of a number
    assert contains("anything at all", ["the"]) == 0  # a gold answer without words is in nothing
    assert contains("小说由曹雪芹写成", ["曹雪芹"]) == 1  # a script without spaces
    assert contains("小说由曹雪写成", ["曹雪芹"]) == 0
    assert contains("", []) == exact_match("", []) == 0


@pytest.mark.parametrize(
    ("answer", "golds", "rouge"),
    [
        ("the cat sat", ["the cat was sat"], 6 / 7),  # subsequence of 3: 2 * 3 / (3 + 4)
        ("曹雪芹", ["曹雪"], 0.8),
        ("sat cat the", ["the cat sat"], 1 / 3),  # order counts: subsequence of 1
        ("police killed the gunman", ["police kill the gunman", "gunman"], 0.75),
        ("The CAT!", ["the cat"], 1.0),
        ("dog [1]", ["cat"], 0.0),
        ("", ["cat"], 0.0),
    ],
)
def test_rouge_l(answer: str, golds: list[str], rouge: float) -> None:
    assert rouge_l(answer, golds) == pytest.approx(rouge)


@pytest.mark.parametrize("name", METRICS)
def test_a_gold_answer_scores_one(name: str) -> None:
    for gold in (
        "the dispersion of the lens material",
        "1,500",
        "Zürich — Köln",
        "你好",
        "at 37 °C [12] for a day [3, 4]",
    ):
        assert METRICS[name](f"{gold} [1]", ["something else", gold]) == 1
