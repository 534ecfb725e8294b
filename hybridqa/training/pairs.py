"""Question-answer pairs that restate every fact of a text, made without a generator.

Each sentence gives key phrases (numbers, names, rare words); each phrase gives ways to ask for it. Knows nothing about
models. Invariant: a pair's answer stands literally in the sentence it came from, so no pair states what the text does
not; the same text and seed give the same pairs.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from hybridqa.ingest.sentences import split_sentences

MIN_CHARACTERS = 12  # of a sentence whose words are not set apart by spaces
MAX_PHRASES = 3  # key phrases asked for in one sentence
MAX_PLAIN_PHRASES = 2  # no more plain words are taken once there are so many
_STOPWORDS = frozenset(
    "a about above after again all also although an and any are as at be because been before being below between both "
    "but by can could did do does during each either every few for from further had has have he her here hers him his "
    "how however i if in into is it its itself may might more most must my no nor not of off on once one only or other "
    "our out over own same shall she should since so some such than that the their them then there these they this "
    "those through to too under until up upon us very was we were what when where whether which while who whom whose "
    "why will with within without would yet you your".split()
)
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(
    rf"\b(?:\d{{1,2}} (?:{_MONTH})(?: \d{{4}})?|(?:{_MONTH}) \d{{1,2}}(?:, \d{{4}})?|(?:{_MONTH}) \d{{4}})\b"
)
_YEAR = re.compile(r"\b(?:1[0-9]|2[0-9])\d{2}\b(?![ \d]*(?:kg|km|m|cm|mm|%|euros?|dollars?))")
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.-])[$€£]?\d[\d,]*(?:\.\d+)?(?::\d\d)?%?(?:[ -](?:per cent|percent|[A-Za-z°]{1,12}))?"
)
_NAME = re.compile(r"\b[A-Z][\w'’.&-]*(?:(?: (?:of|the|de|van|von|and|for|&))? [A-Z][\w'’.&-]*)*")
_NOUN_BEFORE = re.compile(r"\b(?:(?:[Tt]he|[Aa]n?) )?([a-z][a-z-]{2,}) (?:(?:called|named) )?$")
_QUOTED = re.compile(r"[\"“]([^\"”]{2,60})[\"”]")
_ASKS = {
    "when": ("when", "what date"),
    "which year": ("when", "what year", "in which year"),
    "what": ("what", "who", "which", "where", "what is"),
}
_MEASURES = {  # what a unit is asked for with, beside "how many litres"
    "how long": "second seconds minute minutes hour hours day days week weeks month months year years s min h",
    "how heavy": "gram grams g kg kilogram kilograms pound pounds lb ton tons tonne tonnes",
    "how far": "mm cm m km millimetres centimetres metre metres meter meters kilometre kilometres mile miles feet ft",
    "what temperature": "degree degrees °C °F",
    "what share": "per percent % cent",
}
_MEASURE_OF = {unit: asks for asks, units in _MEASURES.items() for unit in units.split()}
_MARKERS = frozenset("a an the of in on by with from for to as is are was were at its their into".split())
_WORD = re.compile(r"[^\W\d_][\w'’-]*")


@dataclass(frozen=True, slots=True)
class Pair:
    """One thing to learn: a question that names its subject, and its answer."""

    question: str
    answer: str
    kind: str  # "ask", "question" or "summary"; of a behaviour the form it is asked in, see `contexts`
    passage: int  # ordinal of the passage it came from; -1 where there is none
    fact: int  # pairs of one fact share this number; -1 where a pair holds many facts
    context: int = -1  # which of a behaviour's contexts the teacher has; -1: none


@dataclass(frozen=True, slots=True)
class Fact:
    """A key phrase in its sentence: `sentence[start:end] == phrase`."""

    number: int
    passage: int
    sentence: str
    start: int
    end: int
    asks: str  # what stands for the phrase in a question: "when", "how many litres", "which firm" …
    ask_start: int  # where it stands: before the phrase, where it takes in words such as "the firm"

    @property
    def phrase(self) -> str:
        """The words that answer."""
        return self.sentence[self.start : self.end]


def find_facts(passages: Sequence[str], *, seed: int = 0) -> list[Fact]:
    """The facts of a document's passages, in order; at most `MAX_PHRASES` a sentence."""
    frequency = Counter(word.lower() for text in passages for word in _WORD.findall(text))
    sentences = sum(len(split_sentences(text)) for text in passages)
    subject = {word for word, count in frequency.items() if count >= 4 and count > sentences / 4}
    facts: list[Fact] = []
    for ordinal, text in enumerate(passages):
        for start, end in split_sentences(text):
            sentence = " ".join(text[start:end].split())
            if len(sentence.split()) < 4 and (sentence.isascii() or len(sentence) < MIN_CHARACTERS):
                continue
            for span_start, span_end, asks in _key_phrases(sentence, frequency, subject | _STOPWORDS):
                noun = _NOUN_BEFORE.search(sentence, 0, span_start) if asks.startswith("which ") else None
                ask_start = noun.start() if noun and asks == f"which {noun[1]}" else span_start
                facts.append(Fact(len(facts), ordinal, sentence, span_start, span_end, asks, ask_start))
    return facts


