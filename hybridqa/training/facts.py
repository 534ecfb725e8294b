"""The facts of a text: each key phrase in the sentence that states it.

Knows nothing about models or wordings. Invariant: `sentence[start:end]` of a fact is its phrase, and the sentence
stands in its passage, white space aside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hybridqa.ingest.sentences import split_sentences
from hybridqa.training.phrases import PhraseFinder

ENDS = tuple('.!?。！？…"”)')  # of a sentence
MIN_CHARACTERS = 12  # of a sentence whose words are not set apart by spaces
LONGEST_STATEMENT = 40  # words; of a longer sentence only the clauses around the phrase are an answer
CLAUSES = re.compile(r"; (?:(?:and|but|while|although) )?|, (?:and|but|while|although) ")


@dataclass(frozen=True, slots=True)
class Fact:
    """A key phrase in its sentence: `sentence[start:end] == phrase`."""

    number: int
    passage: int
    sentence: str
    start: int
    end: int
    asks: str  # what stands for the phrase in a question: "when", "how many litres", "which firm", "why" …
    ask_start: int  # where it stands: before the phrase, where it takes in words such as "the firm" or "because"
    score: float = 0.0  # rough likelihood of being asked for

    @property
    def phrase(self) -> str:
        """The words that answer."""
        return self.sentence[self.start : self.end]

    @property
    def statement(self) -> str:
        """The fact as a whole sentence that ends as one: its own, or of a long one the clauses around the phrase."""
        sentence = self.sentence
        if len(sentence.split()) > LONGEST_STATEMENT:
            sentence = _clauses_around(sentence, self.start, self.end).strip(" ,;:")
            sentence = f"{sentence[:1].upper()}{sentence[1:]}"
        return sentence if sentence.endswith(ENDS) else f"{sentence.rstrip(' ,;:')}."


def _clauses_around(sentence: str, start: int, end: int) -> str:
    """The clauses that hold a stretch of a sentence, and as many before and then behind them as there is room for."""
    spans = []
    begin = 0
    for match in CLAUSES.finditer(sentence):
        spans.append((begin, match.start()))
        begin = match.end()
    spans.append((begin, len(sentence)))
    first = next(place for place, (_, stop) in enumerate(spans) if stop > start)
    last = next((place for place, (_, stop) in enumerate(spans) if stop >= end), len(spans) - 1)

    def words(one: int, other: int) -> int:
        return len(sentence[spans[one][0] : spans[other][1]].split())

    while first > 0 and words(first - 1, last) <= LONGEST_STATEMENT:
        first -= 1
    while last + 1 < len(spans) and words(first, last + 1) <= LONGEST_STATEMENT:
        last += 1
    return sentence[spans[first][0] : spans[last][1]]


def find_facts(passages: Sequence[str]) -> list[Fact]:
    """The facts of a document's passages, in order."""
    spans = [split_sentences(text) for text in passages]
    finder = PhraseFinder(passages, sum(map(len, spans)))
    facts: list[Fact] = []
    for ordinal, text in enumerate(passages):
        for start, end in spans[ordinal]:
            sentence = " ".join(text[start:end].split())
            if len(sentence.split()) < 4 and (sentence.isascii() or len(sentence) < MIN_CHARACTERS):
                continue
            for found in finder.find(sentence):
                place = (sentence, found.start, found.end, found.asks, found.ask_start, found.score)
                facts.append(Fact(len(facts), ordinal, *place))
    return facts
