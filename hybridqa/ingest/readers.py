"""Files to text: which reader a file goes to, and which files are refused before one sees them.

Knows nothing about passages or storage. Invariant: what comes back has letters or digits in it and obeys the rules of
`source`; everything else is an `UnreadableDocumentError` that names the file. No file is read beyond `max_bytes`.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

from hybridqa.errors import UnreadableDocumentError
from hybridqa.ingest.source import Heading, SourceText, check_size, normalise, short_line, shown_name

__all__ = ["SUFFIXES", "Heading", "SourceText", "is_folder", "read_bytes", "read_path", "too_large", "walk"]

_TEXT = {".txt": "text/plain", ".rst": "text/x-rst", ".log": "text/plain", ".csv": "text/csv"}
_MARKDOWN = frozenset((".md", ".markdown"))
_HTML = frozenset((".html", ".htm"))
SUFFIXES = frozenset((*_TEXT, *_MARKDOWN, *_HTML, ".pdf", ".docx"))

_MARKS = (  # the longer one first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_:.-]{1,40})", re.IGNORECASE)
_CONTROL_BYTES = bytes(set(range(0x20)) - set(b"\t\n\v\f\r\x1b") | {0x7F})
_BINARY_SHARE = 0.01  # of control bytes: text has next to none, compressed data a tenth
_HTML_START = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html)\b", re.IGNORECASE)


def is_folder(path: Path) -> bool:
    """Whether there is a folder at `path`. Raises `UnreadableDocumentError` when nobody can tell."""
    try:
        return path.is_dir()
    except OSError as error:  # too long for a name, or below a folder that may not be entered
        raise _unreadable(path, error) from error


def walk(path: Path, on_error: Callable[[UnreadableDocumentError], None] | None = None) -> Iterator[Path]:
    """The supported files under a folder, sorted; hidden files and folders are left out, linked folders not entered.

    A file is given as it is. Raises `UnreadableDocumentError` when there is nothing at `path` or nothing supported;
    what may not be looked at goes to `on_error`, and is raised without one.
    """
    if not is_folder(path):
        if not path.is_file():
            raise _missing(str(path))
        return iter((path,))
    found: list[Path] = []
    failed: list[UnreadableDocumentError] = []
    for folder, folders, names in os.walk(path, onerror=lambda error: failed.append(_unreadable(path, error))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(folder, name)
            if name.startswith(".") or file.suffix.lower() not in SUFFIXES:
                continue
            try:
                if file.is_file():
                    found.append(file)
            except OSError as error:
                failed.append(_unreadable(file, error))
    for problem in sorted(failed, key=str):
        if on_error is None:
            raise problem
        on_error(problem)
    if not found and not failed:
        raise UnreadableDocumentError(
            f"{str(path)!r} holds no document; expected files ending in {', '.join(sorted(SUFFIXES))}."
        )
    return iter(sorted(found))


def read_path(path: Path, *, max_bytes: int) -> SourceText:
    """The text of a file. Raises `UnreadableDocumentError`."""
    name = str(path)
    try:
        if not path.exists():
            raise _missing(name)
        if not path.is_file():
            raise UnreadableDocumentError(f"{name!r} is no file; expected a document.")
        size = path.stat().st_size
        if size > max_bytes:
            raise too_large(name, size, max_bytes)
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)  # it may have grown
    except OSError as error:
        raise _unreadable(path, error) from error
    return read_bytes(data, name=name, max_bytes=max_bytes)


def read_bytes(data: bytes, *, name: str, max_bytes: int) -> SourceText:
    """The text of a file's content; `name` gives its kind by its ending, or else the content does.

    Raises `UnreadableDocumentError`.
    """
    if len(data) > max_bytes:
        raise too_large(name, len(data), max_bytes)
    if not data.strip():
        raise UnreadableDocumentError(f"{name!r} is empty; expected a document with text.")
    source = _read(data, name, max_bytes)
    check_size(name, len(source.text), len(source.headings), max_bytes)
    if not any(character.isalnum() for character in source.text):
        raise UnreadableDocumentError(f"{name!r} has no text; expected at least one word.")
    return replace(source, title=short_line(source.title or shown_name(PurePath(name).stem or name)))


def too_large(name: str, size: int, max_bytes: int) -> UnreadableDocumentError:
    """What a file is refused with that has more than `max_bytes`."""
    return UnreadableDocumentError(
        f"{name!r} has {size:,} bytes; expected at most {max_bytes:,}. Split it, or raise `max_document_mb` in "
        "hybridqa.toml."
    )


def _read(data: bytes, name: str, max_bytes: int) -> SourceText:
    suffix = PurePath(name).suffix.lower()
    if suffix not in SUFFIXES:
        suffix = _sniffed(data)
    # each is imported when it is needed: the process that reads one upload waits for one of them
    if suffix == ".pdf":
        from hybridqa.ingest.pdf import read_pdf

        return read_pdf(data, name, max_bytes=max_bytes)
    if suffix == ".docx":
        from hybridqa.ingest.docx import read_docx

        return read_docx(data, name, max_bytes=max_bytes)
    if suffix in _HTML:
        from hybridqa.ingest.html import read_html

        return read_html(decode(data, name, _declared(data)), name, max_bytes=max_bytes)
    text = decode(data, name)
    if suffix in _MARKDOWN:
        from hybridqa.ingest.markdown import read_markdown

        return read_markdown(text, name)
    return SourceText("", normalise(text), _TEXT[suffix])


def _declared(data: bytes) -> str | None:
    """The encoding that a page's markup names, by the web's rules: what can be read there is no UTF-16."""
    found = _META_CHARSET.search(data[:4096])
    if found is None:
        return None
    label = found.group(1).decode("ascii")
    try:
        name = codecs.lookup(label).name
    except LookupError:
        return "utf-8"
    if name in ("iso8859-1", "ascii"):
        return "cp1252"
    return "utf-8" if name.startswith(("utf-", "unicode", "raw-unicode", "punycode", "idna")) else name


def _sniffed(data: bytes) -> str:
    if data.startswith(b"%PDF-"):
        return ".pdf"
    if data.startswith(b"PK\x03\x04") and b"word/" in data:
        return ".docx"
    return ".html" if _HTML_START.match(data[:4096]) else ".txt"


def decode(data: bytes, name: str, declared: str | None = None) -> str:
    """Bytes as text: by the byte order mark, as declared, as UTF-8, or else as Windows-1252 or Latin-1.

    Raises `UnreadableDocumentError` for bytes that are no text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    controls = len(data) - len(data.translate(None, _CONTROL_BYTES))
    if controls > _BINARY_SHARE * len(data) or data.startswith((b"%PDF-", b"PK\x03\x04")):
        raise UnreadableDocumentError(
            f"{name!r} is binary; expected text. If it is a PDF or DOCX, give it its ending; other formats are to be "
            "saved as one of those first."
        )
    for encoding in (*([declared] if declared else []), "utf-8", "cp1252"):
        try:
            return data.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    return data.decode("latin-1")


def _unreadable(path: Path, error: OSError) -> UnreadableDocumentError:
    name = str(error.filename or path)
    wanted = "a path shorter than that" if error.errno == errno.ENAMETOOLONG else "a file or folder that may be read"
    return UnreadableDocumentError(
        f"{name[:200]!r} cannot be read: {error.strerror}; expected {wanted}. Check the path and its permissions."
    )


def _missing(name: str) -> UnreadableDocumentError:
    return UnreadableDocumentError(f"there is nothing at {name!r}; expected a file or folder. Check the path.")
