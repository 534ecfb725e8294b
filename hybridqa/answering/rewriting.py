"""Has the base model restate a follow-up question so that it stands alone, and looks hard at what comes back.

Knows nothing about search. Invariant: a restatement that is given back keeps the question's carrying words, asks one
thing, and has no word that neither the question nor the conversation has; whatever else a model writes is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.engine.protocol import Engine, Sampling
from hybridqa.ingest.sentences import split_sentences
from hybridqa.retrieval.followup import POINTING
from hybridqa.retrieval.lexical import STOPWORDS, stem, text_words
from hybridqa.types import Message

TURNS = 6  # of the conversation, at most, that the model reads
TURN_CHARACTERS = 400  # of each, its end
MAX_TOKENS = 64  # of a restatement
LONGER = 5  # words more than the question and the one before it together
INSTRUCTION = (
    "Rewrite the last question so that it can be understood without the conversation. Replace words such as it, she or "
    "there by what they stand for. Write one question and nothing else."
)
# one of each kind, for models that follow an example better than an instruction
EXAMPLES = (
    (
        "User: Who built the Harrow mill?\nAssistant: Ida Crane built it.\n\nLast question: When was she born?",
        "When was Ida Crane born?",
    ),
    (
        "User: How much is a day ticket for the Elmsby tram?\nAssistant: 4 crowns.\n\nLast question: And for a week?",
        "How much is a ticket for a week for the Elmsby tram?",
    ),
)
OPENERS = frozenset(  # a question that begins with one of these does so when it is restated
    "who whom whose what when where which why how is are was were do does did can could has have had will would should "
    "may might".split()
)
_LABEL = re.compile(r"^\s*(?:\w+ )?(?:question|rewrite|rewritten|answer|user)\s*:\s*", re.IGNORECASE)
_QUOTES = "\"'“”‘’«»` "


@dataclass(frozen=True, slots=True)
class Restated:
    """A question that stands alone, or why there is none."""

    question: str = ""
    refused: str = ""


class Rewriter:
    """Restates with one base model; safe to share."""

    def __init__(self, prompts: PromptBuilder, *, max_model_len: int) -> None:
        self._prompts = prompts
        self._max_model_len = max_model_len

    async def rewrite(self, question: str, history: Sequence[Message], engine: Engine, *, scope: str = "") -> Restated:
        """The question as it would be asked without the conversation; `scope` is the engine's. Raises `EngineError`."""
        prompt_ids = self._prompt(question, history)
        if prompt_ids is None:
            return Restated(refused="the question leaves no room for it")
        sampling = Sampling(max_tokens=MAX_TOKENS, stop=(*self._prompts.stop, "\n"), scope=scope)
        done = await engine.generate(prompt_ids, sampling)
        if done.finish_reason != "stop":
            return Restated(refused="what the model wrote has no end")
        text = cleaned(begun_by(question) + done.text)
        refused = fault(text, question, history)
        return Restated(refused=refused) if refused else Restated(text)

    def _prompt(self, question: str, history: Sequence[Message]) -> tuple[int, ...] | None:
        """As many of the last turns as fit; None where not even the question with one does."""
        said = [turn for turn in history if turn.role in ("user", "assistant") and turn.content.strip()]
        for first in range(max(0, len(said) - TURNS), len(said)):
            ids = self._prompts.encode(messages_for(question, said[first:]), begun_by(question))
            if len(ids) + MAX_TOKENS <= self._max_model_len:
                return ids
        return None


def messages_for(question: str, turns: Sequence[Message]) -> list[Message]:
    """What the model is asked: the instruction, examples as earlier turns, then the conversation and the question."""
    messages = [Message("system", INSTRUCTION)]
    for asked, restated in EXAMPLES:
        messages += [Message("user", asked), Message("assistant", restated)]
    told = [f"{turn.role.capitalize()}: {' '.join(turn.content.split())[-TURN_CHARACTERS:]}" for turn in turns]
    return [*messages, Message("user", "\n".join([*told, "", f"Last question: {' '.join(question.split())}"]))]


def begun_by(question: str) -> str:
    """What the restatement begins with: a model that has to ask does not answer. Empty where it may begin anyhow."""
    first = next(iter(text_words(question)), "")
    return first.capitalize() if first in OPENERS else ""


def cleaned(text: str) -> str:
    """What a model wrote, without the label or quotation marks that it may have put around it."""
    return " ".join(_LABEL.sub("", text.strip()).split()).strip(_QUOTES)


def fault(text: str, question: str, history: Sequence[Message]) -> str:
    """Why a restatement of the question cannot be searched for; empty when it can."""
    if not text:
        return "the model wrote nothing"
    if len(split_sentences(text)) > 1 or text.count("?") > 1:
        return "it is more than one question"
    if question.rstrip().endswith("?") and not text.endswith("?"):
        return "it is no question"
    words, own = text_words(text), text_words(question)
    said = [text_words(turn.content) for turn in history if turn.role in ("user", "assistant")]
    if words == own:
        return "it says no more than the question"
    if words in said:
        return "it is an earlier turn"
    stems = _carrying(words)
    if lost := [word for word in own if _carries(word) and stem(word) not in stems]:
        return f"it lost {lost[0]!r}"
    known = _carrying(own).union(*map(_carrying, said))
    if new := [word for word in words if _carries(word) and stem(word) not in known]:
        return f"nobody said {new[0]!r}"
    if stems == _carrying(own):
        return "it says no more than the question"
    asked = [text_words(turn.content) for turn in history if turn.role == "user"]
    if len(words) > len(own) + len(asked[-1] if asked else ()) + LONGER:
        return "it is too long"
    return ""


def _carries(word: str) -> bool:
    return word not in STOPWORDS and word not in POINTING


def _carrying(words: Sequence[str]) -> frozenset[str]:
    return frozenset(stem(word) for word in words if _carries(word))
