"""How sure we are, from the passages found, that a question is about certain documents: a probability, 0 to 1.

Knows nothing about modules or thresholds. Invariant: it rises with the documents' share of what was found, with how
near their best passage is to the question, and with how many of its words that passage has.

Three numbers go into a logistic function. The share is that of the softmax over the candidates' scores, which are
log-odds, with a stranger among them: the score that passages about nothing of the kind reach. Without it a store of one
document would take every question for its own. The weights were fitted on questions about documents that were there,
that had been removed, and of other collections (`eval/evidence_weights.py`); on collections that the fit had not seen
they are calibrated to some .07 (eval/results/evidence_weights.json).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hybridqa.types import ScoredPassage

STRANGER = 8.0  # the score that stands for all that is not there
LEAST_SHARE = 1e-4  # shares are taken to be within this of 0 and 1


@dataclass(frozen=True, slots=True)
class EvidenceWeights:
    """What each of the three numbers counts; the defaults are those of eval/results/evidence_weights.json."""

    bias: float = -4.36
    share: float = 0.65  # log-odds of the documents' share
    cosine: float = 5.0  # of their nearest passage
    coverage: float = 1.2  # the largest share of the question's words in one passage


@dataclass(slots=True)
class _Found:
    """What was found of one document."""

    share: float = 0.0
    cosine: float = 0.0
    coverage: float = 0.0


class DocumentEvidence:
    """What the passages of a search say of each document; they are best first, and all of one collection."""

    def __init__(self, passages: Sequence[ScoredPassage], weights: EvidenceWeights | None = None) -> None:
        self._weights = weights or EvidenceWeights()
        self._found: dict[str, _Found] = {}
        highest = max([STRANGER, *(scored.score for scored in passages)])
        odds = [math.exp(scored.score - highest) for scored in passages]
        whole = sum(odds) + math.exp(STRANGER - highest)
        for scored, own in zip(passages, odds, strict=True):
            # a text may stand in several documents
            owners = dict.fromkeys((scored.passage.doc_id, *(other.doc_id for other in scored.also)))
            for doc_id in owners:
                one = self._found.setdefault(doc_id, _Found())
                one.share += own / whole / len(owners)
                one.cosine = max(one.cosine, scored.dense or 0.0)
                one.coverage = max(one.coverage, scored.coverage)

    def about(self, doc_ids: Iterable[str]) -> float:
        """The probability that the question is about these documents (together); 0 when none was found."""
        known = self.signals(doc_ids)
        if known is None:
            return 0.0
        share, cosine, coverage = known
        weights = self._weights
        value = weights.bias + weights.share * share + weights.cosine * cosine + weights.coverage * coverage
        return 1 / (1 + math.exp(-value))

    def signals(self, doc_ids: Iterable[str]) -> tuple[float, float, float] | None:
        """The log-odds of the documents' share, their best cosine and coverage; None when none was found."""
        known = [self._found[doc_id] for doc_id in doc_ids if doc_id in self._found]
        if not known:
            return None
        share = min(1 - LEAST_SHARE, max(LEAST_SHARE, sum(one.share for one in known)))
        return (
            math.log(share / (1 - share)),
            max(one.cosine for one in known),
            max(one.coverage for one in known),
        )

    def of_each(self) -> dict[str, float]:
        """The evidence of every document among the passages, strongest first."""
        each = {doc_id: self.about((doc_id,)) for doc_id in self._found}
        return dict(sorted(each.items(), key=lambda pair: -pair[1]))
