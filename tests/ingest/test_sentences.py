"""Sentence offsets."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridqa.ingest.sentences import split_sentences


def pieces(text: str) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text)]


@pytest.mark.parametrize(
    "expected",
    [
        ["One.", "Two!", "Three?", "Four"],
        ["Dr. Smith met Prof. J. R. Miller at 5 p.m. on Jan. 3.", "He left."],
        ["It costs $3.50 or 1,000.25 euros.", "Cheap."],
        ["The U.S. Senate voted, e.g. on taxes, i.e. duties.", "It passed."],
        ["He lives in the U.S.", "The house is small."],
        ['"Stop!" he said.', '"Why?"', "She ran (fast.)", "Gone."],
        ["See Fig. 3 and No. 7, pp. 4 to 9.", "Then stop."],
        ["I said no.", "Then I left."],
        ["Wait... what happened?", "Nothing…", "Good."],
        ["He bought Acme Corp. shares.", "Up 5%."],
        ["It was Vitamin C.", "It helps."],
        ["Version 2.5.1 of foo.py is at www.a.org/b.html today.", "Get it."],
        ["日本語です。", "次の文！", "終わり"],
        ["Er kommt z.B. morgen.", "Gut."],
        ["What?!", "Really."],
    ],
)
def test_sentences(expected: list[str]) -> None:
    assert pieces(" ".join(expected)) == expected


def test_structure_separates() -> None:
    text = (
        "A heading\n\nwrapped\nline\n- item one\n- item two. More.\n1. first\n2) second\n| a | b |\n| c | d |\n> quote"
    )
    assert pieces(text) == [
        "A heading",
        "wrapped\nline",
        "- item one",
        "- item two.",
        "More.",
        "1. first",
        "2) second",
        "| a | b |",
        "| c | d |",
        "> quote",
    ]


def test_nothing() -> None:
    assert split_sentences("") == []
    assert split_sentences(" \n\t\u3000 ") == []


TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [". ", "! ", "?\n", "\n\n", "\n- ", "Dr. ", "e.g. ", "U.S. ", "3.5", '."', "。", " ", "\n", "| "]
        ),
        st.text(max_size=8),
    ),
    max_size=30,
).map("".join)


@settings(deadline=None)
@given(TEXTS)
def test_spans_hold_every_character_once(text: str) -> None:
    spans = split_sentences(text)
    covered = 0
    for start, end in spans:
        assert covered <= start < end <= len(text)
        assert not text[covered:start].strip()
        assert text[start:end] == text[start:end].strip()
        covered = end
    assert not text[covered:].strip()


@pytest.mark.parametrize("unit", [".", '."', ".)", "\n", "\n ", " ", "a", "- a\n", "a. ", "| ", "Dr. ", "1. "])
def test_the_time_is_linear(unit: str) -> None:
    text = "x" + unit * (500_000 // len(unit)) + "x"
    begin = time.perf_counter()
    split_sentences(text)
    assert time.perf_counter() - begin < 8
