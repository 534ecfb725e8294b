"""Tells passages that say the same, so that a prompt holds what they say once.

Knows nothing about scores. Invariant: only case, punctuation, white space and articles may differ between passages that
are taken for the same. One other word can turn a fact round, and two versions of a document are a conflict to be seen.
"""

from __future__ import annotations

from hybridqa.retrieval.lexical import text_words

_ARTICLES = frozenset(("a", "an", "the"))


class Repetitions:
    """The passages that were taken, asked whether a further one says anything else."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, ...], int] = {}

    def same_as(self, passage_id: int, text: str) -> int | None:
        """The passage taken before that says the same as this one; when there is none, this one is taken."""
        words = tuple(word for word in text_words(text) if word not in _ARTICLES)
        known = self._taken.setdefault(words, passage_id)
        return None if known == passage_id else known
