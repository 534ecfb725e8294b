"""Question-answer pairs that restate every fact of a text, made without a generator.

Each fact's phrase gives ways to ask for it: a question as people put it where the sentence's form allows, and a sketch
of some of the sentence's words. Knows nothing about models. Invariant: a pair's answer stands literally in the sentence
it came from, so no pair states what the text does not; the same facts and seed give the same pairs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from hybridqa.training.facts import Fact
from hybridqa.training.phrases import STOPWORDS

HELD_OUT = 48  # questions that the gate asks, at most
FACTS_PER_SENTENCE = 2  # in a first round
FURTHER = 2  # wordings of each fact beside those of a first round
HELD_OUT_PER_CHUNK = 2  # at least, so that a loss per chunk says something
_ASKS = {
    "when": ("when", "what date", "when"),
    "which year": ("when", "what year", "in which year", "in what year"),
    "what": ("what", "what", "who", "which", "where", "what is"),
    "how": ("how",),
    "why": ("why",),
}
_MEASURES = {  # what a unit is asked for with, beside "how many litres"
    "how long": "second seconds minute minutes hour hours day days week weeks month months year years s min h",
    "how heavy": "gram grams g kg kilogram kilograms pound pounds lb ton tons tonne tonnes",
    "how far": "mm cm m km millimetres centimetres metre metres meter meters kilometre kilometres mile miles feet ft",
    "what temperature": "degree degrees °C °F",
    "what share": "per percent % cent",
}
_MEASURE_OF = {unit: asks for asks, units in _MEASURES.items() for unit in units.split()}
_AUXILIARIES = frozenset("is are was were has had have can could will would may might must should does did do".split())
_PLACES = frozenset("in at near from to".split())
_FRONTED = frozenset("in on at from by to for with of through".split())
_NO_SUBJECT = frozenset(  # a clause that begins so names no subject that could stand behind "when was …"
    "it he she they we i you this these that those there which who when while if as because although after before "
    "since in on at by for from with to and but or so".split()
)
_LONGEST_SUBJECT = 8  # words


@dataclass(frozen=True, slots=True)
class Pair:
    """One thing to learn: a question that names its subject, and its answer."""

    question: str
    answer: str
    kind: str  # "ask", "question", "entity", "cross", "summary", "restatement", "sampled"; a behaviour's form
    passage: int  # ordinal of the chunk it came from; -1 where there is none
    fact: int  # pairs of one fact share this number; -1 where a pair holds many facts
    also: tuple[int, ...] = ()  # further chunks that the answer needs
    context: int = -1  # which of a behaviour's contexts its teacher has; -1: none


def ask_pair(fact: Fact) -> Pair:
    """The sentence as a question that leaves the phrase open: 'The kettle holds how many litres?'."""
    body = f"{fact.sentence[: fact.ask_start]}{fact.asks}{fact.sentence[fact.end :]}".rstrip(" .!?;:")
    return _asked(body, fact)


def natural_pair(fact: Fact, rng: random.Random) -> Pair | None:
    """The question as people put it: 'Who designed the kettle?', 'Where is the kettle made?'.

    None where the sentence gives no such question by its form alone: the phrase neither begins it nor stands behind a
    form of "be" or another auxiliary.
    """
    start = max((fact.sentence.rfind(mark, 0, fact.ask_start) for mark in (";", ":")), default=-1) + 1
    before = fact.sentence[start : fact.ask_start].split()
    after = _first_clause(fact.sentence[fact.end :])
    if [word for word in before if word.lower() not in ("the", "a", "an")] == []:
        if len(after) < 2 or fact.asks in ("how", "why"):
            return None
        return _asked(" ".join([rng.choice(_ways_to_ask(fact)), *after]), fact)
    place = next((n for n, word in enumerate(before) if word in _AUXILIARIES), 0)
    subject = before[:place]
    if not 1 <= place <= _LONGEST_SUBJECT or subject[0].lower() in _NO_SUBJECT or any("," in word for word in subject):
        return None
    if subject[0].lower() in STOPWORDS:
        subject = [subject[0].lower(), *subject[1:]]
    rest = before[place + 1 :]
    while rest and rest[-1].lower() in ("the", "a", "an", "about", "approximately", "roughly"):
        rest = rest[:-1]
    ask = rng.choice(_ways_to_ask(fact))
    if rest and rest[-1] in _FRONTED and (ask in ("when", "where") or rng.random() < 0.5):
        rest, front = rest[:-1], [] if ask in ("when", "where") else [rest[-1]]
    else:
        front = []
    if not rest and not after and len(subject) == 1 and subject[0] in STOPWORDS:
        return None
    return _asked(" ".join([*front, ask, before[place], *subject, *rest, *after]), fact)


def sketched_pair(fact: Fact, title: str, rng: random.Random) -> Pair:
    """A question that keeps some of the sentence's words, near ones and telling ones more often: users don't quote.

    A sentence about "it" or "they" is asked about under the document's title, if there is one.
    """
    before, after = fact.sentence[: fact.ask_start].split(), fact.sentence[fact.end :].split()
    away = [*range(len(before), 0, -1), *range(1, len(after) + 1)]
    keep = rng.uniform(0.25, 0.7)
    kept: list[str] = []
    for word, distance in zip([*before, *after], away, strict=True):
        bare = word.strip(".,;:!?()[]\"“”'")
        bare = bare.lower() if bare.lower() in STOPWORDS else bare
        chance = keep if bare in STOPWORDS else keep + 0.25
        chance += 0.15 if distance <= 6 else -0.25 if distance > 14 else 0.0
        if bare and rng.random() < chance:
            kept.append(bare)
    pronoun = re.match(r"(?:It|He|She|They|This|These|His|Her|Its|Their)\b", fact.sentence)
    if title and (rng.random() < 0.25 or pronoun):
        kept.insert(0, f"{title}:")
    return _asked(" ".join([rng.choice(_ways_to_ask(fact)), *kept]), fact)


def _asked(body: str, fact: Fact) -> Pair:
    return Pair(f"{body[:1].upper()}{body[1:]}?", fact.phrase, "ask", fact.passage, fact.number)


def _first_clause(text: str) -> list[str]:
    """The words behind a phrase, up to the first comma that leaves enough of them."""
    words: list[str] = []
    for word in text.rstrip(" .!?;:").split():
        words.append(word)
        if word[-1] in ",;:" and len(words) >= 3:
            break
    return " ".join(words).strip(" ,;:").split()


def _ways_to_ask(fact: Fact) -> tuple[str, ...]:
    """What a question about such a phrase may begin with."""
    asks = fact.asks
    if asks == "what":
        previous = fact.sentence[: fact.start].lower().split()[-1:] or [""]
        if fact.phrase[0].islower():
            return ("what", "what", "which")
        if previous[0] in _PLACES:
            return ("where", "what", "which")
        return ("who", "what") if previous[0] == "by" else _ASKS["what"]
    if asks in _ASKS:
        return _ASKS[asks]
    if asks.startswith("which "):
        return (asks, asks, f"what {asks.removeprefix('which ')}", "what", "who")
    measure = _MEASURE_OF.get(asks.removeprefix("how many "))
    return (asks, measure) if measure else (asks,)


def _wordings(fact: Fact, title: str, rng: random.Random) -> Iterator[Pair]:
    """Ever more ways to ask for a fact."""
    first = natural_pair(fact, rng) if rng.random() < 0.7 else None
    if first is not None:
        yield first
    while True:
        yield sketched_pair(fact, title, rng)
        natural = natural_pair(fact, rng)
        if natural is not None:
            yield natural


def restatements(facts: Sequence[Fact], title: str, *, variants: int = 1, seed: int = 0) -> list[Pair]:
    """Each sentence's `FACTS_PER_SENTENCE` likeliest facts, asked for in `variants` ways.

    The answers are sentences: of one that holds many facts, a question for each would have it learned as often.
    """
    return [pair for pair, new in _restated(facts, title, variants, 0, seed) if not new]


def further_restatements(
    facts: Sequence[Fact], title: str, known: Set[str], *, variants: int = FURTHER, seed: int = 0
) -> list[Pair]:
    """Other wordings than `restatements` has for the same seed, and than the questions in `known`; of all facts."""
    pairs = [pair for pair, new in _restated(facts, title, 1, variants, seed) if new]
    first_of = {pair.question: pair for pair in reversed(pairs)}
    return [pair for pair in pairs if pair.question not in known and first_of[pair.question] is pair]


def _restated(facts: Sequence[Fact], title: str, variants: int, further: int, seed: int) -> Iterator[tuple[Pair, bool]]:
    by_sentence: dict[tuple[int, str], list[Fact]] = {}
    for fact in facts:
        by_sentence.setdefault((fact.passage, fact.sentence), []).append(fact)
    likeliest = {
        fact.number
        for there in by_sentence.values()
        for fact in sorted(there, key=lambda fact: -fact.score)[:FACTS_PER_SENTENCE]
    }
    for fact in facts:
        wordings = _wordings(fact, title, random.Random(f"{seed} {fact.number}"))
        first = variants if fact.number in likeliest else 0
        for number in range(first + further):
            yield next(wordings), number >= first


def held_out_pairs(facts: Sequence[Fact], *, chunks: int, most: int = HELD_OUT, seed: int = 0) -> list[Pair]:
    """Questions in a wording that `restatements` does not use, for testing what was learned; at most `most`.

    Spread evenly over the chunks, `HELD_OUT_PER_CHUNK` or more in each that has facts; of a document with too many
    chunks for that, some chunks evenly chosen.
    """
    by_chunk = [[fact for fact in facts if fact.passage == chunk] for chunk in range(chunks)]
    full = [found for found in by_chunk if found]
    if len(full) * HELD_OUT_PER_CHUNK > most:
        step = len(full) * HELD_OUT_PER_CHUNK / most
        full = [full[int(place * step)] for place in range(most // HELD_OUT_PER_CHUNK)]
    rng = random.Random(seed)
    shuffled = [rng.sample(found, len(found)) for found in full]
    chosen: list[Fact] = []
    turn = 0
    while len(chosen) < most and any(len(found) > turn for found in shuffled):
        chosen.extend([found[turn] for found in shuffled if len(found) > turn][: most - len(chosen)])
        turn += 1
    return [ask_pair(fact) for fact in sorted(chosen, key=lambda fact: fact.number)]
