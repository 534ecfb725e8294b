"""What a reader makes of a file, and the rules every text is brought under.

Knows nothing about file formats. Invariant: a text from here has LF line ends, no byte order mark, no control
characters but tab and LF, no lone surrogates and at most two empty lines in a row; each heading's offset is where its
line begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hybridqa.errors import UnreadableDocumentError

MAX_TITLE = 300  # characters of a title or heading: it goes with every passage below it
MAX_HEADINGS = 100_000
_DROPPED = (*range(0x00, 0x09), 0x0B, *range(0x0E, 0x20), *range(0x7F, 0xA0), 0xFEFF)
_CONTROLS: dict[int, str | None] = {**dict.fromkeys(_DROPPED), 0x0C: "\n", 0x85: "\n"}  # form feed: a page; NEL: a line
_SURROGATES = re.compile("[\ud800-\udfff]")
_EMPTY_LINES = re.compile(r"\n{4,}")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading in a text."""

    start: int  # where its line begins
    level: int  # 1 is the highest
    title: str


@dataclass(frozen=True, slots=True)
class SourceText:
    """A file as text."""

    title: str
    text: str
    media_type: str
    headings: tuple[Heading, ...] = ()


def normalise(text: str) -> str:
    """The text under the rules above; the same text again when it is so already."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROLS)
    text = _SURROGATES.sub("", text)
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    return _EMPTY_LINES.sub("\n\n\n", text)


def one_line(text: str) -> str:
    """The text with every run of white space made one space."""
    return _SPACES.sub(" ", text).strip()


def shown_name(name: str) -> str:
    """A file's name as valid Unicode: bytes of it that are no UTF-8 become replacement characters."""
    return _SURROGATES.sub("\ufffd", name)


def short_line(text: str) -> str:
    """The text as a title: on one line, and its beginning where it is long."""
    return one_line(text[: 4 * MAX_TITLE])[:MAX_TITLE].rstrip()


def check_size(name: str, characters: int, headings: int, max_bytes: int) -> None:
    """Raises `UnreadableDocumentError` where a file of `max_bytes` at most has more in it than one can say plainly."""
    if characters > max_bytes:
        raise UnreadableDocumentError(
            f"{name!r} has more than {max_bytes:,} characters of text; expected no more than that. Split it, or raise "
            "`max_document_mb` in hybridqa.toml."
        )
    if headings > MAX_HEADINGS:
        raise UnreadableDocumentError(
            f"{name!r} has more than {MAX_HEADINGS:,} headings; expected no more than that. Split it."
        )


class TextBuilder:
    """Joins blocks into a normalised text and remembers where its headings are."""

    def __init__(self, name: str, max_bytes: int) -> None:
        """For the text of the file `name`, which is refused by `check_size` as soon as it has grown too large."""
        self._name = name
        self._max_bytes = max_bytes
        self._parts: list[str] = []
        self._length = 0
        self._headings: list[Heading] = []

    def add(self, block: str, *, level: int = 0, tight: bool = False) -> None:
        """Adds a block after an empty line, or after a line end when `tight`; `level` makes it a heading.

        Raises `UnreadableDocumentError`.
        """
        block = normalise(block)
        if level:
            block = one_line(block)
        if not block.strip():
            return
        if self._parts:
            self._append("\n" if tight else "\n\n")
        if level:
            self._headings.append(Heading(self._length, level, short_line(block)))
        self._append(block)
        check_size(self._name, self._length, len(self._headings), self._max_bytes)

    def finish(self) -> tuple[str, tuple[Heading, ...]]:
        """The text and its headings."""
        return "".join(self._parts), tuple(self._headings)

    def _append(self, piece: str) -> None:
        self._parts.append(piece)
        self._length += len(piece)
