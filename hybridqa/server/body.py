"""What every JSON body has to be, and how a parameter is refused that cannot be followed.

Knows nothing about any one path. Invariant: a text that gets past here is valid Unicode and a number is finite, so
that neither a tokenizer, nor the catalog, nor the answer's own JSON stumbles over it.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, model_validator

from hybridqa.server.errors import ApiError

Allowed = Mapping[str, Sequence[Any]]  # parameter → the values that ask for nothing; None always does


class Body(BaseModel):
    """A request's body."""

    @model_validator(mode="before")
    @classmethod
    def _is_plain(cls, body: Any) -> Any:
        check_plain(body)
        return body


def check_plain(body: Any) -> None:
    """Raises `ApiError` for what `json.loads` takes and JSON in UTF-8 does not have."""
    try:
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply.", code="json_invalid") from error
    except TypeError:  # it was no JSON: what is wrong with it is said where it is read
        return
    except ValueError as error:
        place, said = _fault(body)
        raise ApiError(400, f"{place}: {said}", param=place, code="json_invalid") from error


def refuse(body: Any, allowed: Allowed) -> None:
    """Raises `ApiError` for the first parameter that asks for what cannot be given."""
    if not isinstance(body, dict):
        return
    for name, values in allowed.items():
        value = body.get(name)
        if value is None or value in values:
            continue
        expected = "it left out" if not values else " or ".join(map(repr, values))
        raise ApiError(
            400,
            f"{name}={reprlib.repr(value)} cannot be followed; expected {expected}.",
            param=name,
            code="unsupported_parameter",
        )


def _fault(body: Any) -> tuple[str, str]:
    """Where it is and what is wrong there; the body has a fault."""
    left: list[tuple[str, Any]] = [("", body)]
    while left:
        place, value = left.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return place or "the body", f"{value!r} is no number of JSON; expected a finite one."
        if isinstance(value, str) and (wrong := _lone(value)):
            return place or "the body", f"{wrong!r} is no valid Unicode; expected a text in UTF-8."
        inner = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
        for key, one in inner:
            if isinstance(key, str) and (wrong := _lone(key)):
                return place or "the body", f"a name with {wrong!r} is no valid Unicode; expected a text in UTF-8."
            left.append((f"{place}.{key}" if place else str(key), one))
    raise AssertionError("there is no fault")


def _lone(text: str) -> str:
    """The first surrogate, which cannot be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return ""
