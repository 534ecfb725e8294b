"""Writes the curriculum of a behaviour: what the serving model answers with a context in its prompt.

Knows nothing about losses or files. Invariants: an answer is the model's own with the context there, whole (never cut
off), or a scratchpad's own; an example is never asked for while it is shown; held-out questions are never learned.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import shorten

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.engine.protocol import Completion, Sampling
from hybridqa.errors import InputError
from hybridqa.training.asks import Ask, Asks, first_question
from hybridqa.training.context_files import Context, Scratchpad
from hybridqa.training.contexts import BARE, SERVING, SOURCES, conversation, teacher_prompt
from hybridqa.training.gate import LIMITS
from hybridqa.training.generator import Complete
from hybridqa.training.pairs import Pair
from hybridqa.training.synthesis import Curriculum
from hybridqa.types import Message, ModuleKind

SUBSETS = 4  # of the examples, or orders of them where there are few
TEMPERATURE = 0.8  # of an answer that has been given greedily before
LEAST_READ = LIMITS.questions  # held-out questions that are asked with their source
FORMS = (SOURCES, SERVING, BARE)  # that a question is asked in; without a source, in the last two
REASONING_TOKENS = 256
LONGEST_ANSWER = 60  # words behind a scratchpad: a longer one is reasoning again
THINK = (
    "Think about the question step by step, in a few short sentences. Then write 'Answer:' and the answer alone, on a "
    "line of its own."
)
_WHOLE = ("stop",)  # how a completion has ended that was not cut off
_BLANK = Pair("", "", "", -1, -1)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A pair without its answer; `round` counts how often the same has been asked before."""

    pair: Pair
    round: int = 0


