"""Markers in the model's text: which point to a passage, which go, and what is cited when there are none."""

from __future__ import annotations

import re

import pytest

from hybridqa.answering.citations import resolve_citations
from hybridqa.types import Passage, ScoredPassage

BRIDGE = "The Kelmar Bridge was designed by Mira Tolland. It opened in 1987 after nine years of work."
FACTS = "The bridge is 412 metres long and carries 1,200 trams a day. Its toll is two crowns."
FERRY = "Before it, a ferry named Osla crossed the strait twice an hour. The ferry was sold to a museum."
TEXTS = (BRIDGE, FACTS, FERRY)


def passages(*texts: str, start: int = 0) -> list[ScoredPassage]:
    """Passages of one document each, which begin at `start` in it."""
    return [
        ScoredPassage(
            Passage(100 + place, f"doc-{place}", "default", 0, start, start + len(text), text, f"Title {place}"), 1.0
        )
        for place, text in enumerate(texts, 1)
    ]


def cited(text: str, question: str = "") -> tuple[str, list[tuple[int, str]]]:
    found, citations = resolve_citations(text, passages(*TEXTS), question)
    return found, [(citation.number, citation.quote) for citation in citations]


DESIGNED, OPENED = BRIDGE.split(". ")[0] + ".", BRIDGE.split(". ")[1]
LONG, TOLL = FACTS.split(". ")[0] + ".", FACTS.split(". ")[1]
OSLA, SOLD = FERRY.split(". ")[0] + ".", FERRY.split(". ")[1]

WRITTEN = [  # the model's text, the text that is left, what it cites
    ("Mira Tolland designed it [1].", "Mira Tolland designed it [1].", [(1, DESIGNED)]),
    ("It is 412 metres long, from 1987 [1, 2].", "It is 412 metres long, from 1987 [1, 2].", [(1, OPENED), (2, LONG)]),
    ("It is 412 metres long, from 1987 [1][2].", "It is 412 metres long, from 1987 [1][2].", [(1, OPENED), (2, LONG)]),
    ("It opened in 1987[1].", "It opened in 1987[1].", [(1, OPENED)]),
    ("Osla crossed it [Source 3].", "Osla crossed it [Source 3].", [(3, OSLA)]),
    ("The toll is two crowns [9] here [2].", "The toll is two crowns here [2].", [(2, TOLL)]),
    ("The toll is two crowns [2, 9].", "The toll is two crowns [2].", [(2, TOLL)]),
    ("It opened in 1987 [1] and [0].", "It opened in 1987 [1].", [(1, OPENED)]),
    ("It opened in 1987 [1] and [2].", "It opened in 1987 [1] and [2].", [(1, OPENED), (2, FACTS)]),
    ("[7] The toll is two crowns [2].", "The toll is two crowns [2].", [(2, TOLL)]),
    ("The toll [2] is two crowns [2].", "The toll [2] is two crowns [2].", [(2, TOLL)]),
    (
        "It is 412 metres long [2]. Its toll is two crowns [2].",
        "It is 412 metres long [2]. Its toll is two crowns [2].",
        [(2, LONG), (2, TOLL)],
    ),
    ("All of it [1-3].", "All of it [1-3].", [(1, BRIDGE), (2, FACTS), (3, FERRY)]),
]


@pytest.mark.parametrize(("text", "left", "expected"), WRITTEN)
def test_written_markers(text: str, left: str, expected: list[tuple[int, str]]) -> None:
    """A marker whose statement shares no word with its passage stands for the whole passage."""
    assert cited(text) == (left, expected)


def test_a_link_and_code_are_no_markers() -> None:
    text = "See [1](https://example.org) and `queue[0]`; the toll is two crowns [2]."
    found, citations = cited(text)
    assert found == text
    assert [number for number, _ in citations] == [2]


def test_a_footnote_copied_from_a_source_is_no_citation() -> None:
    """The source's own [2] means its own notes, not our second passage."""
    sources = passages("The tower[2] was raised in 1870 by monks.", "The mill burnt down in 1901.")
    text, citations = resolve_citations("The tower[2] was raised in 1870 by monks.", sources)
    assert text == "The tower was raised in 1870 by monks [1]."
    assert [(citation.number, citation.doc_id) for citation in citations] == [(1, "doc-1")]


