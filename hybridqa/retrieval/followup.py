"""What a question of a conversation is searched with: itself, and the question before it as far as it leans on that.

Knows nothing about engines. Invariant: the question's own words always count most, so that what was said before can
tip the balance and never takes over.

Searching for the conversation instead of the question loses more than it finds wherever the talk moves on: its finds
count beside the question's, `LEANING` as much where the question cannot stand alone and `STANDING` where it can. Both
were measured on conversations (eval/README.md). Where the question has been restated, that is searched for instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from hybridqa.retrieval.lexical import STOPWORDS, text_words
from hybridqa.retrieval.searcher import Query
from hybridqa.types import Message

LEANING = 0.5
STANDING = 0.15
RESTATED = 1.0  # of the question as it would be asked without the conversation: as much as of the one that was asked
FEWEST_WORDS = 3  # that carry meaning, of a question that can stand alone
LONGEST = 600  # characters of the question before it
POINTING = frozenset(
    "it its he him his she her hers they them their theirs this that these those there one ones such same other others "
    "another else former latter".split()
)
_OPENINGS = (("what", "about"), ("how", "about"), ("and",), ("but",), ("so",), ("or",), ("also",), ("then",))


def leans(question: str) -> bool:
    """Whether the question needs what was said before: it points at something, goes on with it, or says too little.

    English words are known; a question in another language leans where it is short.
    """
    words = text_words(question)
    carrying = [word for word in words if word not in STOPWORDS]
    opening = any(tuple(words[: len(start)]) == start for start in _OPENINGS)
    return opening or len(carrying) < FEWEST_WORDS or not POINTING.isdisjoint(words)


def beside(question: str, history: Sequence[Message], restated: str = "") -> tuple[Query, ...]:
    """What is searched for beside the question: it restated, or else the user's turn before it with it."""
    if restated.strip():
        return (Query(restated.strip(), RESTATED),)
    before = next((turn.content for turn in reversed(history) if turn.role == "user" and turn.content.strip()), None)
    if before is None:
        return ()
    return (Query(f"{before.strip()[-LONGEST:]} {question}", LEANING if leans(question) else STANDING),)