def _key_phrases(sentence: str, frequency: Counter[str], plain: Set[str]) -> list[tuple[int, int, str]]:
    """Spans worth asking for, in order, not overlapping; `plain` words say too little to be among them."""
    candidates: list[tuple[float, int, int, str]] = []
    for match in _DATE.finditer(sentence):
        candidates.append((4.0, *match.span(), "when"))
    for match in _YEAR.finditer(sentence):
        candidates.append((3.5, *match.span(), "which year"))
    for match in _NUMBER.finditer(sentence):
        parts = re.split(r"[ -]", match.group(), maxsplit=1)
        unit = parts[1] if len(parts) > 1 and parts[1].lower() not in plain else ""
        end = match.end() if unit or len(parts) == 1 else match.start() + len(parts[0])
        candidates.append((3.0, match.start(), end, f"how many {unit}" if unit else "how much"))
    for match in _QUOTED.finditer(sentence):
        candidates.append((2.8, *match.span(1), "what"))
    for match in _NAME.finditer(sentence):
        if match.start() == 0 and (" " not in match.group() or match.group().split()[0].lower() in _STOPWORDS):
            continue
        name = match.group().rstrip(".,'’&-")
        if all(word.lower() in plain for word in name.split()):
            continue
        rarity = 1.0 / max(1, frequency[name.split()[-1].lower()])
        noun = _NOUN_BEFORE.search(sentence, 0, match.start())
        asks = f"which {noun[1]}" if noun and noun[1] not in _STOPWORDS else "what"
        candidates.append((2.0 + min(rarity, 0.7), match.start(), match.start() + len(name), asks))
    candidates.extend(_noun_phrases(sentence, frequency, plain))
    chosen: list[tuple[int, int, str]] = []
    for score, start, end, asks in sorted(candidates, key=lambda item: (-item[0], item[1])):
        enough = MAX_PHRASES if score > 2 else MAX_PLAIN_PHRASES
        apart = all(end <= other_start or start >= other_end for other_start, other_end, _ in chosen)
        if apart and len(chosen) < enough:
            chosen.append((start, end, asks))
    return sorted(chosen)


def _noun_phrases(sentence: str, frequency: Counter[str], plain: Set[str]) -> list[tuple[float, int, int, str]]:
    """Runs of at most three plain words behind an article, a preposition or a form of 'be': (score below 2, span)."""
    found: list[tuple[float, int, int, str]] = []
    run: list[re.Match[str]] = []
    marker = ""
    words = [*_WORD.finditer(sentence), None]
    for place, match in enumerate(words):
        lowered = match.group().lower() if match else ""
        gap = sentence[run[-1].end() : match.start()] if run and match else " "
        if match is not None and lowered not in plain and (not run or gap == " "):
            if not run:
                before = words[place - 1] if place else None
                marker = before.group().lower() if before else ""
            run.append(match)
            continue
        if run and marker in _MARKERS:
            kept = run[-3:]
            rarity = sum(1 / (1 + frequency[word.group().lower()]) for word in kept) / len(kept)
            tail = 0.3 if len(sentence) - kept[-1].end() <= 2 else 0.0
            if sum(len(word.group()) for word in kept) >= 4:
                found.append((rarity + tail + 0.2 * len(kept), kept[0].start(), kept[-1].end(), "what"))
        run = [match] if match is not None and lowered not in plain else []
        marker = ""  # a run behind a comma has no marker of its own
    return found


def ask_pair(fact: Fact) -> Pair:
    """The sentence as a question that leaves the phrase open: 'The kettle holds how many litres?'."""
    body = f"{fact.sentence[: fact.ask_start]}{fact.asks}{fact.sentence[fact.end :]}".rstrip(" .!?;:")
    return Pair(f"{body[:1].upper()}{body[1:]}?", fact.phrase, "ask", fact.passage, fact.number)


def sketched_pair(fact: Fact, title: str, rng: random.Random) -> Pair:
    """A question that keeps some of the sentence's words, near ones and telling ones more often: users don't quote."""
    before, after = fact.sentence[: fact.ask_start].split(), fact.sentence[fact.end :].split()
    away = [*range(len(before), 0, -1), *range(1, len(after) + 1)]
    keep = rng.uniform(0.25, 0.7)
    kept: list[str] = []
    for word, distance in zip([*before, *after], away, strict=True):
        bare = word.strip(".,;:()[]\"“”'")
        bare = bare.lower() if bare.lower() in _STOPWORDS else bare
        chance = keep if bare in _STOPWORDS else keep + 0.25
        chance += 0.15 if distance <= 6 else -0.25 if distance > 14 else 0.0
        if bare and rng.random() < chance:
            kept.append(bare)
    if title and rng.random() < 0.25:
        kept.insert(0, f"{title}:")
    text = " ".join([rng.choice(_ways_to_ask(fact)), *kept])
    return Pair(f"{text[0].upper()}{text[1:]}?", fact.phrase, "ask", fact.passage, fact.number)


def _ways_to_ask(fact: Fact) -> tuple[str, ...]:
    """What a question about such a phrase may begin with."""
    asks = fact.asks
    if asks == "what" and fact.phrase[0].islower():
        return ("what", "which")
    if asks in _ASKS:
        return _ASKS[asks]
    if asks.startswith("which "):
        return (asks, asks, f"what {asks.removeprefix('which ')}", "what", "who")
    measure = _MEASURE_OF.get(asks.removeprefix("how many "))
    return (asks, measure) if measure else (asks,)


def restatements(facts: Sequence[Fact], title: str, *, variants: int = 2, seed: int = 0) -> list[Pair]:
    """Every fact asked for in `variants` ways."""
    rng = random.Random(seed)
    return [sketched_pair(fact, title, rng) for fact in facts for _ in range(variants)]


def held_out_pairs(facts: Sequence[Fact], title: str, *, most: int = 24, seed: int = 0) -> list[Pair]:
    """Questions in a wording that `restatements` does not use, for testing what was learned; at most `most`."""
    chosen = list(facts)
    if len(chosen) > most:
        chosen = sorted(random.Random(seed).sample(chosen, most), key=lambda fact: fact.number)
    return [ask_pair(fact) for fact in chosen]
