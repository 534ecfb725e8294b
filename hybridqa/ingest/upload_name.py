"""A document's id from the file name that a client sent.

Knows nothing about documents. Invariant: the id is one line of printable characters that names no folder, at most
`MAX_CHARACTERS` long, ends as the file does, and comes out of its own name again.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import PurePosixPath

from hybridqa.errors import InputError
from hybridqa.ingest.source import one_line

MAX_CHARACTERS = 200
_LONGEST_ENDING = 16
_DIGEST = 8  # hex digits, so that two long names which begin alike stay two documents
_SEPARATORS = re.compile(r"[/\\]")


def upload_name(filename: str) -> str:
    """The last part of the name, whatever system it is from, without what cannot be seen. Raises `InputError`."""
    last = unicodedata.normalize("NFC", _SEPARATORS.split(filename)[-1])  # a Mac takes its accents apart
    name = one_line("".join(character for character in _spaced(last) if character.isprintable()))
    if len(name) > MAX_CHARACTERS:
        ending = PurePosixPath(name).suffix
        ending = ending if len(ending) <= _LONGEST_ENDING else ""
        tail = f"~{hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]}{ending}"
        name = name[: MAX_CHARACTERS - len(tail)].rstrip() + tail
    if name in ("", ".", ".."):
        raise InputError(
            f"{filename[:80]!r} is no file name; expected one with a visible character, or an `id` beside it."
        )
    return name


def _spaced(name: str) -> str:
    return "".join(" " if character.isspace() else character for character in name)
