"""Tells an answer that says "I don't know" from one that says something.

Knows nothing about prompts or sources. Invariant: only how the answer begins counts, so that one which doubts a detail
after a fact is an answer.
"""

from __future__ import annotations

import re

_WHO = r"(?:i|we|the (?:provided |given )?(?:sources?|documents?|passages?|context|texts?)|sources?)"
_REFUSAL = re.compile(
    rf"^\W*(?:(?:sorry|unfortunately|based on [^,.]{{1,60}})\W+)?(?:but\s+)?(?:"
    rf"(?:i|we)\s+(?:really\s+)?(?:do\s+not|don't|cannot|can't|could\s+not|couldn't|am\s+not\s+able\s+to|am\s+unable\s+to|"
    rf"are\s+unable\s+to)\s+(?:know|find|answer|say|tell|determine)\b"
    rf"|(?:i'm|i\s+am)\s+(?:not\s+(?:sure|able)|unable|sorry)\b"
    rf"|{_WHO}\s+(?:do|does|did)(?:\s+not|n't)\s+"
    rf"(?:say|hold|contain|mention|state|specify|provide|include|give|tell|answer|describe|explicitly)\b"
    rf"|(?:there\s+is\s+)?no\s+(?:information|answer|mention)\b"
    rf"|(?:unknown|not\s+(?:known|mentioned|stated|specified|given))\s*\W*$"
    rf")",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether the answer says that it does not know."""
    first = re.split(r"(?<=[.!?])\s", text.strip().replace("’", "'"), maxsplit=1)[0]
    return bool(_REFUSAL.match(first)) or not re.search(r"\w", text)
