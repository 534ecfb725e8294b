"""Judges what a model wrote about a chunk, before anything is learned from it; counts what it drops, by reason.

Knows nothing about engines or prompts. Invariant: what it lets pass is whole, new, names what it is about, and holds no
number and no name that its source does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from hybridqa.answering.refusal import is_refusal
from hybridqa.answering.support import content_words
from hybridqa.engine.protocol import Completion

CUT_OFF = "cut off"
NO_QUESTION = "no whole question"
REPEATED = "repeated"
GIVEN_AWAY = "gives its answer away"
NOT_SELF_CONTAINED = "not self-contained"
NOT_ABOUT = "not about its source"
UNANSWERABLE = "not in its source"
CONTRADICTED = "says what its source does not"
REFUSED = "no answer"

QUESTION_MARKS = ("?", "？", "؟", "\u037e")  # the last is the Greek one
MIN_COVERAGE = 0.6  # share of an answer's content words that stand in its chunk
_WORDS = (3, 40)  # of a question, fewest and most
_MARKER = re.compile(r"\s?\[\d{1,3}(?:\s*,\s*\d{1,3})*\]")
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_NAME = re.compile(r"[^\W\d_a-z][\w’'-]*")  # if its first letter is a capital, which scripts may not have
_SPELLED = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
}
_OF_THE_TEXT = re.compile(
    r"\b(?:th(?:e|is|at|ese|ose)|your) (?:above |given |following |provided |preceding |source |same )?"
    r"(?:text|passage|document|section|article|paragraph|excerpt|chunk|snippet|context|extract|author|writer|story)s?\b"
    r"|\b(?:mentioned|described|stated|listed|discussed) (?:above|below|here)\b",
    re.IGNORECASE,
)
_PRONOUNS = frozenset("it he she they him them its his her their this these those".split())
_AUXILIARIES = frozenset("is are was were has had have can could will would may might must should does did do".split())
_ASKING = frozenset(
    "what when where which who whose whom why how many much long far old often kind type year date time name in on at "
    "by to from for with of the a an".split()
)
_NO_SUBJECT = re.compile(
    r"(?:when|where|why|how)\s+(?:is|are|was|were|has been|have been|had been|did|does|do)\s+(?:\w+ed\b|\?)", re.I
)


@dataclass(slots=True)
class Critic:
    """The critic of what is written about one document."""

    title: str
    dropped: Counter[str] = field(default_factory=Counter)  # "kind: reason" → how many
    _seen: set[str] = field(default_factory=set)

    def know(self, questions: Iterable[str]) -> None:
        """Questions that are there already."""
        self._seen.update(normalised(question) for question in questions)

    def question(self, written: Completion, answer: str, source: str) -> str:
        """The question to learn `answer` by, under the title where it needs one; empty when it is dropped.

        `source` is the sentence or chunk that answers it.
        """
        text = written.text.strip().split("\n")[0].strip()
        reason = self._question_fault(text, written.finish_reason, answer, source)
        if reason == NOT_SELF_CONTAINED and self.title and not points_at_text(text, source):
            text, reason = f"{self.title}: {text}", ""
        if not reason and normalised(text) in self._seen:
            reason = REPEATED
        if reason:
            self.drop("question", reason)
            return ""
        self._seen.add(normalised(text))
        return text

    def prose(self, kind: str, written: Completion, source: str) -> str:
        """The whole sentences of a summary's or a restatement's first paragraph; empty when it is dropped.

        A last sentence that was cut off is left out, the ones before it stay.
        """
        text = whole_sentences(written.text)
        if not text:
            reason = CUT_OFF
        elif points_at_text(text, source):
            reason = NOT_SELF_CONTAINED
        else:
            reason = self._statement_fault(text, source, source)
        return self._kept(kind, text, reason)

    def answer(self, written: Completion, question: str, source: str) -> str:
        """An answer without its citation marks; empty when it is dropped."""
        text = " ".join(_MARKER.sub("", written.text).split())
        if written.finish_reason != "stop":
            reason = CUT_OFF
        elif not text or is_refusal(text):
            reason = REFUSED
        elif points_at_text(text, source):
            reason = NOT_SELF_CONTAINED
        else:
            reason = self._statement_fault(text, source, f"{source} {question}")
        return self._kept("sampled", text, reason, key=f"{question} {text}")

    def drop(self, kind: str, reason: str) -> None:
        """Counts something as dropped."""
        self.dropped[f"{kind}: {reason}"] += 1

    def _kept(self, kind: str, text: str, reason: str, key: str = "") -> str:
        known = normalised(key or text)
        reason = reason or (REPEATED if known in self._seen else "")
        if reason:
            self.drop(kind, reason)
            return ""
        self._seen.add(known)
        return text

    def _question_fault(self, text: str, finish_reason: str, answer: str, source: str) -> str:
        if not text.endswith(QUESTION_MARKS):
            return CUT_OFF if finish_reason != "stop" else NO_QUESTION
        if text.isascii() and not _WORDS[0] <= len(text.split()) <= _WORDS[1]:
            return NO_QUESTION
        if normalised(answer) and f" {normalised(answer)} " in f" {normalised(text)} ":
            return GIVEN_AWAY
        if not set(content_words(answer)) - set(content_words(text)) and content_words(answer):
            return GIVEN_AWAY
        about = f"{self.title} {source}"
        if unsupported(text, about):
            return CONTRADICTED
        if not _covered(answer, source):
            return UNANSWERABLE
        if not set(content_words(text)) & set(content_words(about)):
            return NOT_ABOUT
        return "" if is_self_contained(text) else NOT_SELF_CONTAINED

    def _statement_fault(self, text: str, source: str, about: str) -> str:
        if unsupported(text, f"{self.title} {about}"):
            return CONTRADICTED
        return "" if _covered(text, f"{self.title} {about}") else UNANSWERABLE


def normalised(text: str) -> str:
    """The text's words alone, in one case: what two texts share that differ in marks and spaces only."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def whole_sentences(text: str) -> str:
    """The whole sentences of a text's first paragraph; empty when there is none worth the name."""
    paragraph = text.strip().split("\n\n")[0].strip()
    ends = [match.end() for match in re.finditer(r"[.!?](?=[\"”')\]]*(?:\s|$))[\"”')\]]*|[。！？][」』”]*", paragraph)]
    end = ends[-1] if ends else 0
    return paragraph[:end] if end > (20 if paragraph.isascii() else 10) else ""


