"""Markdown to text that still reads like its source: structure, tables and code stay, marks that only style go.

Knows nothing about rendering. Invariant: nothing inside a code block is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from itertools import zip_longest
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import normalizeReference
from markdown_it.token import Token

from hybridqa.errors import UnreadableDocumentError
from hybridqa.ingest.source import Heading, SourceText, normalise, one_line, short_line

_FRONT_LINE = re.compile(r"(?:[\w\"'-][\w .\"'-]{0,80}:(?:[ \t].*)?|[ \t-].*|#.*|)$")
_FRONT_TITLE = re.compile(r"title:[ \t]*(.+)$")
_MAX_FRONT_LINES = 200
_MOST_TOKENS = 1_000_000  # the parser makes half a kilobyte of each
_TARGET = r"\([^()\s]{0,2000}(?:\([^()\s]{0,500}\)[^()\s]{0,500})?(?:[ \t]+[\"'][^\"'\n]{0,300}[\"'])?\)"
_LINK = re.compile(rf"!?\[([^\[\]\n]{{0,1000}})\]{_TARGET}")
_REFERENCE_LINK = re.compile(r"!?\[([^\[\]\n]{1,1000})\]\[([^\[\]\n]{0,200})\]")
_REFERENCE = re.compile(r"[ ]{0,3}\[([^\[\]\n]{1,200})\]:[ \t]*\S+(?:[ \t]+[\"'(].*)?$")
_AUTO_LINK = re.compile(r"<((?:https?|mailto):[^<>\s]{1,2000})>")
_TAG_NAMES = (
    "a|abbr|article|aside|b|big|blockquote|br|center|cite|code|dd|del|details|div|dl|dt|em|figcaption|figure|font|footer|"
    "h[1-6]|header|hr|i|iframe|img|input|ins|kbd|label|li|main|mark|nav|ol|p|picture|pre|q|s|samp|script|section|small|"
    "source|span|strike|strong|style|sub|summary|sup|table|tbody|td|tfoot|th|thead|tr|tt|u|ul|var|video"
)
_TAG = re.compile(rf"</?(?:{_TAG_NAMES})(?:\s[^<>]{{0,2000}})?/?>", re.IGNORECASE)
_STRONG = re.compile(r"(\*\*|__)(?=[^\s*_])([^*_\n]{1,1000})\1")
_EMPHASIS = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]{1,1000})\*(?![\w*])|(?<!\w)_(?=[^\s_])([^_\n]{1,1000})_(?!\w)")
_CODE_SPAN = re.compile(r"((?<!`)`{1,3}(?!`))([^`\n]{1,1000})\1(?!`)")
_ESCAPE = re.compile(r"\\([\\`*_{}\[\]()#+\-.!|<>~])")


def read_markdown(source: str, name: str) -> SourceText:
    """The text, its headings and its title: of the front matter, or else the first heading of level 1.

    Raises `UnreadableDocumentError`.
    """
    source = normalise(source)
    title, source = _without_front_matter(source)
    lines = source.split("\n")
    blocks, references = _structure(source, name)
    out: list[str] = []
    headings: list[Heading] = []
    length = 0
    for text, level in _cleaned(lines, blocks, references):
        if level and text:
            headings.append(Heading(length, level, short_line(text)))
        out.append(text)
        length += len(text) + 1
    first = next((heading.title for heading in headings if heading.level == 1), "")
    return SourceText(title or first, "\n".join(out).rstrip(), "text/markdown", tuple(headings))


@dataclass(frozen=True, slots=True)
class _Block:
    """Lines that are not plain text."""

    kind: str  # "heading", "code", "html" or "reference"
    end: int  # the line after the last
    level: int = 0
    content: str = ""


class _Tokens(list[Token]):
    """What the parser finds, as much as there is room for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def append(self, token: Token) -> None:
        """Adds a token. Raises `UnreadableDocumentError`."""
        if len(self) >= _MOST_TOKENS:
            raise UnreadableDocumentError(
                f"{self._name!r} has more than {_MOST_TOKENS:,} beginnings and ends of Markdown blocks; expected no "
                "more. Split it, or save it as text."
            )
        super().append(token)


