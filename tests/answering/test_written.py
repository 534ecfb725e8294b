"""A text that is read while it is written: nothing is taken back, and it ends as the whole text would be read."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_citations import TEXTS, WRITTEN, passages

from hybridqa.answering.citations import clean, resolve_citations
from hybridqa.answering.written import Written

PIECES = st.lists(
    st.sampled_from(
        [
            "It opened in 1987",
            " ",
            "[",
            "1",
            "]",
            "[2]",
            "[9]",
            ", ",
            " and ",
            ".",
            "\n",
            "`",
            "```",
            "(",
            "[1, 2]",
            "a",
            "é[3",
        ]
    ),
    max_size=25,
)


def read(pieces: list[str]) -> tuple[list[str], str]:
    written = Written(passages(*TEXTS), "")
    said = [written.add(piece) for piece in pieces]
    rest, text, citations = written.end()
    assert "".join([*said, rest]) == text
    for citation in citations:
        for start, end in citation.places:
            assert text[start:end].startswith("[") and text[start:end].endswith("]")
    return said, text


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("text", [written for written, _, _ in WRITTEN])
def test_markers_that_the_model_wrote_are_where_they_would_be(text: str, size: int) -> None:
    pieces = [text[place : place + size] for place in range(0, len(text), size)]
    assert read(pieces)[1] == resolve_citations(text, passages(*TEXTS))[0]


@settings(max_examples=500)
@given(PIECES)
@example(["`", "It opened in 1987", "```", "[1, 2]", "[2]"])
@example(["``", "[1, 2]", "[2]", "`"])
@example(["`", "[9]", "é[3", "`", "It opened in 1987"])
def test_what_was_said_is_never_taken_back(pieces: list[str]) -> None:
    said, text = read(pieces)
    whole = clean("".join(pieces).strip(), passages(*TEXTS))[0]
    assert text.startswith(whole)  # what comes behind are markers
    grown = ["".join(said[:place]) for place in range(len(said) + 1)]
    assert all(later.startswith(earlier) for earlier, later in pairwise([*grown, text]))


def test_nothing_is_lost_behind_a_marker_that_is_too_long_to_wait_for() -> None:
    text = f"It opened in 1987 [{', '.join('1' * 40)}] and its toll is two crowns [2]."
    said, whole = read([text[place : place + 5] for place in range(0, len(text), 5)])
    assert whole.startswith("It opened in 1987") and whole.endswith("and its toll is two crowns [2].") and any(said)


def test_a_text_without_markers_gets_them_behind_it() -> None:
    text = "It opened in 1987. Its toll is two crowns."
    written = Written(passages(*TEXTS), "")
    assert written.add(text) == text  # at once, and not again
    rest, whole, citations = written.end()
    assert rest == " [1][2]" and whole == f"{text} [1][2]"
    assert [citation.number for citation in citations] == [1, 2]
    assert [whole[start:end] for citation in citations for start, end in citation.places] == ["[1]", "[2]"]


def test_sentences_that_one_passage_supports_share_its_marker() -> None:
    written = Written(passages(*TEXTS), "")
    written.add("Mira Tolland designed it. It opened in 1987.")
    rest, whole, citations = written.end()
    assert rest == " [1]" and [citation.number for citation in citations] == [1, 1]
    assert {whole[start:end] for citation in citations for start, end in citation.places} == {"[1]"}


def test_what_may_become_a_marker_waits_and_nothing_else_does() -> None:
    written = Written(passages(*TEXTS), "")
    assert [
        written.add(piece) for piece in ("It opened", " in 1987", " [", "1", "]", ".", " Then", " [9", "]", " it")
    ] == [
        "It opened",
        " in 1987",
        "",
        "",
        "",
        " [1].",
        " Then",
        "",
        "",
        " it",
    ]


def test_a_long_text_is_not_read_again_for_each_of_its_words() -> None:
    line = "The bridge is 412 metres long and carries trams [2]. It opened in 1987 [1], so [9] they say.\n"
    taken = []
    for lines in (20, 160):
        pieces = [line[place : place + 4] for place in range(0, len(line), 4)] * lines
        written = Written(passages(*TEXTS), "")
        began = time.process_time()
        said = "".join(map(written.add, pieces))
        taken.append(time.process_time() - began)
        assert said + written.end()[0] == (line.replace(" [9]", "") * lines).rstrip()
    assert taken[1] < 40 * taken[0]  # eight times as long: 64 times, were all of it read each time
