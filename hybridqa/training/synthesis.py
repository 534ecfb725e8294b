"""What a module is to learn from one document: restatements of its facts, and what a generator writes about it.

The pairs made without a generator carry it; the generator adds questions, summaries and, where it is worth it,
restatements, as far as the critic lets them pass. Knows nothing about losses or adapters. Invariant: an answer to a
question stands in the document, and held-out questions are never among those to learn.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hybridqa.engine.protocol import Completion
from hybridqa.training.critic import Critic
from hybridqa.training.entities import cross_pairs, entity_pairs, split_rounds
from hybridqa.training.facts import Fact, find_facts
from hybridqa.training.generator import Generator, Prompt
from hybridqa.training.pairs import FURTHER, Pair, further_restatements, held_out_pairs, restatements
from hybridqa.training.tasks import (
    QUESTION_TOKENS,
    RESTATEMENT_TOKENS,
    SUMMARY_TOKENS,
    question_task,
    restatement_task,
    summary_task,
)
from hybridqa.types import Message, ModuleKind

FEWEST = 48  # pairs of a first round: the least steps of a training go through as many about five times
Fits = Callable[[Sequence[str]], bool]  # whether these sources go into one prompt


@dataclass(frozen=True, slots=True)
class Curriculum:
    """Everything to learn from one document or other context, and to test it by."""

    title: str
    chunks: tuple[str, ...]  # what the teacher reads; of a behaviour, what both read. `Pair.passage` points here
    pairs: tuple[Pair, ...]
    held_out: tuple[Pair, ...]
    dropped: dict[str, int]  # what the critic threw away, by "kind: reason"
    reserve: tuple[Pair, ...] = ()  # for a second round; none of it is in `pairs`
    sampled: tuple[Pair, ...] = ()  # questions with the engine's own answers, for prompt distillation
    kind: ModuleKind = ModuleKind.DOCUMENT  # how the teacher sees the context; all but documents are behaviours
    contexts: tuple[tuple[Message, ...], ...] = ()  # of a behaviour: turns that the teacher has and the student has not
    others: tuple[Pair, ...] = ()  # of a behaviour: held-out questions that have nothing to do with it

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Curriculum:
        """The curriculum that `dataclasses.asdict` and JSON made `raw` of. Raises `KeyError`, `TypeError`."""
        pairs = {
            name: tuple(Pair(**{**pair, "also": tuple(pair["also"])}) for pair in raw[name])
            for name in ("pairs", "held_out", "reserve", "sampled", "others")
        }
        return cls(
            title=raw["title"],
            chunks=tuple(raw["chunks"]),
            dropped=dict(raw["dropped"]),
            kind=ModuleKind(raw["kind"]),
            contexts=tuple(tuple(Message(**turn) for turn in turns) for turns in raw["contexts"]),
            **pairs,
        )

    def sources(self, pair: Pair) -> list[str]:
        """What the teacher reads for a pair, as numbered sources: the chunks that it came from, under the title."""
        chunks = [self.chunks[place] for place in (pair.passage, *pair.also)]
        return [f"{self.title}\n{chunk}" if self.title else chunk for chunk in chunks]

    def report(self) -> dict[str, Any]:
        """For the module's metrics: how many pairs there are, by kind, and what was dropped, by kind and reason."""
        return {
            "pairs": len(self.pairs),
            "held_out": len(self.held_out),
            "reserve": len(self.reserve),
            "kept": dict(Counter(pair.kind for pair in (*self.pairs, *self.sampled))),
            "dropped": self.dropped,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """How much a generator is asked for."""

    questions: int = 8  # of a document
    questions_per_chunk: int = 0  # as many for each chunk, if that is more
    learned_per_chunk: int = 4  # of the questions; the rest is the reserve
    restate: bool = False

    @classmethod
    def for_generator(cls, generator: Generator) -> Plan:
        """Little from a small base model, whose questions are poor; more from a strong one."""
        return cls(questions_per_chunk=6, restate=True) if generator.strong else cls()


@dataclass(slots=True)
class _Draft:
    """One document's curriculum in the making."""

    title: str
    chunks: tuple[str, ...]
    facts: list[Fact]
    asked: list[Fact]
    critic: Critic
    pairs: list[Pair] = field(default_factory=list)
    reserve: list[Pair] = field(default_factory=list)


class Synthesiser:
    """Makes the curricula of documents with a generator's help."""

    def __init__(
        self, generator: Generator, *, plan: Plan | None = None, seed: int = 0, fits: Fits = lambda sources: True
    ) -> None:
        self._generator = generator
        self._plan = plan or Plan.for_generator(generator)
        self._seed = seed
        self._fits = fits

    def run(self, documents: Sequence[tuple[str, Sequence[str]]]) -> list[Curriculum]:
        """The curricula of (title, chunks) documents; all requests of a kind go to the generator together."""
        drafts = [self._draft(title, tuple(chunks)) for title, chunks in documents]
        questions = self._write(
            [question_task(draft.title, draft.chunks[fact.passage], fact) for draft in drafts for fact in draft.asked],
            QUESTION_TOKENS,
        )
        summaries = self._write(
            [summary_task(draft.title, chunk) for draft in drafts for chunk in draft.chunks], SUMMARY_TOKENS
        )
        restated = self._write(
            [restatement_task(draft.title, chunk) for draft in drafts for chunk in draft.chunks if self._plan.restate],
            RESTATEMENT_TOKENS,
        )
        for draft in drafts:
            self._take_questions(draft, questions)
            _take_prose(draft, "summary", "Summarise {}.", summaries)
            if self._plan.restate:
                _take_prose(draft, "restatement", "Tell everything about {} in other words.", restated)
        return [self._finished(draft) for draft in drafts]

    def _write(self, prompts: Sequence[Prompt], max_tokens: int) -> Iterator[Completion]:
        return iter(self._generator.write(prompts, max_tokens=max_tokens) if prompts else [])

    def _draft(self, title: str, chunks: tuple[str, ...]) -> _Draft:
        """What needs no generator."""
        facts = find_facts(chunks)
        draft = _Draft(title, chunks, facts, self._choose(facts, title), Critic(title))
        draft.pairs.extend(restatements(facts, title, seed=self._seed))

        def fit(one: int, other: int) -> bool:
            return self._fits([f"{title}\n{chunks[one]}", f"{title}\n{chunks[other]}"])

        about = entity_pairs(facts, title, seed=self._seed)
        across = cross_pairs(facts, title, fit, seed=self._seed)
        for pairs in (about, across):
            first, rest = split_rounds(pairs, len(chunks))
            draft.pairs.extend(first)
            draft.reserve.extend(rest)
        known = {pair.question for pair in draft.pairs}
        ways = max(FURTHER, math.ceil(FEWEST / max(1, len(facts))))
        draft.reserve.extend(further_restatements(facts, title, known, variants=ways, seed=self._seed))
        draft.critic.know(pair.question for pair in (*draft.pairs, *draft.reserve))
        return draft

    def _choose(self, facts: Sequence[Fact], title: str) -> list[Fact]:
        """Facts to have the generator ask for, spread over the document."""
        rng = random.Random(
            f"{self._seed} {title} {facts[0].sentence if facts else ''}"
        )  # whatever other documents there are
        chunks = sorted({fact.passage for fact in facts})
        chosen = rng.sample(list(facts), min(self._plan.questions, len(facts)))
        if self._plan.questions_per_chunk * len(chunks) > self._plan.questions:
            chosen = []
            for chunk in chunks:
                there = [fact for fact in facts if fact.passage == chunk]
                chosen.extend(rng.sample(there, min(self._plan.questions_per_chunk, len(there))))
        return sorted(chosen, key=lambda fact: fact.number)

    def _take_questions(self, draft: _Draft, written: Iterator[Completion]) -> None:
        learned: Counter[int] = Counter()
        for fact in draft.asked:
            text = draft.critic.question(next(written), fact.phrase, fact.sentence)
            if text:
                room = learned[fact.passage] < self._plan.learned_per_chunk
                learned[fact.passage] += room
                pair = Pair(text, fact.phrase, "question", fact.passage, fact.number)
                (draft.pairs if room else draft.reserve).append(pair)

    def _finished(self, draft: _Draft) -> Curriculum:
        pairs, reserve = filled(draft.pairs, draft.reserve)
        learned = {pair.question for pair in (*pairs, *reserve)}
        held_out = held_out_pairs(draft.facts, chunks=len(draft.chunks), seed=self._seed)
        return Curriculum(
            draft.title,
            draft.chunks,
            stated(pairs, draft.facts),
            tuple(pair for pair in held_out if pair.question not in learned),
            dict(draft.critic.dropped),
            stated(reserve, draft.facts),
        )


def filled(pairs: Sequence[Pair], reserve: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """A first round of `FEWEST` pairs where the reserve has what it lacks, taken from all facts alike, and the rest.

    A short document is read many times over all the same: a few wordings would be learned by heart, and no others.
    """
    asked: Counter[int] = Counter()
    turns = []
    for place, pair in enumerate(reserve):
        turns.append((asked[pair.fact], place))
        asked[pair.fact] += 1
    taken = {place for _, place in sorted(turns)[: max(0, FEWEST - len(pairs))]}
    more = [reserve[place] for place in sorted(taken)]
    return [*pairs, *more], [pair for place, pair in enumerate(reserve) if place not in taken]


def stated(pairs: Iterable[Pair], facts: Sequence[Fact], *, every: int = 2) -> tuple[Pair, ...]:
    """The same questions, each `every`th about a fact answered by the sentence that states it instead of its phrase.

    A module that learns bare phrases alone stops reading: it answers so with the right passage in front of it, too; one
    that learns sentences alone never gives a short answer. Held-out questions are asked for phrases: a question that
    leaves a phrase open quotes the rest of its sentence.
    """
    told: list[Pair] = []
    asked = 0
    for pair in pairs:
        asked += pair.fact >= 0
        whole = pair.fact >= 0 and asked % every == 0
        told.append(replace(pair, answer=facts[pair.fact].statement) if whole else pair)
    return tuple(told)


def _take_prose(draft: _Draft, kind: str, ask: str, written: Iterator[Completion]) -> None:
    """A text about each chunk, asked for by the title and the chunk's number."""
    for place, chunk in enumerate(draft.chunks):
        text = draft.critic.prose(kind, next(written), f"{draft.title} {chunk}")
        if text:
            part = f" (part {place + 1})" if len(draft.chunks) > 1 else ""
            question = ask.format(f"{draft.title or 'the document'}{part}")
            draft.pairs.append(Pair(question, text, kind, place, -1))
