"""KEY=VALUE words, and the options that say which documents may answer.

Knows nothing about how a filter is applied. Invariant: a value that is JSON is what that JSON says, any other the text
that was typed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from hybridqa.errors import InputError
from hybridqa.types import Filter

Documents = Annotated[
    list[str] | None, typer.Option("--document", help="Answer from this document alone; may be repeated.")
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="KEY=VALUE",
        help="Answer from documents with this in their metadata; of one key given twice any value will do.",
    ),
]
Since = Annotated[
    str | None, typer.Option("--since", help="Answer from documents of this date, such as 2031-03-08, or later.")
]
Until = Annotated[str | None, typer.Option("--until", help="Answer from documents of this date or earlier.")]


def filter_of(
    document: Sequence[str] | None, where: Sequence[str] | None, since: str | None, until: str | None
) -> Filter | None:
    """The filter that the options ask for; None when they ask for none. Raises `InputError`."""
    metadata: dict[str, list[Any]] = {}
    for key, value in pairs(where, "--where"):
        metadata.setdefault(key, []).append(value)
    chosen = Filter(tuple(document) if document else None, metadata, since, until)
    return None if chosen.is_open else chosen


def metadata_of(words: Sequence[str] | None) -> dict[str, Any] | None:
    """What `--meta` says of a document; None when nothing. Raises `InputError`."""
    known: dict[str, Any] = {}
    for key, value in pairs(words, "--meta"):
        if key in known:
            raise InputError(f"--meta {key!r} is given twice; expected one value, or a list such as {key}='[1, 2]'.")
        known[key] = value
    return known or None


def pairs(words: Sequence[str] | None, option: str) -> list[tuple[str, Any]]:
    """The keys and values of an option's words. Raises `InputError`."""
    found = []
    for word in words or ():
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise InputError(f"{option} {word!r} is no KEY=VALUE; expected one such as {option} team=sales.")
        try:
            found.append((key, json.loads(value, parse_constant=_refuse)))
        except ValueError:
            found.append((key, value))
    return found


def _refuse(constant: str) -> None:
    """NaN and its kin are no JSON: they are texts."""
    raise ValueError(constant)
