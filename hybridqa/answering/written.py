"""An answer's text while it is being written: what can be said of it already, and what it is when it ends.

Knows nothing about engines. Invariant: what was handed out so far is how the text begins that it ends as.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hybridqa.answering.citations import cite_behind, clean
from hybridqa.types import Citation, ScoredPassage

# At the end of a text: what is, may become or may go on as a marker, with the gap before it that goes where it goes.
_OPEN = r"\[[^\[\]\n]{0,24}"
_JOINT = r"\s*(?:[,;&]|a|an|and|o|or)?\s*"
_UNDECIDED = re.compile(rf"\s*{_OPEN}(?:\]{_JOINT}(?:{_OPEN})?)*$|\s+$", re.IGNORECASE)
_FENCED = re.compile(r"(?s)```.*?(?:```|\Z)")


class Written:
    """One answer's text; passages are those of its prompt, numbered from 1."""

    def __init__(self, passages: Sequence[ScoredPassage], question: str) -> None:
        self._passages = passages
        self._question = question
        self._raw = ""
        self._said = ""

    def add(self, text: str) -> str:
        """Takes what the model wrote next, and gives what is certain by now."""
        self._raw += text
        known = _decided(self._raw.lstrip())
        return self._say(clean(known, self._passages)[0])

    def end(self) -> tuple[str, str, tuple[Citation, ...]]:
        """The rest that is to be said, then the whole text and its citations."""
        text, _ = clean(self._raw.strip(), self._passages)
        if not text.startswith(self._said):
            text = self._said
        text, citations = cite_behind(text, self._passages, self._question)
        return self._say(text), text, citations

    def _say(self, text: str) -> str:
        """What of a text has not been said yet."""
        if not text.startswith(self._said):
            return ""
        new = text[len(self._said) :]
        self._said = text
        return new


def _decided(text: str) -> str:
    """As much of an unfinished text as stays what it is, whatever comes behind it."""
    fence = text.count("```") % 2 == 1
    plain = text.rstrip("`")
    if not fence:
        last = _FENCED.sub(lambda match: " " * len(match.group()), plain).rpartition("\n")[2]
        if last.count("`") % 2:  # code, if it is closed on this line
            plain = plain[: len(plain) - len(last) + last.rindex("`")]
    undecided = None if fence else _UNDECIDED.search(plain)
    return plain[: undecided.start()] if undecided else plain.rstrip()
