"""The facts of a text: each key phrase in the sentence that states it.

Knows nothing about models or wordings. Invariant: `sentence[start:end]` of a fact is its phrase, and the sentence
stands in its passage, white space aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hybridqa.ingest.sentences import split_sentences
from hybridqa.training.phrases import PhraseFinder

MIN_CHARACTERS = 12  # of a sentence whose words are not set apart by spaces


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
