"""A tokenizer's chat template, tamed: any roles in, one text out, with every control token in it the template's own.

Knows nothing about questions or sources. Invariant: the text of a message never holds a control token of the model; the
roles that a template refuses are folded into those that it takes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from hybridqa.errors import ModelError
from hybridqa.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "\u2063probe\u2063"  # stands for a message's text; nothing else in a template looks like it
_MARKUP = re.compile(r"<<?/?[^<>\s]{1,40}>>?|\[/?[A-Z_]{2,40}\]")  # <|user|>, <<SYS>>, [INST]
_NOT_TEXT = re.compile("[\ud800-\udfff\x00]")


class ChatTemplate:
    """Renders conversations for one model; a model without a template gets "Question: … Answer: …"."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._plain = not getattr(tokenizer, "chat_template", None)
        self.add_special_tokens = self._plain  # a template writes its own beginning of sequence
        self.stop: tuple[str, ...] = ("\nQuestion:",) if self._plain else ()
        self._system = not self._plain and self._takes_system()
        self._control = _pattern(self._control_texts())
        self.end_of_turn = self._end_of_turn()  # the token that an answer ends with; None when the model has none

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation's text, ending where the assistant's answer begins."""
        merged = self._merged([Message(turn.role, self.neutral(turn.content)) for turn in messages])
        return _plain_text(merged) if self._plain else self._apply(merged)

    def neutral(self, text: str) -> str:
        """The text with each control token in it broken by a space, and without what no tokenizer takes."""
        text = _NOT_TEXT.sub("", text)
        return self._control.sub(lambda match: f"{match.group()[0]} {match.group()[1:]}", text)

    def _merged(self, messages: Sequence[Message]) -> list[Message]:
        """One system turn at most, then user and assistant by turns, the user first."""
        system = "\n\n".join(turn.content for turn in messages if turn.role == "system")
        merged: list[Message] = []
        for role, group in groupby((turn for turn in messages if turn.role != "system"), key=lambda turn: turn.role):
            if merged or role == "user":
                merged.append(Message(role, "\n\n".join(turn.content for turn in group)))
        if not system or self._plain or self._system:
            return [Message("system", system), *merged] if system else merged
        assert merged, "a conversation has a user turn"
        return [Message("user", f"{system}\n\n{merged[0].content}"), *merged[1:]]

    def _apply(self, messages: Sequence[Message]) -> str:
        conversation = [{"role": turn.role, "content": turn.content} for turn in messages]
        options: dict[str, Any] = {"enable_thinking": False}  # templates that do not know it pass over it
        try:
            text = self._tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True, **options
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"the chat template of {self._tokenizer.name_or_path!r} cannot be used: {error}. "
                "Expected one for turns of plain text; set `model` in hybridqa.toml to a chat model."
            ) from error
        return str(text)

    def _takes_system(self) -> bool:
        """Whether a system turn comes through the template."""
        try:
            return _PROBE in self._apply([Message("system", _PROBE), Message("user", "?")])
        except ModelError:
            return False

    def _end_of_turn(self) -> int | None:
        """What the template writes right behind an answer, if that is one special token, else the end of sequence."""
        end: int | None = self._tokenizer.eos_token_id
        if self._plain:
            return end
        turns = [Message("user", "?"), Message("assistant", _PROBE), Message("user", "?")]
        behind = self._apply(turns).partition(_PROBE)[2]
        special = self._tokenizer.added_tokens_decoder
        for token_id in self._tokenizer.encode(behind.lstrip()[:80], add_special_tokens=False)[:1]:
            if token_id in special and special[token_id].special:
                return int(token_id)
        return end

    def _control_texts(self) -> set[str]:
        special = {str(token.content) for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        if not self._plain:
            turns = [Message("user", _PROBE), Message("assistant", _PROBE), Message("user", _PROBE)]
            first = [Message("system", _PROBE)] if self._system else []
            special.update(_MARKUP.findall(self._apply([*first, *turns]).replace(_PROBE, " ")))
        return {text for text in special if len(text) > 1 and text.strip()}


def _pattern(texts: set[str]) -> re.Pattern[str]:
    """Matches any of the texts, the longest first; nothing when there are none."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


def _plain_text(messages: Sequence[Message]) -> str:
    labels = {"system": "", "user": "Question: ", "assistant": "Answer: "}
    parts = []
    for turn in messages:
        sources, mark, last = turn.content.rpartition("\n\nQuestion: ")
        label = mark.lstrip() or labels[turn.role]
        parts.append(f"{sources}\n\n{label}{last}" if mark else f"{label}{last}")
    return "\n\n".join([*parts, "Answer:"])