UNCITED = [
    ("It was Mira Tolland.", "Who designed the Kelmar Bridge?", "It was Mira Tolland [1].", DESIGNED),
    ("1987", "When did the bridge open?", "1987 [1]", OPENED),
    ("The bridge is 412 metres long.", "", "The bridge is 412 metres long [2].", LONG),
    ("It carries 1200 trams each day!", "", "It carries 1200 trams each day [2]!", LONG),
    ("It was sold to a museum.", "What became of the ferry?", "It was sold to a museum [3].", SOLD),
]


@pytest.mark.parametrize(("text", "question", "left", "quote"), UNCITED)
def test_an_uncited_answer_is_attributed(text: str, question: str, left: str, quote: str) -> None:
    found, citations = cited(text, question)
    assert found == left
    assert [quoted for _, quoted in citations] == [quote]


def test_each_sentence_is_attributed_for_itself() -> None:
    found, citations = cited("Mira Tolland designed it. Nobody likes it. The toll is two crowns.")
    assert found == "Mira Tolland designed it [1]. Nobody likes it. The toll is two crowns [2]."
    assert citations == [(1, DESIGNED), (2, TOLL)]


def test_markers_that_all_point_nowhere_are_replaced_by_attribution() -> None:
    assert cited("The toll is two crowns [8].") == ("The toll is two crowns [2].", [(2, TOLL)])


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("The bridge is 400 metres long.", ""),  # the number is another
        ("Photosynthesis turns light into sugar.", ""),
        ("Yes.", "Is there a toll?"),
        ("The Kelmar Bridge.", "Who designed the Kelmar Bridge?"),  # says the question again
        ("I don't know.", "Who designed the Kelmar Bridge?"),
        ("The sources do not say who designed the Kelmar Bridge.", "Who designed the Kelmar Bridge?"),
        ("", ""),
    ],
)
def test_what_no_source_supports_cites_nothing(text: str, question: str) -> None:
    assert cited(text, question) == (text, [])


def test_without_passages_every_marker_goes() -> None:
    assert resolve_citations("It opened in 1987 [1] and [2].", []) == ("It opened in 1987.", ())


@pytest.mark.parametrize("start", [0, 37])
def test_offsets_are_code_points_of_the_document(start: int) -> None:
    """Letters of more than one byte or of two code points shift nothing."""
    body = "🜂 Die Brücke – naïve “Façade” – 𝔎elmar. Ihre Länge beträgt 412 Meter. E\u0301te\u0301."
    document = "ß" * start + body
    text, citations = resolve_citations("Die Länge beträgt 412 Meter.", passages(body, start=start))
    assert text == "Die Länge beträgt 412 Meter [1]."
    [citation] = citations
    assert document[citation.start : citation.end] == citation.quote == "Ihre Länge beträgt 412 Meter."


def test_every_marker_left_has_a_citation() -> None:
    """Whatever mixture of markers a model writes."""
    pieces = [
        "[1]",
        "[4]",
        "[0]",
        "[1, 3]",
        "[2][9]",
        "[3] and [7]",
        "[source 2]",
        "[12-14]",
        "and",
        "the toll.",
        "1987",
    ]
    for place, first in enumerate(pieces):
        for second in pieces[place:]:
            text, citations = resolve_citations(f"Here {first} is {second} so.", passages(*TEXTS))
            left = {int(number) for run in re.findall(r"\[[^\]]*\]", text) for number in re.findall(r"\d+", run)}
            assert left == {citation.number for citation in citations}, (first, second, text)


@pytest.mark.parametrize(
    "text", [*(written for written, _, _ in WRITTEN), "It opened in 1987. Its toll is two crowns."]
)
def test_a_citation_knows_where_its_markers_stand(text: str) -> None:
    left, citations = resolve_citations(text, passages(*TEXTS))
    places = {place for citation in citations for place in citation.places}
    assert citations and all(citation.places for citation in citations)
    assert all(
        str(citation.number) in left[start:end] or "-" in left[start:end]
        for citation in citations
        for start, end in citation.places
    )
    bare = "".join(" " * (end - start) for start, end in sorted(places))
    rest = left
    for start, end in sorted(places, reverse=True):
        assert re.fullmatch(r"\[.*\]", left[start:end])
        rest = rest[:start] + rest[end:]
    assert "[" not in rest and len(rest) + len(bare) == len(left)
