"""Puts a question, its sources and the conversation into a chat model's own template, inside a token budget.

Knows nothing about search, engines or citations. Invariants: a source is in the prompt whole or not at all; the
question is always there, last, and so are the conversation's system turns; nothing that a document or a user wrote can
act as a control token of the template.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from hybridqa.answering.options import check_question
from hybridqa.answering.template import ChatTemplate
from hybridqa.errors import QuestionError
from hybridqa.types import Message, Passage, ScoredPassage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN = "I don't know."  # what a model is asked to say, word for word, when it has no answer
INSTRUCTION_SOURCES = (
    "Answer the question from the sources, in one or two short sentences. "
    "After each fact write the number of its source, like [1]. "
    f"If the sources do not hold the answer, say: {UNKNOWN}"
)
INSTRUCTION_USER = "What the user has said before counts more than the sources."
INSTRUCTION_CLOSED = f"Answer the question in one or two short sentences. If you do not know the answer, say: {UNKNOWN}"

Wider = Callable[[ScoredPassage, Sequence[ScoredPassage]], ScoredPassage]  # the passage, less what others have
_MARKER = re.compile(r"\s?\[\d{1,3}(?:\s*,\s*\d{1,3})*\]")
_CHARACTERS_PER_TOKEN = 64  # no text of words is longer than this per token; longer ones are refused unread


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the engine is given, and the sources in it in the order of their numbers."""

    token_ids: tuple[int, ...]
    passages: tuple[ScoredPassage, ...] = ()


def source_text(passage: Passage) -> str:
    """A passage as a source: its title and heading on a line, then its text."""
    label = " — ".join(" ".join(part.split()) for part in (passage.title, passage.heading) if part.strip())
    return f"{label}\n{passage.text}" if label else passage.text


