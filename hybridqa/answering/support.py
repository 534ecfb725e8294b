"""Which sentence of which passage supports a statement, by the words and numbers that they share.

Knows nothing about citation markers. Invariant: a statement with a number that a sentence lacks is not supported by it,
and one without a word of its own is supported by nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hybridqa.ingest.sentences import split_sentences
from hybridqa.types import ScoredPassage

MIN_COVERAGE = 0.6  # share of a statement's content words that a sentence must hold
SHORT = 2  # a statement of so few content words also needs a tie to the question

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"\d+(?:[.,:]\d+)*|[{_CJK}]|[^\W\d_{_CJK}][^\W_{_CJK}]*")
_STOPWORD_TEXT = """
a about above according after all also although am an and any are as at be because been before being both but by can
could did do does doing done each for from further had has have having he her here hers him his how i if in into is it
its itself just may me might more most must my no nor not of off on once only or other our out over own same say said
says she should so some source sources such than that the their them then there these they this those through to too
under until up very was we were what when where which while who whom whose why will with would yes you your named
called known
"""
_STOPWORDS = frozenset(_STOPWORD_TEXT.split())


@dataclass(frozen=True, slots=True)
class Support:
    """The sentence of a passage that bears a statement best."""

    number: int  # of the passage, from 1
    start: int  # in the passage's text
    end: int
    coverage: float  # 0 to 1: share of the statement's content words in it


@dataclass(frozen=True, slots=True)
class _Sentence:
    number: int
    start: int
    end: int
    words: frozenset[str]
    numbers: frozenset[str]
    plain: str
    around: frozenset[str]  # the words of the whole passage and its title


class Evidence:
    """The sentences of an answer's passages, ready to be asked what they support."""

    def __init__(self, passages: Sequence[ScoredPassage]) -> None:
        self._sentences: list[_Sentence] = []
        for number, scored in enumerate(passages, 1):
            passage = scored.passage
            around = frozenset(content_words(f"{passage.title} {passage.heading} {passage.text}"))
            for start, end in split_sentences(passage.text):
                text = passage.text[start:end]
                words = frozenset(content_words(text))
                self._sentences.append(_Sentence(number, start, end, words, _numbers(text), _plain(text), around))

    def best(self, statement: str, question: str = "") -> Support | None:
        """The best support of `statement` in any passage, or None when there is none that is good enough."""
        words, numbers, plain = set(content_words(statement)), _numbers(statement), _plain(statement)
        asked = set(content_words(question))
        if not words or (words <= asked and not numbers - _numbers(question)):
            return None  # it says nothing that the question does not
        ranked = []
        for sentence in self._sentences:
            if not numbers <= sentence.numbers:
                continue
            coverage = 1.0 if f" {plain} " in f" {sentence.plain} " else len(words & sentence.words) / len(words)
            if coverage < MIN_COVERAGE or not (words - asked) & sentence.words:
                continue
            if asked and len(words) <= SHORT and not (asked - words) & sentence.around:
                continue
            ranked.append((coverage, len(asked & sentence.words), sentence))
        return _top(ranked)

    def best_in(self, number: int, statement: str, question: str = "") -> Support | None:
        """The sentence of passage `number` nearest to `statement`; None when it shares no word with any."""
        words, asked = set(content_words(statement)), set(content_words(question))
        ranked = []
        for sentence in self._sentences:
            if sentence.number == number and (
                shared := len(words & sentence.words) + 0.5 * len(asked & sentence.words)
            ):
                ranked.append((shared / max(1, len(words | asked)), len(asked & sentence.words), sentence))
        return _top(ranked)


def content_words(text: str) -> list[str]:
    """The text's words that carry meaning, folded so that their usual forms agree."""
    return [_stem(word) for word in _words(text) if word not in _STOPWORDS]


def _words(text: str) -> Iterable[str]:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    for match in _WORD.finditer(re.sub(r"'s\b", "", folded)):
        yield match.group().replace(",", "") if match.group()[0].isdigit() else match.group()


def _numbers(text: str) -> frozenset[str]:
    return frozenset(word for word in _words(text) if word[0].isdigit())


def _plain(text: str) -> str:
    return " ".join(_words(text))


def _stem(word: str) -> str:
    for suffix, keep in (("ies", 3), ("ing", 4), ("ed", 4), ("es", 4), ("s", 3), ("ly", 4), ("e", 4)):
        if word.endswith(suffix) and len(word) - len(suffix) >= keep and not word.endswith("ss"):
            return word[: -len(suffix)]
    return word


def _top(ranked: Sequence[tuple[float, int, _Sentence]]) -> Support | None:
    """The best by its measures; of equals the first."""
    if not ranked:
        return None
    coverage, _, sentence = max(ranked, key=lambda entry: entry[:2])
    return Support(sentence.number, sentence.start, sentence.end, coverage)
