"""Cuts a text into passages that an embedder can take whole.

Knows nothing about file formats or storage. Invariant: passages are in order and do not overlap, `text[start:end]` is
the passage, every character that is not white space is in exactly one, none is counted over `max_tokens` unless it is a
single character, and a sentence that fits is never cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hybridqa.catalog_rows import PassageDraft
from hybridqa.ingest.sentences import split_sentences, trimmed
from hybridqa.ingest.source import Heading

CountTokens = Callable[[Sequence[str]], list[int]]
Span = tuple[int, int]

_LONG_WORD = re.compile(r"(?<!\S)\S{257,}")  # tokenizers call these one unknown token; they count by their length
_SPACE = re.compile(r"\s")
_CHARACTERS_PER_TOKEN = 8  # of a long word
_BATCH_CHARACTERS = 1_000_000  # of text in one call of count_tokens
_SMALL = 4  # a passage under 1/4 of the size is filled up or balanced, where it can be


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is kept whole: a sentence, or a piece of one that is too long."""

    start: int
    end: int
    tokens: int
    opens: bool  # first of its paragraph


def split_passages(
    text: str, headings: Sequence[Heading], count_tokens: CountTokens, max_tokens: int
) -> list[PassageDraft]:
    """The passages of a text, at most `max_tokens` each as `count_tokens` counts; none when there is only white space.

    A heading begins a passage (together with headings right above it), and a paragraph stays whole where it can.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    count = _Counter(text, count_tokens)
    drafts: list[PassageDraft] = []
    for path, spans in _sections(text, sorted(headings, key=lambda heading: heading.start)):
        groups = _groups(_units(text, spans, count, max_tokens), max_tokens)
        for group in _fitting(groups, count, max_tokens):
            start, end = group[0].start, group[-1].end
            drafts.append(PassageDraft(len(drafts), start, end, text[start:end], path))
    return drafts


class _Counter:
    """Counts the tokens of spans, a bounded amount of text at a time."""

    def __init__(self, text: str, count_tokens: CountTokens) -> None:
        self._text = text
        self._count_tokens = count_tokens

    def __call__(self, spans: Sequence[Span]) -> list[int]:
        counts: list[int] = []
        batch: list[str] = []
        size = 0
        for start, end in spans:
            if (
                end - start > _BATCH_CHARACTERS
            ):  # a tokenizer needs sixty times the room: by pieces, a token more for each
                counts += [*(self._of(batch) if batch else []), sum(self(_slices(start, end)))]
                batch, size = [], 0
                continue
            batch.append(self._text[start:end])
            size += end - start
            if size >= _BATCH_CHARACTERS:
                counts += self._of(batch)
                batch, size = [], 0
        return counts + (self._of(batch) if batch else [])

    def _of(self, batch: list[str]) -> list[int]:
        counted = zip(batch, self._count_tokens(batch), strict=True)
        return [
            tokens + sum(len(word) // _CHARACTERS_PER_TOKEN for word in _LONG_WORD.findall(piece))
            for piece, tokens in counted
        ]


def _slices(start: int, end: int) -> list[Span]:
    return [(left, min(left + _BATCH_CHARACTERS, end)) for left in range(start, end, _BATCH_CHARACTERS)]


def _sections(text: str, headings: Sequence[Heading]) -> Iterator[tuple[str, list[Span]]]:
    """The sentences between headings, each list with the path ("A > B") that stands over it."""
    path: list[Heading] = []
    spans = _sentences(text, 0, headings[0].start if headings else len(text))
    bodied = True  # whether the section has more than headings
    for number, heading in enumerate(headings):
        following = headings[number + 1].start if number + 1 < len(headings) else len(text)
        if bodied and spans:
            yield _joined(path), spans
            spans = []
        path = [*(above for above in path if above.level < heading.level), heading]
        line_end = text.find("\n", heading.start, following)
        line_end = following if line_end < 0 else line_end
        spans += _sentences(text, heading.start, line_end)
        body = _sentences(text, line_end, following)
        bodied = bool(body)
        spans += body
    if spans:
        yield _joined(path), spans


def _sentences(text: str, start: int, end: int) -> list[Span]:
    return [(start + left, start + right) for left, right in split_sentences(text[start:end])]


def _joined(path: Sequence[Heading]) -> str:
    return " > ".join(heading.title for heading in path if heading.title)


def _units(text: str, spans: Sequence[Span], count: _Counter, max_tokens: int) -> list[_Unit]:
    """The sentences, those that are too long in pieces."""
    units: list[_Unit] = []
    last = -1
    for (start, end), tokens in zip(spans, count(spans), strict=True):
        opens = last < 0 or text.count("\n", last, start) > 1
        pieces = (
            [(start, end, tokens)] if tokens <= max_tokens else _pieces(text, (start, end), tokens, count, max_tokens)
        )
        for number, (left, right, size) in enumerate(pieces):
            units.append(_Unit(left, right, size, opens and number == 0))
        last = end
    return units


def _pieces(text: str, span: Span, tokens: int, count: _Counter, max_tokens: int) -> list[tuple[int, int, int]]:
    """The span cut at lines or words, and a word that is too long at characters, until each piece fits."""
    done: list[tuple[int, int, int]] = []
    todo = [(*span, tokens)]
    while todo:
        cut = [
            piece
            for start, end, size in todo
            for piece in _cut(text, start, end, min(end - start, max(2, -(-size // max_tokens))))
        ]
        counted = [(*piece, size) for piece, size in zip(cut, count(cut), strict=True)]
        todo = [piece for piece in counted if piece[2] > max_tokens and piece[1] - piece[0] > 1]
        done += [piece for piece in counted if piece[2] <= max_tokens or piece[1] - piece[0] == 1]
    return sorted(done)


def _cut(text: str, start: int, end: int, parts: int) -> Iterator[Span]:
    """About `parts` spans of about one length: cut at white space, or anywhere when there is none."""
    one_word = _SPACE.search(text, start, end) is None
    step = (end - start) / parts
    previous = start
    for part in range(1, parts):
        target = start + round(part * step)
        if target <= previous:
            continue
        cut = target
        if not one_word:
            cut = text.rfind("\n", max(previous + 1, target - int(step / 3)), target)
            if cut < 0:
                cut = max(text.rfind(" ", previous + 1, target), text.rfind("\n", previous + 1, target))
            if cut < 0:
                cut = _first_space(text, target, end)
        if cut >= end:  # the last word reaches over every target
            cut = _first_space(text, previous, end) if previous == start else end
        if cut >= end:
            break
        yield from _trimmed_span(text, previous, cut)
        previous = cut
    yield from _trimmed_span(text, previous, end)


def _first_space(text: str, start: int, end: int) -> int:
    space = _SPACE.search(text, start, end)
    return end if space is None else space.start()


def _trimmed_span(text: str, start: int, end: int) -> Iterator[Span]:
    start, end = trimmed(text, start, end)
    if start < end:
        yield start, end


def _groups(units: Sequence[_Unit], max_tokens: int) -> list[list[_Unit]]:
    """The units packed into passages, whole paragraphs where they fit."""
    groups: list[list[_Unit]] = [[]]
    total = 0
    for paragraph in _paragraphs(units):
        size = sum(unit.tokens for unit in paragraph)
        if total + size > max_tokens >= size and total * _SMALL >= max_tokens:
            groups.append([])
            total = 0
        for unit in paragraph:
            if total + unit.tokens > max_tokens and groups[-1]:
                groups.append([])
                total = 0
            groups[-1].append(unit)
            total += unit.tokens
    if len(groups) > 1 and total * _SMALL < max_tokens:
        groups[-2:] = _balanced(groups[-2] + groups[-1], len(groups[-2]), max_tokens)
    return [group for group in groups if group]


def _paragraphs(units: Sequence[_Unit]) -> Iterator[list[_Unit]]:
    paragraph: list[_Unit] = []
    for unit in units:
        if unit.opens and paragraph:
            yield paragraph
            paragraph = []
        paragraph.append(unit)
    if paragraph:
        yield paragraph


def _balanced(units: list[_Unit], default: int, max_tokens: int) -> list[list[_Unit]]:
    """Two groups of about one size, the second beginning with a paragraph where that costs little."""
    total = sum(unit.tokens for unit in units)
    best, best_cost, left = default, float("inf"), 0
    for index in range(1, len(units)):
        left += units[index - 1].tokens
        if left <= max_tokens and total - left <= max_tokens:
            cost = abs(total - 2 * left) + (0 if units[index].opens else max_tokens / _SMALL)
            if cost < best_cost:
                best, best_cost = index, cost
    return [units[:best], units[best:]]


def _fitting(groups: list[list[_Unit]], count: _Counter, max_tokens: int) -> list[list[_Unit]]:
    """The groups, those halved whose text has more tokens than its sentences have one by one."""
    done: list[list[_Unit]] = []
    todo = groups
    while todo:
        halves: list[list[_Unit]] = []
        for group, tokens in zip(todo, count([(group[0].start, group[-1].end) for group in todo]), strict=True):
            if tokens <= max_tokens or len(group) == 1:
                done.append(group)
            else:
                halves += [group[: len(group) // 2], group[len(group) // 2 :]]
        todo = halves
    return sorted(done, key=lambda group: group[0].start)
