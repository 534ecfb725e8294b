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
from collections.abc import Collection, Sequence
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


DEFAULT_WEIGHTS = EvidenceWeights()


def evidence_for(
    passages: Sequence[ScoredPassage], doc_ids: Collection[str], weights: EvidenceWeights = DEFAULT_WEIGHTS
) -> float:
    """The probability that the question is about these documents (together); 0 when none was found.

    `passages` are a search's, best first; all of one collection.
    """
    found = signals(passages, doc_ids)
    return 0.0 if found is None else _probability(found, weights)


def signals(passages: Sequence[ScoredPassage], doc_ids: Collection[str]) -> tuple[float, float, float] | None:
    """The log-odds of the documents' share, their best cosine and coverage; None when none was found."""
    known = [one for doc_id, one in _by_document(passages).items() if doc_id in doc_ids]
    if not known:
        return None
    share = sum(one.share for one in known)
    return _log_odds(share), max(one.cosine for one in known), max(one.coverage for one in known)


def document_evidence(passages: Sequence[ScoredPassage]) -> dict[str, float]:
    """The evidence of every document among the passages, strongest first."""
    found = {
        doc_id: _probability((_log_odds(one.share), one.cosine, one.coverage), DEFAULT_WEIGHTS)
        for doc_id, one in _by_document(passages).items()
    }
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


@dataclass(slots=True)
class _Found:
    """What was found of one document."""

    share: float = 0.0
    cosine: float = 0.0
    coverage: float = 0.0


def _by_document(passages: Sequence[ScoredPassage]) -> dict[str, _Found]:
    highest = max((scored.score for scored in passages), default=0.0)
    highest = max(highest, STRANGER)
    odds = [math.exp(scored.score - highest) for scored in passages]
    whole = sum(odds) + math.exp(STRANGER - highest)
    found: dict[str, _Found] = {}
    for scored, own in zip(passages, odds, strict=True):
        # a text may stand in several documents
        owners = dict.fromkeys((scored.passage.doc_id, *(other.doc_id for other in scored.also)))
        for doc_id in owners:
            one = found.setdefault(doc_id, _Found())
            one.share += own / whole / len(owners)
            one.cosine = max(one.cosine, scored.dense or 0.0)
            one.coverage = max(one.coverage, scored.coverage)
    return found


def _log_odds(share: float) -> float:
    share = min(1 - LEAST_SHARE, max(LEAST_SHARE, share))
    return math.log(share / (1 - share))


def _probability(found: tuple[float, float, float], weights: EvidenceWeights) -> float:
    share, cosine, coverage = found
    value = weights.bias + weights.share * share + weights.cosine * cosine + weights.coverage * coverage
    return 1 / (1 + math.exp(-value))
