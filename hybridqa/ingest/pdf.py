"""PDF to text.

Knows nothing about scanned pages beyond saying that they have no text. Invariant: a file that cannot be read whole is
refused, never read in part.
"""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO

from pypdf import PdfReader
from pypdf.errors import DependencyError, LimitReachedError, PyPdfError

from hybridqa.errors import UnreadableDocumentError
from hybridqa.ingest.source import SourceText, TextBuilder, normalise, one_line

# what pypdf lets through, besides its own, when a file's objects are not what they claim to be
_DAMAGE = (
    PyPdfError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError,
    NotImplementedError, EOFError, OSError, struct.error, zlib.error,
)  # fmt: skip
_UNPACKED_PER_BYTE = 10  # of the allowed size, for the contents of all pages; what pages share counts for each
_HYPHENATED = re.compile(r"(?<=[^\W\d_])-\n(?=[^\W\d_])")
_UNTITLED = re.compile(r"^(untitled|microsoft word|anonymous|document\d*)\b|\.(docx?|tex|indd|dvi|pdf)$", re.IGNORECASE)


def read_pdf(data: bytes, name: str, *, max_bytes: int) -> SourceText:
    """The text of all pages, words joined that a line end has hyphenated. Raises `UnreadableDocumentError`."""
    out = TextBuilder(name, max_bytes)
    unpacked = 0
    try:
        reader = PdfReader(BytesIO(data), strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableDocumentError(
                f"{name!r} is an encrypted PDF; expected one that opens without a password. "
                "Save it without the password, then add it again."
            )
        for page in reader.pages:
            contents = page.get_contents()
            unpacked += 0 if contents is None else len(contents.get_data())
            if unpacked > _UNPACKED_PER_BYTE * max_bytes:
                raise LimitReachedError(f"over {_UNPACKED_PER_BYTE * max_bytes:,} bytes of page contents")
            out.add(_joined(page.extract_text()))
        title = one_line(normalise(str((reader.metadata and reader.metadata.title) or "")))
    except UnreadableDocumentError:
        raise
    except DependencyError as error:
        raise UnreadableDocumentError(
            f"{name!r} is an encrypted PDF ({error}); save it without encryption, then add it again."
        ) from error
    except LimitReachedError as error:
        raise UnreadableDocumentError(
            f"{name!r} is a PDF with more in it than can be read ({error}); expected one of less. Split it, or raise "
            "`max_document_mb` in hybridqa.toml."
        ) from error
    except _DAMAGE as error:
        raise UnreadableDocumentError(
            f"{name!r} is a damaged PDF ({type(error).__name__}: {error}); expected a file that a PDF viewer opens. "
            "Save it anew from one, then add it again."
        ) from error
    text, _ = out.finish()
    if not text:
        raise UnreadableDocumentError(
            f"{name!r} is a PDF without text, as scans are; put text into it first, for example with "
            "`ocrmypdf scan.pdf text.pdf`, then add that."
        )
    return SourceText("" if _UNTITLED.search(title) else title, text, "application/pdf")


def _joined(page: str) -> str:
    """The page with hyphenated words whole; a hyphen before a capital stays."""
    return _HYPHENATED.sub(lambda match: "" if page[match.end()].islower() else "-", page)