class BehaviourWriter:
    """Writes curricula with one engine and one model's prompts."""

    def __init__(
        self, complete: Complete, prompts: PromptBuilder, *, max_model_len: int, max_answer_tokens: int, seed: int = 0
    ) -> None:
        self._complete = complete
        self._prompts = prompts
        self._window = max_model_len
        self._answer_tokens = max_answer_tokens
        self._seed = seed

    def write(self, context: Context, asks: Asks, count: int) -> Curriculum:
        """The curriculum with at most `count` pairs to learn. Raises `InputError` for a context that does not fit."""
        dropped: Counter[str] = Counter()
        pads: tuple[Scratchpad | None, ...] = ()
        if context.kind is ModuleKind.SCRATCHPAD:
            pads = self._reasoned(context.scratchpads, dropped)
        everyone = (*asks.learned, *asks.held_out, *asks.general, *asks.others)
        sources = list(dict.fromkeys(ask.source for ask in everyone if ask.source is not None))
        lesson = Curriculum("", tuple(sources), (), (), {}, kind=context.kind)
        lesson = replace(lesson, contexts=self._contexts(context, pads, lesson, everyone))
        shown = [{turn.content for turn in turns if turn.role == "user"} for turns in lesson.contexts]
        usable = {place for place, pad in enumerate(pads) if pad is not None}

        def drafts(wanted: Sequence[Ask], most: int, *, read: bool = False) -> list[_Draft]:
            usable_asks = [ask for ask in wanted if ask.scratchpad < 0 or ask.scratchpad in usable]
            return self._drafts(context.kind, usable_asks, most, sources, shown, dropped, read=read)

        general = round(count * asks.general_share) if asks.general else 0
        most = count - general
        own = drafts(asks.learned, min(most, len(FORMS) * len(asks.learned)) if asks.fill else most)
        learned = [*own, *drafts(asks.general, count - len(own) if asks.fill else general)]
        held_out = drafts(asks.held_out, len(asks.held_out), read=True)
        others = drafts(asks.others, len(asks.others))
        answers = iter(self._answers(lesson, [*learned, *held_out, *others], pads, dropped))
        pairs, tested, left = ([next(answers) for _ in part] for part in (learned, held_out, others))
        return replace(
            lesson,
            pairs=tuple(dict.fromkeys(pair for pair in pairs if pair is not None)),
            held_out=tuple(pair for pair in tested if pair is not None),
            others=tuple(pair for pair in left if pair is not None),
            dropped=dict(dropped),
        )

    def _drafts(
        self,
        kind: ModuleKind,
        asks: Sequence[Ask],
        most: int,
        sources: Sequence[str],
        shown: Sequence[set[str]],
        dropped: Counter[str],
        *,
        read: bool = False,
    ) -> list[_Draft]:
        """At most `most` drafts: each question in one form after another, with one context after another.

        With `read`, the first questions that have a source are asked with it: fewer would test nothing beside a source.
        Once a question has been asked in every form and with every context, it is asked so again, up to three times.
        """
        drafts: list[_Draft] = []
        seen: Counter[Pair] = Counter()
        places = {source: place for place, source in enumerate(sources)}
        read_first = [number for number, ask in enumerate(asks) if ask.source is not None][: LEAST_READ if read else 0]
        for turn in range(3 * 3 * max(1, len(shown))):
            for number, ask in enumerate(asks):
                if len(drafts) == most:
                    return drafts
                forms = FORMS[1:] if ask.source is None else FORMS
                form = forms[(turn if number in read_first else number + turn) % len(forms)]
                if kind is ModuleKind.SCRATCHPAD:
                    place = ask.scratchpad
                else:
                    fitting = [place for place, questions in enumerate(shown) if ask.question not in questions]
                    if not fitting:
                        dropped["is an example itself"] += turn == 0
                        continue
                    place = fitting[(number + turn) % len(fitting)]
                passage = places[ask.source] if form == SOURCES and ask.source is not None else -1
                pair = Pair(ask.question, "", form, passage, -1, context=place)
                if seen[pair] < (1 if kind is ModuleKind.SCRATCHPAD and place >= 0 else 3):
                    drafts.append(_Draft(pair, seen[pair]))
                    seen[pair] += 1
        return drafts

    # Contexts

    def _contexts(
        self, context: Context, pads: Sequence[Scratchpad | None], lesson: Curriculum, asks: Sequence[Ask]
    ) -> tuple[tuple[Message, ...], ...]:
        if context.kind is ModuleKind.SCRATCHPAD:
            return tuple((Message("assistant", pad.reasoning if pad else ""),) for pad in pads)
        room = self._room(lesson, asks)
        if context.kind is ModuleKind.INSTRUCTIONS:
            turns = (Message("system", context.instructions),)
            if (size := self._size(turns)) > room:
                raise InputError(
                    f"the instructions have {size:,} tokens; expected at most {room:,}, which the window of "
                    f"{self._window:,} leaves beside a question and its answer. Shorten them, or raise max_model_len."
                )
            return (turns,)
        return self._subsets(context.examples, room)

    def _subsets(self, examples: Sequence[tuple[Message, ...]], room: int) -> tuple[tuple[Message, ...], ...]:
        """Random subsets of the examples in random orders, as many as there is room for; each lacks some of them."""
        system = tuple(dict.fromkeys(turn for turns in examples for turn in turns if turn.role == "system"))
        spoken = [tuple(turn for turn in turns if turn.role != "system") for turns in examples]
        sizes = [self._size(turns) for turns in spoken]
        room -= self._size(system)
        if min(sizes) > room:
            raise InputError(
                f"the shortest example has {min(sizes):,} tokens; expected at most {max(room, 0):,}, which the window "
                f"of {self._window:,} leaves beside a question and its answer. Shorten it, or raise max_model_len."
            )
        rng = random.Random(self._seed)
        order = list(range(len(spoken)))
        rng.shuffle(order)
        fold = {place: number % SUBSETS for number, place in enumerate(order)}
        subsets = []
        for number in range(SUBSETS):
            few = len(spoken) < 2 * SUBSETS
            rest = [place for place in order if few or fold[place] != number]
            rng.shuffle(rest)
            asked = {first_question(spoken[place]) for place in order if not few and fold[place] == number}
            chosen: list[Message] = [*system]
            left = room
            for place in rest:
                if sizes[place] <= left and first_question(spoken[place]) not in asked:
                    chosen.extend(spoken[place])
                    left -= sizes[place]
            subsets.append(tuple(chosen))
        return tuple(dict.fromkeys(subsets))

    def _room(self, lesson: Curriculum, asks: Sequence[Ask]) -> int:
        """Tokens left for a context beside the longest of the student's conversations and its answer."""
        places = {source: place for place, source in enumerate(lesson.chunks)}
        longest = 0
        for ask in asks:
            passage, form = (-1, SERVING) if ask.source is None else (places[ask.source], SOURCES)
            pair = replace(_BLANK, question=ask.question, kind=form, passage=passage)
            size = len(self._prompts.encode(conversation(lesson, pair)))
            if size > self._window - self._answer_tokens:
                raise InputError(
                    f"the question {shorten(ask.question, 60)!r} has {size:,} tokens in its prompt; expected at most "
                    f"{self._window - self._answer_tokens:,}, which the window of {self._window:,} leaves beside an "
                    "answer. Shorten it or leave it out, or raise max_model_len."
                )
            longest = max(longest, size)
        return self._window - self._answer_tokens - longest

    def _size(self, turns: Sequence[Message]) -> int:
        """Tokens that the turns cost in a prompt: counted in one, less the same prompt without them."""
        asked = Message("user", "?")
        return len(self._prompts.encode([*turns, asked])) - len(self._prompts.encode([asked])) if turns else 0

    # Answers

    def _reasoned(self, pads: Sequence[Scratchpad], dropped: Counter[str]) -> tuple[Scratchpad | None, ...]:
        """The scratchpads, reasoning and answer written by the engine where they are missing; None where it failed."""
        places = [place for place, pad in enumerate(pads) if not pad.reasoning]
        prompts = [
            self._prompts.encode([Message("system", THINK), Message("user", pads[place].question)]) for place in places
        ]
        found: list[Scratchpad | None] = list(pads)
        for place, done in zip(places, self._ask(prompts, REASONING_TOKENS), strict=True):
            reasoning, answer, fault = split_reasoning(done)
            found[place] = None if fault else Scratchpad(pads[place].question, reasoning, answer)
            if fault:
                dropped[f"reasoning {fault}"] += 1
        return tuple(found)

    def _answers(
        self,
        lesson: Curriculum,
        drafts: Sequence[_Draft],
        pads: Sequence[Scratchpad | None],
        dropped: Counter[str],
    ) -> list[Pair | None]:
        """The drafts' pairs, in order; None for one that the critic dropped."""
        found: list[Pair | None] = [None] * len(drafts)
        open_places: list[int] = []
        for place, draft in enumerate(drafts):
            pad = pads[draft.pair.context] if pads and draft.pair.context >= 0 else None
            if pad is None:
                open_places.append(place)
            elif self._fits(lesson, pair := replace(draft.pair, answer=pad.answer)):
                found[place] = pair
            else:
                dropped["too long"] += 1
        for number in sorted({drafts[place].round for place in open_places}):
            places = [place for place in open_places if drafts[place].round == number]
            prompts = [teacher_prompt(self._prompts, lesson, drafts[place].pair) for place in places]
            heat = TEMPERATURE if number else 0.0
            for place, done in zip(places, self._ask(prompts, self._answer_tokens, heat, number), strict=True):
                text = done.text.strip()
                fault = _fault(done)
                if fault:
                    dropped[fault] += 1
                else:
                    found[place] = replace(drafts[place].pair, answer=text)
        return found

    def _fits(self, lesson: Curriculum, pair: Pair) -> bool:
        tokens = len(teacher_prompt(self._prompts, lesson, pair)) + len(self._prompts.encode_answer(pair.answer))
        return tokens <= self._window

    def _ask(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, temperature: float = 0.0, number: int = 0
    ) -> list[Completion]:
        """A completion of each prompt; one that the window has no room for gets an empty one that is "abort"ed."""
        sampling = Sampling(max_tokens, temperature, stop=self._prompts.stop, seed=self._seed + number)
        room = self._window - max_tokens
        fitting = [ids for ids in prompts if len(ids) <= room]
        done = iter(self._complete(fitting, sampling) if fitting else [])
        return [next(done) if len(ids) <= room else Completion("", "abort") for ids in prompts]


def split_reasoning(done: Completion) -> tuple[str, str, str]:
    """Reasoning and answer of a completion, and why the critic drops it; that is empty when it does not."""
    if fault := _fault(done):
        return "", "", fault
    reasoning, mark, answer = done.text.strip().rpartition("Answer:")
    reasoning, answer = reasoning.strip().rstrip("*").strip(), answer.strip().strip("*").strip()
    if not mark or not answer or "\n\n" in answer or len(answer.split()) > LONGEST_ANSWER:
        return "", "", "without a clear answer"
    if not reasoning:
        return "", "", "empty"
    return reasoning, answer, ""


def _fault(done: Completion) -> str:
    """Why a completion is no whole answer; empty when it is one."""
    if done.finish_reason == "abort":
        return "too long"
    if done.finish_reason not in _WHOLE:
        return "cut off"
    return "" if done.text.strip() else "empty"
