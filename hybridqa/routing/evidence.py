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

    bias: float = -4.2
    share: float = 0.67  # log-odds of the documents' share
    cosine: float = 4.8  # of their nearest passage
    coverage: float = 1.2  # the largest share of the question's words in one passage


DEFAULT_WEIGHTS = EvidenceWeights()


def evidence_for(
    passages: Sequence[ScoredPassage], doc_ids: Collection[str], weights: EvidenceWeights = DEFAULT_WEIGHTS
) -> float:
    """The probability that the question is about these documents (together); 0 when none was found.

    `passages` are a search's, best first; all of one collection.
    """
    found = signals(passages, doc_ids)
    if found is None:
        return 0.0
    share, cosine, coverage = found
    value = weights.bias + weights.share * share + weights.cosine * cosine + weights.coverage * coverage
    return 1 / (1 + math.exp(-value))


def signals(passages: Sequence[ScoredPassage], doc_ids: Collection[str]) -> tuple[float, float, float] | None:
    """The log-odds of the documents' share, their best cosine and coverage; None when none was found."""
    highest = max((scored.score for scored in passages), default=0.0)
    whole = math.exp(STRANGER - max(highest, STRANGER))
    part, cosine, coverage, found = 0.0, 0.0, 0.0, False
    for scored in passages:
        odds = math.exp(scored.score - max(highest, STRANGER))
        whole += odds
        owners = {scored.passage.doc_id, *(other.doc_id for other in scored.also)}  # a text may stand in several
        if mine := owners.intersection(doc_ids):
            found = True
            part += odds * len(mine) / len(owners)
            cosine, coverage = max(cosine, scored.dense or 0.0), max(coverage, scored.coverage)
    if not found:
        return None
    share = min(1 - LEAST_SHARE, max(LEAST_SHARE, part / whole))
    return math.log(share / (1 - share)), cosine, coverage


def document_evidence(passages: Sequence[ScoredPassage]) -> dict[str, float]:
    """The evidence of every document among the passages, strongest first."""
    doc_ids = dict.fromkeys(
        doc_id for scored in passages for doc_id in (scored.passage.doc_id, *(other.doc_id for other in scored.also))
    )
    found = {doc_id: evidence_for(passages, (doc_id,)) for doc_id in doc_ids}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
