"""DOCX to text: paragraphs, headings, lists and tables in their order.

Knows nothing about layout. Invariant: a file's unpacked size is known and bounded before any of it is unpacked.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import docx
from docx.opc.exceptions import OpcError
from lxml import etree

from hybridqa.errors import UnreadableDocumentError
from hybridqa.ingest.source import SourceText, TextBuilder, normalise, one_line

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_SKIPPED = (_W + "pPr", _W + "del", _W + "moveFrom")
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_HEADING = re.compile(r"heading (\d)", re.IGNORECASE)
_UNPACKED_PER_BYTE = 10  # of the allowed size, for all parts together
_XML_PER_BYTE = 4  # for the XML parts, which become objects in memory
_MOST_PARTS = 10_000  # each is looked for among those before it
_DAMAGE = (  # what python-docx lets through when a file's parts are not what they claim to be
    OpcError, zipfile.BadZipFile, etree.LxmlError, zlib.error, ValueError, LookupError, AttributeError, TypeError,
    AssertionError, OSError, EOFError, NotImplementedError, RuntimeError,
)  # fmt: skip
_TEMPLATE_TITLES = frozenset(("", "word document"))


def read_docx(data: bytes, name: str, *, max_bytes: int) -> SourceText:
    """The document's text, list items as "- " lines, table rows as "a | b" lines. Raises `UnreadableDocumentError`."""
    try:
        _check_size(data, name, max_bytes)
        package = docx.Document(BytesIO(data))
        styles = {style.style_id: (style.name or "").lower() for style in package.styles}
        title = one_line(normalise(package.core_properties.title or ""))
        out = TextBuilder(name, max_bytes)
        titled = _read_body(package.element.body, styles, out)
    except UnreadableDocumentError:
        raise
    except _DAMAGE as error:
        if getattr(error, "code", None) == etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError(str(error)) from error
        raise UnreadableDocumentError(
            f"{name!r} is a damaged DOCX ({type(error).__name__}: {error}); expected a file that a word processor "
            "opens. Save it anew from one, then add it again."
        ) from error
    text, headings = out.finish()
    if title.lower() in _TEMPLATE_TITLES:
        title = next((heading.title for heading in headings if heading.level == 1), "")
    media_type = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    return SourceText(titled or title, text, media_type, headings)


def _check_size(data: bytes, name: str, max_bytes: int) -> None:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        parts = archive.infolist()
    if len(parts) > _MOST_PARTS:
        raise UnreadableDocumentError(
            f"{name!r} has {len(parts):,} parts; expected at most {_MOST_PARTS:,}, as in a DOCX with so many pictures. "
            "Split it."
        )
    unpacked = sum(part.file_size for part in parts)
    xml = sum(part.file_size for part in parts if part.filename.lower().endswith((".xml", ".rels")))
    if unpacked > _UNPACKED_PER_BYTE * max_bytes or xml > _XML_PER_BYTE * max_bytes:
        raise UnreadableDocumentError(
            f"{name!r} unpacks to {unpacked:,} bytes, {xml:,} of them XML; expected at most "
            f"{_UNPACKED_PER_BYTE * max_bytes:,} and {_XML_PER_BYTE * max_bytes:,}. "
            "Split it, or raise `max_document_mb` in hybridqa.toml."
        )


def _read_body(body: Any, styles: dict[str, str], out: TextBuilder) -> str:
    """Adds the blocks to `out`; gives the text of the paragraph styled as the title."""
    title = ""
    in_list = False
    for block in _blocks(body):
        if block.tag == _W + "tbl":
            for number, row in enumerate(_within(block, "tr")):
                cells = (one_line(" ".join(map(_text, _within(cell, "p")))) for cell in _within(row, "tc"))
                out.add(" | ".join(cells).strip(" |"), tight=number > 0)
            in_list = False
            continue
        text = _text(block)
        style = _style(block, styles)
        heading = _HEADING.match(style)
        listed = heading is None and (style.startswith("list") or block.find(f"{_W}pPr/{_W}numPr") is not None)
        if style == "title" and not title:
            title = one_line(normalise(text))
        if text.strip():
            level = int(heading.group(1)) if heading else 0
            out.add("- " + text.strip() if listed else text, level=level, tight=listed and in_list)
            in_list = listed
    return title


def _blocks(body: Any) -> Iterator[Any]:
    """The outermost paragraphs and tables, also those in content controls and tracked insertions."""
    return _outermost(body, (_W + "p", _W + "tbl"))


def _within(element: Any, name: str) -> Iterator[Any]:
    return _outermost(element, (_W + name,))


def _outermost(element: Any, tags: tuple[str, ...]) -> Iterator[Any]:
    walk = etree.iterwalk(element, events=("start",), tag=(*tags, _FALLBACK))
    for _, found in walk:
        if found is element:
            continue
        if found.tag != _FALLBACK:  # says the same again for old readers
            yield found
        walk.skip_subtree()


def _text(paragraph: Any) -> str:
    """The paragraph's text as it reads with tracked changes accepted."""
    names = {_W + "t": "", _W + "tab": "\t", _W + "br": "\n", _W + "cr": "\n", _W + "noBreakHyphen": "-"}
    parts = []
    walk = etree.iterwalk(paragraph, events=("start",), tag=(*names, *_SKIPPED, _FALLBACK))
    for _, found in walk:
        if found.tag in names:
            parts.append(found.text or "" if found.tag == _W + "t" else names[found.tag])
        else:
            walk.skip_subtree()
    return "".join(parts)


def _style(paragraph: Any, styles: dict[str, str]) -> str:
    found = paragraph.find(f"{_W}pPr/{_W}pStyle")
    style_id = "" if found is None else found.get(_W + "val", "")
    return styles.get(style_id, style_id.lower())
