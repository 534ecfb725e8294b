"""What a module is to learn from one document: restatements of its facts, and what the engine writes about it.

The engine summarises each chunk and asks for chosen facts; a critic drops what is cut off, repeated, or says what its
source does not. Knows nothing about losses or adapters. Invariant: an answer to a question stands in the document, and
held-out questions are never among those to learn.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybridqa.ingest.sentences import split_sentences
from hybridqa.training.pairs import Fact, Pair, find_facts, held_out_pairs, restatements

Generate = Callable[[Sequence[str], int, str], list[str]]  # prompts, most tokens, where to stop → continuations

SUMMARY_TOKENS = 64
QUESTION_TOKENS = 32
_EXAMPLES = (
    ("The Harlow Bridge was opened in 1931 by the engineer Anna Voss.", "1931", "When was the Harlow Bridge opened?"),
    ("The museum in Tarn keeps 4,000 clay lamps.", "clay lamps", "What does the museum in Tarn keep?"),
    ("Because the pump failed, the greenhouse lost power.", "the pump failed", "Why did the greenhouse lose power?"),
    ("Members of the Brookline club pay 45 euros a year.", "45 euros", "How much do members of the club pay?"),
)
_NUMBER_OR_NAME = re.compile(r"\d[\d.,]*\d|\d|\b[A-Z][\w’'-]+")
_WHOLE = re.compile(r"(?:(?<!\d)[.!?…]|[。！？])[\"'”’»)]*$")  # "holds 1." may have gone on as "holds 1.7 litres"
_CONTENT = re.compile(r"\w{4,}")


@dataclass(frozen=True, slots=True)
class Curriculum:
    """Everything to learn from one document, and to test it by."""

    title: str
    chunks: tuple[str, ...]  # what the teacher reads; `Pair.passage` points here
    pairs: tuple[Pair, ...]
    held_out: tuple[Pair, ...]
    dropped: dict[str, int]  # what the critic threw away, by reason


def question_prompt(fact: Fact) -> str:
    """A few worked examples, then the fact: a base model continues with a question."""
    shown = "\n\n".join(f"Text: {text}\nAnswer: {answer}\nQuestion: {question}" for text, answer, question in _EXAMPLES)
    return f"{shown}\n\nText: {fact.sentence}\nAnswer: {fact.phrase}\nQuestion:"


def summary_prompt(title: str, chunk: str) -> str:
    """Asks for a summary of a chunk as a continuation.

    It ends with the empty line that a model would write first, at which the continuation would be stopped.
    """
    return f"{title}\n\n{chunk}\n\nSummary of the text above in two sentences:\n\n"


class Synthesiser:
    """Makes the curriculum of documents with an engine's help."""

    def __init__(self, generate: Generate, *, questions: int = 8, variants: int = 2, seed: int = 0) -> None:
        self._generate = generate
        self._questions = questions
        self._variants = variants
        self._seed = seed

    def run(self, documents: Sequence[tuple[str, Sequence[str]]]) -> list[Curriculum]:
        """The curricula of (title, chunks) documents; all prompts go to the engine together."""
        facts = [find_facts(chunks) for _, chunks in documents]
        asked = [self._choose(found, place) for place, found in enumerate(facts)]
        prompts = [question_prompt(fact) for chosen in asked for fact in chosen]
        questions = iter(self._generate(prompts, QUESTION_TOKENS, "\n") if prompts else [])
        wanted = [summary_prompt(title, chunk) for title, chunks in documents for chunk in chunks]
        summaries = iter(self._generate(wanted, SUMMARY_TOKENS, "\n\n") if wanted else [])
        curricula = []
        for (title, chunks), found, chosen in zip(documents, facts, asked, strict=True):
            dropped: Counter[str] = Counter()
            pairs = restatements(found, title, variants=self._variants, seed=self._seed)
            seen: set[str] = set()
            for fact in chosen:
                text = next(questions).split("\n")[0].strip()
                reason = question_fault(text, fact, seen)
                if reason:
                    dropped[reason] += 1
                else:
                    seen.add(text.lower())
                    pairs.append(Pair(text, fact.phrase, "question", fact.passage, fact.number))
            for place, chunk in enumerate(chunks):
                text, complete = trimmed_summary(next(summaries))
                reason = "cut off" if not complete else unsupported(text, f"{title} {chunk}")
                if reason:
                    dropped[f"summary {reason}"] += 1
                else:
                    part = f" (part {place + 1})" if len(chunks) > 1 else ""
                    pairs.append(Pair(f"Summarise {title or 'the document'}{part}.", text, "summary", place, -1))
            held_out = held_out_pairs(found, title, seed=self._seed)
            learned = {pair.question for pair in pairs}
            curricula.append(
                Curriculum(
                    title,
                    tuple(chunks),
                    tuple(pairs),
                    tuple(pair for pair in held_out if pair.question not in learned),
                    dict(dropped),
                )
            )
        return curricula

    def _choose(self, facts: Sequence[Fact], place: int) -> list[Fact]:
        """Facts to have the engine ask for, spread over the document, at most so many."""
        if len(facts) <= self._questions:
            return list(facts)
        return sorted(
            random.Random(self._seed + place).sample(list(facts), self._questions), key=lambda fact: fact.number
        )


def question_fault(question: str, fact: Fact, seen: set[str]) -> str:
    """Why the critic drops a question; empty when it does not."""
    words = question.split()
    if not question.endswith("?") or not 4 <= len(words) <= 30:
        return "no whole question"
    if question.lower() in seen:
        return "repeated"
    if fact.phrase.lower() in question.lower():
        return "gives its answer away"
    source = fact.sentence.lower()
    content = [word.lower() for word in _CONTENT.findall(question) if word.lower() not in _QUESTION_WORDS]
    if sum(word in source for word in content) < 2 or unsupported(question.split(" ", 1)[1], fact.sentence):
        return "not about its source"
    return ""


_QUESTION_WORDS = frozenset(
    ("what", "when", "where", "which", "whose", "many", "much", "does", "have", "name", "called")
)


def trimmed_summary(text: str) -> tuple[str, bool]:
    """The whole sentences of a continuation's first paragraph, and whether there is at least one."""
    paragraph = text.strip().split("\n\n")[0].strip()
    ends = [end for _, end in split_sentences(paragraph)]
    if ends and not _WHOLE.search(paragraph):
        ends.pop()
    whole = paragraph[: ends[-1]] if ends else ""
    return whole, len(whole) > (20 if paragraph.isascii() else 10)


def unsupported(text: str, source: str) -> str:
    """'says what its source does not' when a number or a name of `text` is not in `source`; else empty."""
    lowered = source.lower()
    first = text.split(" ", 1)[0]
    for match in _NUMBER_OR_NAME.finditer(text):
        word = match.group()
        if word.lower() not in lowered and not (match.start() == 0 and word == first):
            return "says what its source does not"
    return ""
