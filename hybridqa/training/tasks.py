"""What a generator is asked to write about a document, each request as a text to continue and as a conversation.

Knows nothing about who writes. Invariant: both forms of a request ask for the same thing, and show the same source.
"""

from __future__ import annotations

from hybridqa.training.facts import Fact
from hybridqa.training.generator import Prompt
from hybridqa.types import Message

QUESTION_TOKENS = 40
SUMMARY_TOKENS = 64
RESTATEMENT_TOKENS = 200
_EXAMPLES = (
    ("The Harlow Bridge was opened in 1931 by the engineer Anna Voss.", "1931", "When was the Harlow Bridge opened?"),
    ("The museum in Tarn keeps 4,000 clay lamps.", "clay lamps", "What does the museum in Tarn keep?"),
    ("Because the pump failed, the greenhouse lost power.", "the pump failed", "Why did the greenhouse lose power?"),
    ("Members of the Brookline club pay 45 euros a year.", "45 euros", "How much do members of the club pay?"),
)
_SELF_CONTAINED = (
    "Whoever reads it has not seen the text: name what it is about, and do not mention a text, passage or document."
)


def question_task(title: str, chunk: str, fact: Fact) -> Prompt:
    """Asks for a question that a fact's phrase answers."""
    shown = "\n\n".join(f"Text: {text}\nAnswer: {answer}\nQuestion: {question}" for text, answer, question in _EXAMPLES)
    task = (
        "Write one question that a curious person could ask, in plain words of your own, whose only right answer is "
        f"the given one. {_SELF_CONTAINED} Do not use the answer's words. Reply with the question alone."
    )
    source = f"{title}\n\n{chunk}".strip()
    asked = f"{source}\n\nThe question is about this sentence: {fact.sentence}\nAnswer: {fact.phrase}"
    return Prompt(
        f"{shown}\n\nText: {fact.sentence}\nAnswer: {fact.phrase}\nQuestion:", _conversation(task, asked), "\n"
    )


def summary_task(title: str, chunk: str) -> Prompt:
    """Asks for a summary of a chunk.

    The text ends with the empty line that a model would write first, at which the continuation would be stopped.
    """
    source = f"{title}\n\n{chunk}".strip()
    task = (
        "Summarise the text in two sentences. Keep its names and numbers, and add nothing that it does not say. "
        f"{_SELF_CONTAINED}"
    )
    return Prompt(f"{source}\n\nSummary of the text above in two sentences:\n\n", _conversation(task, source), "\n\n")


def restatement_task(title: str, chunk: str) -> Prompt:
    """Asks for a chunk's facts in other words."""
    source = f"{title}\n\n{chunk}".strip()
    task = (
        "Say all that the text says once more, in other words and another order, as one paragraph of short sentences "
        f"that each name what they are about. Keep every name and number. {_SELF_CONTAINED}"
    )
    return Prompt(f"{source}\n\nThe same facts in other words:\n\n", _conversation(task, source), "\n\n")


def _conversation(task: str, source: str) -> tuple[Message, ...]:
    return (Message("system", task), Message("user", source))