def is_self_contained(question: str) -> bool:
    """Whether a question can be understood without the text that it was made from."""
    if _OF_THE_TEXT.search(question) or _NO_SUBJECT.match(question):
        return False
    words = re.findall(r"[\w’'-]+", question)
    start = next((place + 1 for place, word in enumerate(words) if word.lower() in _AUXILIARIES), 1)
    for place, word in enumerate(words):
        if word[0].isupper() and place and word.lower() not in _PRONOUNS:
            return True  # a name stands before any pronoun
        if word.lower() in _PRONOUNS:
            later = words[place + 1 : place + 2]
            pointing = word.lower() in ("this", "these", "those")
            if pointing and not (later and later[0].lower() in _AUXILIARIES):
                return False  # "this method": which one?
            before = [other for other in words[start:place] if other.lower() not in _ASKING]
            return bool(before)
    return True


def points_at_text(text: str, source: str) -> bool:
    """Whether a text speaks of the text that it was made from, in words that do not stand there themselves."""
    known = source.casefold()
    return any(match.group().casefold() not in known for match in _OF_THE_TEXT.finditer(text))


def unsupported(text: str, source: str) -> bool:
    """Whether a number or a name of `text` is not in `source`.

    A capitalised word that begins a sentence is taken for a name only before another one.
    """
    numbers = _numbers(source)
    if not _numbers(text) <= numbers:
        return True
    known = set(content_words(source)) | set(re.findall(r"[\w’'-]+", source.casefold()))
    for match in _NAME.finditer(text):
        if not match.group()[0].isupper():
            continue
        begins = not match.start() or bool(re.search(r"[.!?:][\"”')]*\s+[\"“'(]*$", text[: match.start()]))
        following = text[match.end() : match.end() + 2]
        if begins and not (following[:1].isspace() and following[1:].isupper()):
            continue
        name = match.group().casefold()
        if name not in known and not set(content_words(name)) <= known:
            return True
    return False


def _numbers(text: str) -> set[str]:
    figures = {match.group().replace(",", "") for match in _NUMBER.finditer(text)}
    return figures | {
        _SPELLED[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _SPELLED and word != "one"
    }


def _covered(text: str, source: str) -> bool:
    words, known = set(content_words(text)), set(content_words(source))
    return not words or len(words & known) >= MIN_COVERAGE * len(words)