def _without_front_matter(source: str) -> tuple[str, str]:
    """The title in a YAML block at the top, and the text without the block."""
    lines = source.split("\n", _MAX_FRONT_LINES + 1)
    if lines[0] != "---" or len(lines) < 3 or ":" not in lines[1]:
        return "", source
    title = ""
    for number, line in enumerate(lines[1 : _MAX_FRONT_LINES + 1], 1):
        if line in ("---", "..."):
            return title, "\n".join(lines[number + 1 :]).lstrip("\n")
        if not _FRONT_LINE.match(line):
            break
        found = _FRONT_TITLE.match(line)
        title = found.group(1).strip().strip("\"'") if found else title
    return "", source


def _structure(source: str, name: str) -> tuple[dict[int, _Block], set[str]]:
    """The blocks that are not plain text by their first line, and the labels that links may refer to."""
    parser = MarkdownIt("commonmark").enable("table")
    kinds = {"fence": "code", "code_block": "code", "html_block": "html"}
    blocks: dict[int, _Block] = {}
    environment: dict[str, Any] = {}
    tokens = _Tokens(name)
    parser.block.parse(source, parser, environment, tokens)  # blocks alone are wanted
    for token, following in zip_longest(tokens, tokens[1:]):
        if token.map is None:
            continue
        start, end = token.map
        if token.type == "heading_open" and following is not None:
            blocks[start] = _Block("heading", end, int(token.tag[1]), following.content)
        elif token.type in kinds:
            blocks[start] = _Block(kinds[token.type], end)
    references: dict[str, Any] = environment.get("references", {})
    return blocks, set(references)


def _cleaned(lines: list[str], blocks: dict[int, _Block], references: set[str]) -> Iterator[tuple[str, int]]:
    """The text's lines, those of headings with their level."""
    number = 0
    while number < len(lines):
        block = blocks.get(number)
        if block is None:
            line = lines[number]
            found = _REFERENCE.match(line)
            if found is None or normalizeReference(found.group(1)) not in references:
                yield _plain(line, references), 0
            number += 1
            continue
        part = lines[number : block.end]
        if block.kind == "heading":
            yield one_line(_plain(block.content, references)), block.level
        elif block.kind == "code":
            yield from ((line, 0) for line in part)
        else:
            text = _TAG.sub("", _without_comments("\n".join(part)))
            yield from ((unescape(line.rstrip()), 0) for line in text.split("\n"))
        number = max(block.end, number + 1)


def _without_comments(text: str) -> str:
    parts = []
    position = 0
    while (start := text.find("<!--", position)) >= 0:
        parts.append(text[position:start])
        end = text.find("-->", start)
        if end < 0:
            return "".join(parts)
        position = end + len("-->")
    return "".join((*parts, text[position:]))


def _plain(line: str, references: set[str]) -> str:
    """A line without the marks of links and emphasis; what is in code spans stays as it is."""
    out = []
    position = 0
    for span in _CODE_SPAN.finditer(line):
        out += [_unmarked(line[position : span.start()], references), span.group(2).strip()]
        position = span.end()
    return "".join((*out, _unmarked(line[position:], references))).rstrip()


def _unmarked(text: str, references: set[str]) -> str:
    def named(link: re.Match[str]) -> str:
        label = link.group(2) or link.group(1)
        return link.group(1) if normalizeReference(label) in references else link.group()

    if "[" in text:
        text = _LINK.sub(r"\1", _LINK.sub(r"\1", text))  # twice: a link around an image
        text = _REFERENCE_LINK.sub(named, text)
    if "<" in text:
        text = _TAG.sub("", _without_comments(_AUTO_LINK.sub(r"\1", text)))
    if "*" in text or "_" in text:
        text = _EMPHASIS.sub(lambda found: found.group(1) or found.group(2), _STRONG.sub(r"\2", text))
    return unescape(_ESCAPE.sub(r"\1", text)) if "\\" in text or "&" in text else text
