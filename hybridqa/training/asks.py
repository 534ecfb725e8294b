"""The questions on which a student learns to behave as its teacher, and those that test it.

They are the user's, the context's own, or questions about the store's documents, with general ones that have nothing to
do with any. Knows nothing about models or prompts. Invariant: no question is both learned and held out; the same input
and seed give the same questions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hybridqa.answering.prompt import source_text
from hybridqa.errors import InputError
from hybridqa.training.context_files import Context
from hybridqa.training.facts import find_facts
from hybridqa.training.pairs import ask_pair, natural_pair
from hybridqa.training.retention import JUDGING, TRAINING
from hybridqa.types import Message, ModuleKind, Passage

LEAST = 8  # questions that a behaviour is learned and tested on
MOST_HELD = 24  # of them, held out
MOST_OTHERS = 16  # general questions that test what is left alone
GENERAL_SHARE = 0.2  # of what is learned, beside questions of the user's or the context's
GENERAL_BESIDE_DOCUMENTS = 1 / 3  # of what is learned, at least
OWN_LEAST = 8  # examples of which some can be asked while the rest are shown

Retrieve = Callable[[str], str | None]  # a question → the source that it would be served with


@dataclass(frozen=True, slots=True)
class Ask:
    """A question, and what it may be asked with."""

    question: str
    source: str | None = None
    general: bool = False  # has nothing to do with the context, where that is about some questions alone
    scratchpad: int = -1  # which of the context's it is; -1: none


@dataclass(frozen=True, slots=True)
class Asks:
    """All questions of a job, each list in the order in which they are to be used."""

    learned: tuple[Ask, ...]
    held_out: tuple[Ask, ...]
    general: tuple[Ask, ...] = ()  # to learn beside the others
    others: tuple[Ask, ...] = ()  # to test beside the others
    general_share: float = GENERAL_SHARE  # of what is learned, where there are general ones
    fill: bool = False  # whether general ones are learned rather than the same others again in sampled words


def document_asks(documents: Sequence[Sequence[Passage]], *, most: int, seed: int) -> list[Ask]:
    """Questions about documents, given as their passages, each with the passage that answers it; at most `most`."""
    found: list[Ask] = []
    rng = random.Random(seed)
    for passages in documents:
        for fact in find_facts([passage.text for passage in passages]):
            pair = natural_pair(fact, rng) or ask_pair(fact)
            found.append(Ask(pair.question, source_text(passages[pair.passage])))
    found = list({ask.question: ask for ask in found}.values())
    return rng.sample(found, min(most, len(found)))


def choose_asks(
    context: Context, given: Sequence[str], documents: Sequence[Ask], retrieve: Retrieve, *, seed: int
) -> Asks:
    """What to ask: `given` questions before the context's own, and these before those about documents.

    Raises `InputError` when there are too few.
    """
    apart = random.Random(seed)
    own = _own(context, given, retrieve)
    if own:
        if len(own) < LEAST:
            raise InputError(
                f"there are {len(own)} questions to learn on; expected at least {LEAST}. Put more of them into the "
                "file, or leave --questions out to learn on general ones."
            )
        apart.shuffle(own)
        held = _held(len(own))
        general = tuple(Ask(question, general=True) for question, _ in TRAINING)
        others = tuple(Ask(question, general=True) for question, _ in JUDGING[:MOST_OTHERS])
        known = {ask.question for ask in own}
        return Asks(
            tuple(own[held:]),
            tuple(own[:held]),
            tuple(ask for ask in general if ask.question not in known),
            tuple(ask for ask in others if ask.question not in known),
        )
    about = list(documents)
    apart.shuffle(about)
    held = max(_held(len(about)) // 2, min(LEAST // 2, len(about) // 2))
    anything = [Ask(question) for question, _ in TRAINING]
    tested = (*about[:held], *(Ask(question) for question, _ in JUDGING[: MOST_HELD - held]))
    apart.shuffle(anything)
    if not about:
        return Asks(tuple(anything), tested)
    # What is served stands beside sources mostly: documents' questions come first, however few they are.
    share = GENERAL_BESIDE_DOCUMENTS
    return Asks(tuple(about[held:]), tested, tuple(anything), general_share=share, fill=True)


def _own(context: Context, given: Sequence[str], retrieve: Retrieve) -> list[Ask]:
    """The user's questions and the context's; empty where the context is to be learned on any questions."""
    if context.kind is ModuleKind.SCRATCHPAD:
        pads = {pad.question: place for place, pad in enumerate(context.scratchpads)}
        return [Ask(question, scratchpad=place) for question, place in pads.items()]
    if given:
        return [Ask(question, retrieve(question)) for question in given]
    if context.kind is ModuleKind.EXAMPLES and len(context.examples) >= OWN_LEAST:
        questions = dict.fromkeys(first_question(turns) for turns in context.examples)
        asks = [Ask(question) for question in questions]
        return [replace(ask, source=retrieve(ask.question)) for ask in asks] if len(asks) >= LEAST else []
    return []


def first_question(turns: Sequence[Message]) -> str:
    """What an example's user says first."""
    return next(turn.content for turn in turns if turn.role == "user")


def _held(count: int) -> int:
    """How many of so many questions are held out."""
    return min(MOST_HELD, max(LEAST // 2, count // 4))
