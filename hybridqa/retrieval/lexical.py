"""Lexical search: a question as words, looked up in the catalog's full text.

Knows nothing about vectors. Invariant: no question, whatever is in it, is read as query syntax or raises for its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from hybridqa.catalog import Catalog
from hybridqa.types import Filter

ROWS = 5_000  # passages that are ranked for one question, where rarer words match enough: some 6 ms
ENOUGH = 4  # times as many as are wanted: then the words taken match enough
COUNTED = 4  # times `ROWS`: as far as a word's matches are counted, to tell common words from commoner ones
MAX_WORDS = 64  # different words of one question that are looked up
ENDINGS = ("ing", "ed", "es", "s", "e")
_WORD = re.compile(r"[^\W_]+")
STOPWORDS = frozenset(
    "a about after all also am an and any are as at be because been before being between both but by can could d "
    "did do does doing during each for from further had has have having he her here hers him his how i if in into "
    "is it its itself just ll me more most my no nor not of off on once only or other our ours out over own "
    "please re s same she should so some such t tell than that the their theirs them then there these they this "
    "those through to too under until up ve very was we were what when where which while who whom whose why will "
    "with would you your yours".split()
)


def text_words(text: str) -> list[str]:
    """The words of a text in lower case, in order; underscores and signs part them."""
    return [word.lower() for word in _WORD.findall(text)]


def question_words(question: str) -> list[str]:
    """The different words of a question in lower case, in order, without stopwords unless there is nothing else."""
    words = list(dict.fromkeys(text_words(question)))
    return [word for word in words if word not in STOPWORDS] or words


def asked_words(question: str) -> list[str]:
    """Those of the question's words that are looked up; of a very long one the first and the last.

    What is asked stands at an end.
    """
    words = question_words(question)
    if len(words) > MAX_WORDS:
        words = list(dict.fromkeys(words[: MAX_WORDS // 2] + words[-MAX_WORDS // 2 :]))
    return words


def stem(word: str) -> str:
    """The word without the commonest English endings."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


class AskedWords:
    """A question's words, looked for in texts whatever their endings."""

    def __init__(self, question: str) -> None:
        self.stems = frozenset(stem(word) for word in asked_words(question))
        words = "|".join(sorted(map(re.escape, self.stems), key=lambda word: (-len(word), word)))
        self._pattern = re.compile(rf"(?<![^\W_])({words})(?:{'|'.join(ENDINGS)})?(?![^\W_])") if words else None

    def among(self, text: str) -> frozenset[str]:
        """Those of the stems that a text has."""
        return frozenset() if self._pattern is None else frozenset(self._pattern.findall(text.lower()))

    def share_in(self, text: str) -> float:
        """The share of the stems that a text has, 0 to 1."""
        return len(self.among(text)) / len(self.stems) if self.stems else 0.0


def match_query(words: Iterable[str]) -> str:
    """Words as an FTS5 query: quoted and joined by OR; empty when there is none."""
    return " OR ".join(f'"{word}"' for word in words)


class LexicalIndex:
    """BM25 over title, heading and text of passages.

    In a large collection a question's commonest words match a great part of it, take nearly all of the time and hardly
    change the order: they are left out as soon as rarer ones match enough.
    """

    def __init__(self, catalog: Catalog, *, rows: int = ROWS) -> None:
        """`rows` bounds the passages that are ranked for one question, where there are rarer words."""
        self._catalog = catalog
        self._rows = rows

    def search(self, question: str, k: int, collection: str, filter: Filter | None = None) -> list[tuple[int, float]]:
        """The `k` passages that fit the question's words best: (passage id, BM25; higher is better).

        Raises `CollectionNotFoundError`.
        """
        words = asked_words(question)
        if not words or k <= 0:
            self._catalog.require_collection(collection)
            return []
        if filter is None or filter.is_open:  # among the passages that pass another word may be the rare one
            words = self._telling(words, collection, k)
        return self._catalog.search_lexical(collection, match_query(words), k, filter)

    def _telling(self, words: list[str], collection: str, k: int) -> list[str]:
        """The rarer ones of the words; all of them as long as they match few passages."""
        counts = self._catalog.count_matches(collection, [match_query([word]) for word in words], COUNTED * self._rows)
        if sum(counts) <= self._rows:
            return words
        taken, matched = [], 0
        for count, word in sorted(zip(counts, words, strict=True), key=lambda pair: pair[0]):
            if matched >= ENOUGH * k and matched + count > self._rows:
                break
            taken.append(word)
            matched += count
        return taken