def messages_for(question: str, sources: Sequence[str] = (), history: Sequence[Message] = ()) -> list[Message]:
    """The conversation to put into a template: an instruction, the earlier turns, then the sources and the question.

    `sources` are texts as `source_text` makes them, numbered here from 1; without any, the closed instruction is used.
    System turns of the history follow the instruction. Citations in earlier answers are dropped: their numbers were of
    other sources.
    """
    instruction = INSTRUCTION_SOURCES if sources else INSTRUCTION_CLOSED
    if sources and any(turn.role == "user" for turn in history):
        instruction = f"{instruction} {INSTRUCTION_USER}"
    system = [instruction, *(turn.content for turn in history if turn.role == "system")]
    numbered = [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
    messages = [Message("system", "\n\n".join(system))]
    for turn in history:
        if turn.role == "assistant":
            messages.append(Message("assistant", _MARKER.sub("", turn.content)))
        elif turn.role != "system":
            messages.append(Message("user", turn.content))
    messages.append(
        Message("user", "\n\n".join([*numbered, f"Question: {question.strip()}" if sources else question.strip()]))
    )
    return messages


class PromptBuilder:
    """Builds prompts for one model; safe to share between threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_model_len: int, context_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._max_model_len = max_model_len
        self._context_tokens = context_tokens
        self._lock = Lock()  # a fast tokenizer refuses two threads at once

    @property
    def max_model_len(self) -> int:
        """Prompt plus completion, in tokens."""
        return self._max_model_len

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer, for a model without a chat template."""
        return self._template.stop

    def encode(self, messages: Sequence[Message], begun: str = "") -> tuple[int, ...]:
        """The messages' token ids, up to where the assistant's answer begins, or has got to when `begun` is there."""
        with self._lock:
            text = self._template.render(messages)
            ids = self._tokenizer.encode(text, add_special_tokens=self._template.add_special_tokens)
            more = self._tokenizer.encode(self._template.neutral(begun), add_special_tokens=False) if begun else ()
            return (*ids, *more)

    @property
    def fingerprint(self) -> str:
        """sha256 hex of what a prompt is like, with sources and without: of the instructions, template and tokens."""
        prompts = [self.encode(messages_for("?")), self.encode(messages_for("?", ["?"]))]
        return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()

    def encode_answer(self, text: str, *, ended: bool = True) -> tuple[int, ...]:
        """An answer's token ids, to stand behind those of `encode`; if `ended`, with the token that ends the turn."""
        end = self._template.end_of_turn if ended else None
        with self._lock:
            ids = self._tokenizer.encode(self._template.neutral(text), add_special_tokens=False)
        return (*ids, end) if end is not None else tuple(ids)

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """A text's token ids for a model to continue, outside any conversation."""
        with self._lock:
            return tuple(self._tokenizer.encode(self._template.neutral(text)))

    def check(self, question: str, system: Sequence[Message] = (), *, max_answer_tokens: int) -> None:
        """Raises `QuestionError` for a question that is empty, no valid Unicode, or too long to be answered.

        `system` are the turns that are always there beside it.
        """
        check_question(question)
        room = self._room(max_answer_tokens)
        characters = len(question) + _characters(system)
        if characters > _CHARACTERS_PER_TOKEN * room:
            raise self._too_long(f"{characters:,} characters", room, system)
        if (length := len(self.encode(messages_for(question, history=system)))) > room:
            raise self._too_long(f"{length:,} tokens", room, system)

    def build(
        self,
        question: str,
        history: Sequence[Message] = (),
        passages: Sequence[ScoredPassage] = (),
        *,
        max_answer_tokens: int,
        wider: Wider | None = None,
    ) -> Prompt:
        """The prompt with as many of the passages, then as much of the history, as there is room for.

        Passages are taken in their order while they fit `context_tokens`; the first to fit the model's window is taken
        whatever its length, so that an answer from passages has one. What is left of both is for what `wider` makes of
        them, in the same order. Of the history the oldest turns go first, and its system turns never.
        Raises `QuestionError` when the question, or the question with one passage, does not fit.
        """
        system = [message for message in history if message.role == "system"]
        self.check(question, system, max_answer_tokens=max_answer_tokens)
        room = self._room(max_answer_tokens)
        used = self._choose_passages(question, system, passages, room)
        if wider is not None:
            used = self._widen(question, system, used, room, wider)
        sources = [source_text(scored.passage) for scored in used]
        ids = self.encode(messages_for(question, sources, system))
        turns = _turns([message for message in history if message.role != "system"])
        spent, kept = len(ids), len(turns)
        for turn in reversed(turns):  # counted apart first: one exact count of a long history per turn would be slow
            if _characters(turn) > _CHARACTERS_PER_TOKEN * room:
                break  # unread: megabytes would keep all others from the tokenizer for seconds
            spent += sum(self._count(message.content) for message in turn)
            if spent > room:
                break
            kept -= 1
        for first in range(kept, len(turns)):
            recent = [*system, *(message for turn in turns[first:] for message in turn)]
            whole = self.encode(messages_for(question, sources, recent))
            if len(whole) <= room:
                return Prompt(whole, used)
        return Prompt(ids, used)

    def _choose_passages(
        self, question: str, system: Sequence[Message], passages: Sequence[ScoredPassage], room: int
    ) -> tuple[ScoredPassage, ...]:
        chosen: list[ScoredPassage] = []
        spent, smallest = 0, 0
        for scored in passages:
            source = source_text(scored.passage)
            cost = self._count(f"[{len(chosen) + 1}] {source}\n\n")
            if chosen and spent + cost > self._context_tokens:
                continue
            sources = [source_text(other.passage) for other in chosen]
            length = len(self.encode(messages_for(question, [*sources, source], system)))
            if length <= room:
                chosen.append(scored)
                spent += cost
            else:
                smallest = min(smallest or length, length)
        if passages and not chosen:
            raise self._too_long(f"{smallest:,} tokens with its shortest source", room, system)
        return tuple(chosen)

    def _widen(
        self,
        question: str,
        system: Sequence[Message],
        passages: tuple[ScoredPassage, ...],
        room: int,
        wider: Wider,
    ) -> tuple[ScoredPassage, ...]:
        """The passages, each in its turn made wider where that still fits; none loses its place by it."""
        widened = list(passages)
        for place, scored in enumerate(passages):
            rest = [*widened[:place], *widened[place + 1 :]]
            wide = wider(scored, rest)
            if wide == scored:
                continue
            sources = [source_text(one.passage) for one in (*widened[:place], wide, *widened[place + 1 :])]
            spent = sum(self._count(f"[{number}] {source}\n\n") for number, source in enumerate(sources, 1))
            if spent <= self._context_tokens and len(self.encode(messages_for(question, sources, system))) <= room:
                widened[place] = wide
        return tuple(widened)

    def _room(self, max_answer_tokens: int) -> int:
        return self._max_model_len - max_answer_tokens

    def _count(self, text: str) -> int:
        with self._lock:
            return len(self._tokenizer.encode(self._template.neutral(text), add_special_tokens=False))

    def _too_long(self, length: str, room: int, system: Sequence[Message]) -> QuestionError:
        what = "the question with the system turns" if system else "the question"
        return QuestionError(
            f"{what} makes a prompt of {length}; expected at most {room:,} tokens beside the answer. Shorten it, "
            f"or change `max_model_len` ({self._max_model_len:,}) or `max_answer_tokens` in hybridqa.toml."
        )


def _characters(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)


def _turns(history: Sequence[Message]) -> list[list[Message]]:
    """The history cut before each user message, so that a question is dropped with its answer."""
    turns: list[list[Message]] = []
    for message in history:
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns
