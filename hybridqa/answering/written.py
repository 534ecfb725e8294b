"""An answer's text while it is being written: what can be said of it already, and what it is when it ends.

Knows nothing about engines. Invariant: what was handed out so far is how the text begins that it ends as.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hybridqa.answering.citations import CODE, cite_behind, clean
from hybridqa.types import Citation, ScoredPassage

# At the end of a text: what is, may become or may go on as a marker, with the gap before it that goes where it goes.
_OPEN = r"\[[^\[\]]{0,80}"
_JOINT = r"\s*(?:[,;&]|a|an|and|o|or)?\s*"
_UNDECIDED = re.compile(rf"\s*{_OPEN}(?:\]{_JOINT}(?:{_OPEN})?)*$|\s+$", re.IGNORECASE)
_CLOSED = re.compile(r"(?s)```.*?```")


class Written:
    """One answer's text; passages are those of its prompt, numbered from 1."""

    def __init__(self, passages: Sequence[ScoredPassage], question: str) -> None:
        self._passages = passages
        self._question = question
        self._raw = ""
        self._settled, self._start = "", 0  # the lines that are done with, as they are said; where the next begins
        self._known = 0  # characters of it that were decided when something was said last
        self._said = ""

    def add(self, text: str) -> str:
        """Takes what the model wrote next, and gives what is certain by now."""
        self._raw += text
        begun = self._raw.lstrip()[self._start :]
        known = _decided(begun)
        if said := self._say(self._settled + clean(known, self._passages)[0]):
            self._known = self._start + len(known)
        if line := _last_line(known):  # a long text is not read again for each of its words
            self._settled += clean(known[:line], self._passages)[0]
            self._start += line
        return said

    def end(self) -> tuple[str, str, tuple[Citation, ...]]:
        """The rest that is to be said, then the whole text and its citations."""
        text, _ = clean(self._raw.strip(), self._passages)
        if not text.startswith(self._said):
            # A marker of a hundred characters was taken for text: what comes behind it is not lost.
            text = self._said + clean(self._raw.strip()[self._known :], self._passages)[0]
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
    plain = text.rstrip("`")
    code = [match.span() for match in CODE.finditer(plain)]
    begun, ended = code[-1] if code else (0, 0)
    if ended == len(plain) and plain.startswith("```", begun) and not _CLOSED.fullmatch(plain, begun):
        return plain.rstrip()
    line = max(ended, plain.rfind("\n") + 1)
    if (quoted := plain.find("`", line)) >= 0:  # code, if it is closed on this line
        plain = plain[:quoted]
    undecided = _UNDECIDED.search(plain, ended)
    return plain[: undecided.start()] if undecided else plain


def _last_line(text: str) -> int:
    """Where the last line begins that has nothing to do with those before it; 0 where none does."""
    line = text.rfind("\n") + 1
    plain = line and line < len(text) and not text[line].isspace() and text[line] not in "[`"
    return (
        line if plain and not any(start < line < end for start, end in map(re.Match.span, CODE.finditer(text))) else 0
    )
