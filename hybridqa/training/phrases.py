"""Key phrases: which stretches of a sentence are worth asking for, and with which words one asks for them.

Numbers, dates, names and quoted words come first; then runs of plain words, judged by what stands around them, and the
reasons and means behind "because", "due to", "by". Knows nothing about questions. Invariant: the phrases of a sentence
do not overlap, and the same sentence in the same document always gives the same ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

WORDS_PER_PHRASE = 6  # of a sentence: longer ones hold more that is worth asking for
MAX_PHRASES = 5  # of one sentence
LEAST_PHRASES = 2  # are taken however unlikely they are to be asked for
LEAST_SCORE = 0.1  # of the others
STOPWORDS = frozenset(
    "a about above after again all also although an and any are as at be because been before being below between both "
    "but by can could did do does during each either every few for from further had has have he her here hers him his "
    "how however i if in into is it its itself may might more most must my no nor not of off on once one only or other "
    "our out over own same shall she should since so some such than that the their them then there these they this "
    "those through to too under until up upon us very was we were what when where whether which while who whom whose "
    "why will with within without would yet you your".split()
)
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(
    rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)? (?:{_MONTH})(?: \d{{4}})?|(?:{_MONTH}) \d{{1,2}}(?:st|nd|rd|th)?(?:, \d{{4}})?"
    rf"|(?:{_MONTH}) \d{{4}})\b"
)
_YEAR = re.compile(r"\b(?:1[0-9]|2[0-9])\d{2}\b(?![ \d]*(?:kg|km|m|cm|mm|%|euros?|dollars?))")
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.#-])[$€£]?\d[\d,]*(?:\.\d+)?(?::\d\d)?%?(?:[ -](?:per cent|percent|[A-Za-z°]{1,12}))?"
)
_SPELLED = re.compile(
    r"\b(?:[Tt]wo|[Tt]hree|[Ff]our|[Ff]ive|[Ss]ix|[Ss]even|[Ee]ight|[Nn]ine|[Tt]en|[Ee]leven|[Tt]welve"
    r"|[A-Za-z]{3,5}teen|(?:[Tt]wen|[Tt]hir|[Ff]or|[Ff]if|[Ss]ix|[Ss]even|[Ee]igh|[Nn]ine)ty(?:-[a-z]{3,5})?)"
    r"(?: (?:hundred|thousand|million|billion))*(?: [a-z]{3,14})?(?![\w-])"
)
_LABEL = re.compile(
    r"(?:\b(?:[Ff]ig|[Tt]ab|[Rr]ef|[Ee]q)\.? ?|\b(?:Figure|Table|Equation|Reference|Section) |\[[\d,\s–-]*)$"
)
_SCALES = frozenset(("hundred", "thousand", "million", "billion"))
_NAME = re.compile(r"\b[A-Z][\w'’.&-]*(?:(?: (?:of|the|de|van|von|and|for|&))? [A-Z][\w'’.&-]*)*")
_NOUN_BEFORE = re.compile(r"\b(?:(?:[Tt]he|[Aa]n?) )?([a-z][a-z-]{2,}) (?:(?:called|named) )?$")
_QUOTED = re.compile(r"[\"“]([^\"”]{2,60})[\"”]")
_CLAUSE = re.compile(
    r"\b(?:(?P<why>because (?:of )?|due to |owing to |so that |in order to )|(?P<how>by(?= \w+ing\b) ))"
    r"(?P<body>[^,.;:()\n]{8,90}?)(?=[,;:()]|[.!?]?$| (?:and|but|which|who|while|when)\b)"
)
_THING_OF = re.compile(
    r"(?<=[a-z] )(?:(?:the|an?) )?(?P<thing>[\w-]+(?: [\w-]+)? of (?:(?:the|an?) )?[\w-]+(?: [A-Z][\w-]+)*)"
)
_WORD = re.compile(r"[^\W\d_](?:[\w'’/-]*\w)?")
_OPEN = frozenset("a an the his her its their our my your".split())  # behind these, any word may name a thing
_AUXILIARY = frozenset("to can could will would may might must should not they he she we it who which that i".split())
_BEFORE_NOUN = _OPEN | frozenset("of in on at for with by from these this".split())
_VERBS = frozenset(
    "include includes make makes made become becomes became call calls know known take takes took taken give gives "
    "gave given get gets got go goes went come comes came see seen say says said find found keep kept put hold holds "
    "held begin began begun run runs ran lead leads led allow allows cause causes feel felt bring brought leave left "
    "buy bought tell told seem seems contain contains provide provides require requires show shows".split()
)
# How likely a run is to be what people ask for, by the word before it and what comes behind it; the numbers are rough
# shares among the answers of people's questions about encyclopaedia articles and product reviews.
_BEFORE = {"in": 0.05, "by": 0.05, "from": 0.02, "with": 0.02, "of": 0.01, "and": -0.03, "or": -0.02, "some": -0.05}
_BEHIND = {"": 0.03, "of": -0.04, "the": -0.04, "and": -0.02, "or": -0.02, "to": -0.02, "with": -0.03, "from": -0.03}


@dataclass(frozen=True, slots=True)
class KeyPhrase:
    """`sentence[start:end]`, and what stands for it in a question."""

    start: int
    end: int
    asks: str  # "when", "how many litres", "which firm", "why", "what" …
    score: float  # rough likelihood of being asked for
    ask_start: int  # where `asks` stands: before the phrase, where it takes in words such as "the firm" or "because"


class PhraseFinder:
    """Finds the key phrases of one document's sentences; knows how often its words occur, and which act as verbs."""

    def __init__(self, passages: Sequence[str], sentences: int) -> None:
        self._frequency = Counter(word.lower() for text in passages for word in _WORD.findall(text))
        often = {word for word, count in self._frequency.items() if count >= 4 and count > sentences / 4}
        self._plain: Set[str] = often | STOPWORDS  # these say too little to be asked for
        self._verbs, self._lowered = _usage(passages)

    def find(self, sentence: str) -> list[KeyPhrase]:
        """What is worth asking for, in order; more in a longer sentence, at most `MAX_PHRASES`."""
        most = min(MAX_PHRASES, 1 + len(sentence.split()) // WORDS_PER_PHRASE)
        chosen: list[KeyPhrase] = []
        candidates = [*self._figures(sentence), *self._names(sentence), *_clauses(sentence), *self._runs(sentence)]
        for phrase in sorted(candidates, key=lambda item: (-item.score, item.start)):
            apart = all(phrase.end <= other.start or phrase.start >= other.end for other in chosen)
            if apart and len(chosen) < most and (phrase.score >= LEAST_SCORE or len(chosen) < LEAST_PHRASES):
                chosen.append(phrase)
        return sorted(chosen, key=lambda item: item.start)

    def _figures(self, sentence: str) -> Iterator[KeyPhrase]:
        """Dates, years, numbers with their units, and what is in quotation marks."""
        for match in _DATE.finditer(sentence):
            yield _phrase(*match.span(), "when", 0.40)
        for match in _YEAR.finditer(sentence):
            yield _phrase(*match.span(), "which year", 0.35)
        for match in [*_NUMBER.finditer(sentence), *_SPELLED.finditer(sentence)]:
            number, unit = _split_unit(match.group())
            if _LABEL.search(sentence, 0, match.start()):
                continue
            if unit and unit.lower() not in self._plain | self._verbs | _VERBS and not unit.endswith("ed"):
                yield _phrase(*match.span(), f"how many {unit}", 0.30)
            else:
                asks = "how many" if number.isalpha() else "how much"
                yield _phrase(match.start(), match.start() + len(number), asks, 0.30 if number[0].isdigit() else 0.12)
        for match in _QUOTED.finditer(sentence):
            yield _phrase(*match.span(1), "what", 0.28)

    def _names(self, sentence: str) -> Iterator[KeyPhrase]:
        for match in _NAME.finditer(sentence):
            name, start = match.group().rstrip(".,'’&-"), match.start()
            if start == 0:
                first, _, rest = name.partition(" ")
                if first.lower() in STOPWORDS:
                    name, start = rest, len(first) + 1
                elif not rest and (self._lowered[first.lower()] or first.endswith("ly")):  # a plain word that begins it
                    continue
            if not name or all(word.lower() in self._plain for word in name.split()):
                continue
            noun = _NOUN_BEFORE.search(sentence, 0, start)
            rarity = min(1 / max(1, self._frequency[name.split()[-1].lower()]), 0.7)
            score = rarity / 10 + (0.20 if " " in name else 0.12 if start else 0.03)
            if noun and noun[1] not in STOPWORDS:
                yield KeyPhrase(start, start + len(name), f"which {noun[1]}", score, noun.start())
            else:
                yield _phrase(start, start + len(name), "what", score)

    def _runs(self, sentence: str) -> Iterator[KeyPhrase]:
        """Runs of plain words, as far as they name a thing."""
        run: list[re.Match[str]] = []
        before, last_end = "", 0
        for match in [*_WORD.finditer(sentence), None]:
            gap = sentence[last_end : match.start() if match else len(sentence)].strip()
            word = match.group().lower() if match else ""
            ends = not word or bool(gap) or self._breaks(match, run, before) or word in self._plain
            if run and ends:
                yield from self._judged(run, before, "" if gap or not word else word, len(sentence))
            if ends:
                run = []
                before = "" if gap and last_end else before
            if match is None:
                return
            last_end = match.end()
            if word in self._plain or self._breaks(match, run, before):
                before = word
            else:
                run.append(match)

    def _breaks(self, match: re.Match[str] | None, run: list[re.Match[str]], before: str) -> bool:
        """Whether the word is an adverb or acts as a verb, and no part of the name of a thing."""
        if match is None or match.group()[0].isupper():
            return False
        word = match.group().lower()
        if word.endswith("ly") and len(word) > 4:
            return True
        if not run and before in _OPEN:
            return False
        return word in _VERBS or word in self._verbs or (word.endswith(("ed", "ize", "ise")) and len(word) > 4)

    def _judged(self, run: list[re.Match[str]], before: str, behind: str, length: int) -> Iterator[KeyPhrase]:
        kept = run[-4:]
        if sum(len(word.group()) for word in kept) < 4:
            return
        rarity = sum(1 / (1 + self._frequency[word.group().lower()]) for word in kept) / len(kept)
        score = 0.05 if len(kept) == 1 else 0.09
        score += _BEFORE.get(before, 0.0) + _BEHIND.get(behind, 0.0) + rarity / 10
        yield _phrase(kept[0].start(), kept[-1].end(), "what", score)


def _phrase(start: int, end: int, asks: str, score: float) -> KeyPhrase:
    return KeyPhrase(start, end, asks, score, start)


def _split_unit(figure: str) -> tuple[str, str]:
    """'1.7 litres' → ('1.7', 'litres'); '6-week' → ('6', 'week'); 'two hundred sheep' → ('two hundred', 'sheep')."""
    number, _, unit = figure.rpartition(" ") if figure[0].isalpha() else _cut(figure)
    return (number, unit) if number and unit not in _SCALES else (figure, "")


def _cut(figure: str) -> tuple[str, str, str]:
    found = re.search(r"[ -]", figure)
    return (figure[: found.start()], found[0], figure[found.end() :]) if found else (figure, "", "")


def _clauses(sentence: str) -> Iterator[KeyPhrase]:
    """Reasons and means, and things named by what they are of."""
    for match in _CLAUSE.finditer(sentence):
        yield KeyPhrase(*match.span("body"), "why" if match["why"] else "how", 0.18, match.start())
    for match in _THING_OF.finditer(sentence):
        if not {match["thing"].split()[0].lower(), match["thing"].split()[-1].lower()} & STOPWORDS:
            yield _phrase(*match.span("thing"), "what", 0.11)


def _usage(passages: Sequence[str]) -> tuple[set[str], Counter[str]]:
    """Words that stand behind "to", "can" … more often than behind "the" or "of"; and the words in lower case."""
    acts: Counter[str] = Counter()
    lowered: Counter[str] = Counter()
    for text in passages:
        words = _WORD.findall(text)
        lowered.update(word for word in words if word[0].islower())
        for before, word in pairwise(words):
            if before.lower() in _AUXILIARY:
                acts[word.lower()] += 1
            elif before.lower() in _BEFORE_NOUN:
                acts[word.lower()] -= 1
    return {word for word, count in acts.items() if count > 0}, lowered
