"""Turns the [n] of a model's text into citations of passages, and finds them where the model wrote none.

Knows nothing about how the text was made. Invariant: every [n] that is left outside code has a citation of that number,
and each citation's offsets are exact: `document.text[start:end] == quote`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from hybridqa.answering.refusal import is_refusal
from hybridqa.answering.support import Evidence, Support
from hybridqa.ingest.sentences import split_sentences
from hybridqa.types import Citation, ScoredPassage

_Marker = tuple[int, int, int]  # where it starts and ends in the text, and its number
_NUMBERS = r"\d{1,4}(?:\s*[-–]\s*\d{1,4})?"
_GROUP = rf"\[\s*(?:sources?\s*)?{_NUMBERS}(?:\s*[,;]\s*{_NUMBERS})*\s*\](?!\()"  # "[1](…" is a link
_JOIN = r"(?:\s*[,;]\s*|\s*(?:and|or|&)\s*|\s*)"
_RUN = re.compile(rf"(?P<gap>[ \t]*)(?P<run>{_GROUP}(?:{_JOIN}{_GROUP})*)", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+)(?:\s*[-–]\s*(\d+))?")
CODE = re.compile(r"(?s)```.*?(?:```|\Z)|`[^`\n]+`")
LONGEST_WORD = 256  # characters that are looked back for the word before a marker
_LAST_WORD = re.compile(r"\S+\s*$")
_END = re.compile(r"[.!?…。！？]+[\"'”’»)\]]*$")


def resolve_citations(
    text: str, passages: Sequence[ScoredPassage], question: str = ""
) -> tuple[str, tuple[Citation, ...]]:
    """The text with only those [n] that point to a passage, and a citation for each.

    `passages` are those of the prompt, numbered from 1. Markers that point nowhere, and a source's own footnotes copied
    with its words, are taken out. When none is left, each sentence that a sentence of a passage supports gets one;
    the words of `question` help to tell which. Text in backquotes is left as it is.
    """
    evidence = Evidence(passages)
    text, markers = clean(text, passages)
    if not markers:
        text, markers = _attribute(text, evidence, question)
    return text, _citations(text, markers, passages, evidence, question)


def cite_behind(text: str, passages: Sequence[ScoredPassage], question: str = "") -> tuple[str, tuple[Citation, ...]]:
    """The same for a text that has been read already: markers that it lacks come behind it, all in one place.

    Where `clean` would still change the text, its citations have no places.
    """
    evidence = Evidence(passages)
    cleaned, markers = clean(text, passages)
    if markers:
        citations = _citations(cleaned, markers, passages, evidence, question)
        return text, citations if cleaned == text else tuple(replace(one, places=()) for one in citations)
    marked, inside = _attribute(text, evidence, question)
    citations = _citations(marked, inside, passages, evidence, question)
    if not citations:
        return text, ()
    places: dict[int, tuple[int, int]] = {}
    text += " "
    for number in dict.fromkeys(citation.number for citation in citations):
        marker = f"[{number}]"
        places[number] = (len(text), len(text) + len(marker))
        text += marker
    return text, tuple(replace(citation, places=(places[citation.number],)) for citation in citations)


def _citations(
    text: str, markers: Sequence[_Marker], passages: Sequence[ScoredPassage], evidence: Evidence, question: str
) -> tuple[Citation, ...]:
    """What each marker of a text points to."""
    found: dict[tuple[int, int, int], Citation] = {}
    for position, end_of_marker, number in markers:
        passage = passages[number - 1].passage
        support = evidence.best_in(number, _statement(text, position), question) or evidence.best_in(number, text)
        start, end = (support.start, support.end) if support else (0, len(passage.text))
        citation = Citation(
            number=number,
            doc_id=passage.doc_id,
            title=passage.title,
            passage_id=passage.passage_id,
            start=passage.start + start,
            end=passage.start + end,
            quote=passage.text[start:end],
        )
        known = found.get(key := (number, citation.start, citation.end), citation)
        found[key] = replace(known, places=(*known.places, (position, end_of_marker)))
    return tuple(found.values())


def clean(text: str, passages: Sequence[ScoredPassage]) -> tuple[str, list[_Marker]]:
    """The text without markers that point nowhere, and those that are left."""
    code = [match.span() for match in CODE.finditer(text)]
    cleaned, done = "", 0
    markers: list[_Marker] = []
    for match in _RUN.finditer(text):
        if any(start < match.end() and match.start() < end for start, end in code):
            continue
        cleaned += text[done : match.start()]
        done = match.end()
        written = _written(match["run"])
        good = [number for number in dict.fromkeys(written) if 1 <= number <= len(passages)]
        if not good or _copied(text[: match.start()], match.group(), passages):
            if not cleaned or cleaned[-1].isspace():  # at the start of a line: no indent is left behind
                done += len(text[done:]) - len(text[done:].lstrip(" \t"))
            continue
        keep = match["run"] if good == written else "".join(f"[{number}]" for number in good)
        cleaned += match["gap"]
        markers += [(len(cleaned), len(cleaned) + len(keep), number) for number in good]
        cleaned += keep
    return cleaned + text[done:], markers


def _written(run: str) -> list[int]:
    """The numbers of a run of markers, ranges spelled out."""
    numbers: list[int] = []
    for first, last in _NUMBER.findall(run):
        stop = int(last) if last else int(first)
        numbers += range(int(first), stop + 1) if stop - int(first) < 20 else [int(first), stop]
    return numbers


def _copied(before: str, marker: str, passages: Sequence[ScoredPassage]) -> bool:
    """Whether a source has this very marker behind this very word: a footnote of its own."""
    word = _LAST_WORD.search(before, max(0, len(before) - LONGEST_WORD))  # not through all of the text
    return word is not None and any(word.group() + marker in scored.passage.text for scored in passages)


def _statement(text: str, position: int) -> str:
    """What a marker at `position` stands for: the sentence that it ends or is in, up to it."""
    before = text[:position].rstrip()
    spans = split_sentences(before)
    return _RUN.sub(" ", before[spans[-1][0] :] if spans else text)


def _attribute(text: str, evidence: Evidence, question: str) -> tuple[str, list[_Marker]]:
    """The text with a marker in each sentence that a passage supports, and where they are."""
    markers: list[_Marker] = []
    if is_refusal(text):
        return text, markers
    written, done = "", 0
    code = [match.span() for match in CODE.finditer(text)]
    for start, end in split_sentences(text):
        support: Support | None = evidence.best(text[start:end], question)
        if support is None or any(first < end and start < last for first, last in code):
            continue
        ending = _END.search(text, start, end)
        stop = ending.start() if ending else end
        written += f"{text[done:stop]} "
        marker = f"[{support.number}]"
        markers.append((len(written), len(written) + len(marker), support.number))
        written += marker
        done = stop
    return written + text[done:], markers
