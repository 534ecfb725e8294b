"""Questions about a name as a whole: what a chunk says about it, and what two chunks say of it together.

Made without a generator. Knows nothing about models. Invariant: an answer is made of the document's own sentences,
clauses or phrases, and its question names what it is about.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from hybridqa.training.facts import CLAUSES, Fact
from hybridqa.training.pairs import Pair, natural_pair, sketched_pair
from hybridqa.training.phrases import STOPWORDS

PER_CHUNK = 1  # pairs of each kind in a first round, for each chunk of the document
SENTENCES = 3  # of an answer about a name, at most
LONGEST = 45  # words of such an answer: training time grows with them
LONGEST_PART = 25  # words; of a longer sentence only the clauses that hold the name are taken
LONGEST_ASKED = 25  # words of a sentence that a question about two chunks asks about
_WAYS = ("What is known about {}?", "What is there to say about {}?", "Tell me about {}.", "Who or what is {}?")
_STANDS_ALONE = re.compile(rf"\s*$|\s*[^\w\s]|\s(?:{'|'.join(sorted(STOPWORDS))})\b")
_Mentions = dict[str, dict[int, list[str]]]  # name → chunk → its sentences with the name in them, in order


def entity_pairs(facts: Sequence[Fact], title: str, *, seed: int = 0) -> list[Pair]:
    """For each name, what the chunk that names it most says of it, if that is two things or more.

    The most named come first.
    """
    rng = random.Random(seed)
    found: list[tuple[int, Pair]] = []
    for name, by_chunk in _mentions(facts, title).items():
        chunk, sentences = max(by_chunk.items(), key=lambda item: (len(item[1]), -item[0]))
        answer = _joined([part for sentence in sentences if (part := _relevant(sentence, name))][:SENTENCES])
        if answer:
            found.append((len(sentences), Pair(rng.choice(_WAYS).format(name), answer, "entity", chunk, -1)))
    return [pair for _, pair in sorted(found, key=lambda item: -item[0])]


def cross_pairs(
    facts: Sequence[Fact], title: str, fits: Callable[[int, int], bool] = lambda one, other: True, *, seed: int = 0
) -> list[Pair]:
    """Questions for two facts of one name that stand in two chunks; of each name, a chunk is in one of them at most.

    `fits` says whether two chunks, given by their ordinals, go into one prompt: the teacher reads both.
    """
    rng = random.Random(seed)
    by_sentence: defaultdict[tuple[int, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        if len(fact.sentence.split()) <= LONGEST_ASKED:
            by_sentence[fact.passage, fact.sentence].append(fact)
    pairs: list[Pair] = []
    for name, by_chunk in _mentions(facts, title).items():
        told = []
        for chunk, sentences in by_chunk.items():
            there = [fact for sentence in sentences for fact in by_sentence[chunk, sentence]]
            told.append([fact for fact in there if name not in fact.phrase and fact.phrase not in name])
        told = [there for there in told if there]
        for first, second in zip(told[::2], told[1::2], strict=False):
            one, other = (max(there, key=lambda fact: fact.score) for there in (first, second))
            if one.phrase.lower() != other.phrase.lower() and fits(one.passage, other.passage):
                question = f"{name}: {_question(one, rng)} And {_question(other, rng)}"
                answer = f"{one.statement} {other.statement}"
                pairs.append(Pair(question, answer, "cross", one.passage, -1, (other.passage,)))
    return pairs


def split_rounds(pairs: Sequence[Pair], chunks: int) -> tuple[list[Pair], list[Pair]]:
    """Those of a first round, `PER_CHUNK` for each chunk that they are about, and the rest."""
    first: list[Pair] = []
    rest: list[Pair] = []
    taken = [0] * chunks
    for pair in pairs:
        room = taken[pair.passage] < PER_CHUNK
        taken[pair.passage] += room
        (first if room else rest).append(pair)
    return first, rest


def _mentions(facts: Sequence[Fact], title: str) -> _Mentions:
    """The names that two sentences or more hold, the longest first; the title, which all of it is about, is none."""
    names = {fact.phrase for fact in facts if _is_name(fact)} - {title}
    sentences = list(dict.fromkeys((fact.passage, fact.sentence) for fact in facts))
    found: _Mentions = {}
    for name in sorted(names, key=lambda name: (-len(name), name)):
        pattern = re.compile(rf"(?<!\w){re.escape(name)}(?![\w-])")
        by_chunk: defaultdict[int, list[str]] = defaultdict(list)
        alone = 0
        for chunk, sentence in sentences:
            if name in sentence and (match := pattern.search(sentence)):
                by_chunk[chunk].append(sentence)
                alone += " " in name or _STANDS_ALONE.match(sentence, match.end()) is not None
        told = sum(map(len, by_chunk.values()))
        if told >= 2 and alone > told / 2:  # "Roman" in "Roman roads" names nothing by itself
            found[name] = dict(by_chunk)
    return found


def _is_name(fact: Fact) -> bool:
    """Whether every telling word of the phrase is written with a capital, and not only as a sentence's first."""
    words = [word for word in fact.phrase.split() if re.split("['’]", word.lower())[0] not in STOPWORDS]
    return bool(words) and all(word[0].isupper() for word in words) and (fact.start > 0 or len(words) > 1)


def _relevant(sentence: str, name: str) -> str:
    """The sentence, or of a long one the clauses that hold the name; empty when these are long, too."""
    if len(sentence.split()) <= LONGEST_PART:
        return sentence
    kept = "; ".join(part.strip(" ,;") for part in CLAUSES.split(sentence) if name in part)
    return f"{kept[:1].upper()}{kept[1:]}" if len(kept.split()) <= LONGEST_PART else ""


def _joined(parts: Sequence[str]) -> str:
    """As many of the parts as `LONGEST` allows, each a sentence; empty for less than two."""
    taken = list(_within(parts))
    return " ".join(taken) if len(taken) >= 2 else ""


def _within(parts: Sequence[str]) -> Iterator[str]:
    words = 0
    for part in parts:
        words += len(part.split())
        if words > LONGEST:
            return
        yield part if part[-1] in ".!?。！？" else f"{part}."


def _question(fact: Fact, rng: random.Random) -> str:
    question = (natural_pair(fact, rng) or sketched_pair(fact, "", rng)).question
    return f"{question[:1].lower()}{question[1:]}"
