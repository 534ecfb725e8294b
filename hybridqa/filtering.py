"""Whether a document passes a `Filter`.

Knows nothing about SQL or search. Invariant: values are compared as JSON compares them: 1 equals 1.0, and true equals
no number.

A document's date is its metadata's "date" where that is an ISO 8601 text, else the time of its last change. A date
without a time is that day's beginning, and a time without a zone is UTC.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from hybridqa.errors import InputError
from hybridqa.types import Filter

DATE_KEY = "date"  # of the metadata
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Test = Callable[[str, str], bool]  # metadata as JSON, the time of the last change


def check_filter(chosen: Filter) -> None:
    """Raises `InputError` for values that nothing can be compared with."""
    ids = chosen.doc_ids
    if ids is not None and not (_is_list(ids) and all(isinstance(doc_id, str) for doc_id in ids)):
        raise InputError(f"doc_ids={ids!r} cannot filter; expected ids of documents such as ('report.pdf',).")
    if not isinstance(chosen.metadata, Mapping) or not all(isinstance(key, str) for key in chosen.metadata):
        raise InputError(f"metadata={chosen.metadata!r} cannot filter; expected keys and values such as {{'year': 3}}.")
    try:
        json.dumps(dict(chosen.metadata), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"metadata={chosen.metadata!r} cannot filter: {error}; expected texts, numbers, lists and mappings."
        ) from error
    for name, text in (("since", chosen.since), ("until", chosen.until)):
        if text is not None and instant(text) is None:
            raise InputError(
                f"{name}={text!r} is no date; expected ISO 8601 such as '2031-03-08' or '2031-03-08T12:00'."
            )


def document_test(chosen: Filter) -> Test:
    """Says of a document whether metadata and dates let it pass; its id has been looked at."""
    wanted = {key: value if isinstance(value, list | tuple) else [value] for key, value in chosen.metadata.items()}
    since = None if chosen.since is None else instant(chosen.since)
    until = None if chosen.until is None else instant(chosen.until, end=True)

    def passes(metadata: str, updated_at: str) -> bool:
        known: dict[str, Any] = json.loads(metadata)
        for key, values in wanted.items():
            if key not in known or not any(same(known[key], value) for value in values):
                return False
        if since is None and until is None:
            return True
        moment = instant(known.get(DATE_KEY))
        moment = instant(updated_at) if moment is None else moment
        if moment is None:
            return False
        return (since is None or since <= moment) and (until is None or moment <= until)

    return passes


def same(one: Any, other: Any) -> bool:
    """Whether two values are one in JSON."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if _is_list(one) and _is_list(other):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def instant(text: Any, *, end: bool = False) -> int | None:
    """Microseconds since 1970 of an ISO 8601 text, with `end` those of a bare date's last moment; None for another."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        micros = (moment - _EPOCH) // _MICROSECOND
        return micros + timedelta(days=1) // _MICROSECOND - 1 if end and _is_date(text) else micros
    except (ValueError, OverflowError):
        return None


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
