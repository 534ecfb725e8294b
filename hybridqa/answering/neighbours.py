"""Widens the passages of a prompt by those that stand beside them in their documents.

Knows nothing about tokens or models. Invariant: a widened passage is one stretch of its document, with the passage that
was found in it, and shares no text with any other of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hybridqa.catalog import Catalog
from hybridqa.types import Passage, ScoredPassage


class Neighbours:
    """Widens by up to `count` passages on each side."""

    def __init__(self, catalog: Catalog, count: int) -> None:
        self._catalog = catalog
        self._count = count

    def wider(self, scored: ScoredPassage, others: Sequence[ScoredPassage]) -> ScoredPassage:
        """The passage with its neighbours, up to where one of `others` begins or ends.

        As it is where it has none, or its document has changed since it was found.
        """
        passage = scored.passage
        if not self._count:
            return scored
        near = self._catalog.passages_near(passage, self._count)
        taken = [other.passage for other in others if other.passage.doc_id == passage.doc_id]
        before = _free([one for one in reversed(near) if one.ordinal < passage.ordinal], taken)
        after = _free([one for one in near if one.ordinal > passage.ordinal], taken)
        start = min((passage.start, *(one.start for one in before)))
        end = max((passage.end, *(one.end for one in after)))
        text = self._catalog.text_between(passage.collection, passage.doc_id, start, end)
        if text[passage.start - start : passage.end - start] != passage.text or len(text) != end - start:
            return scored
        return replace(scored, passage=replace(passage, start=start, end=end, text=text))


def _free(passages: Sequence[Passage], taken: Sequence[Passage]) -> list[Passage]:
    """The passages, nearest first, up to the first that has text in common with one of `taken`."""
    found: list[Passage] = []
    for passage in passages:
        if any(other.start < passage.end and passage.start < other.end for other in taken):
            break
        found.append(passage)
    return found
