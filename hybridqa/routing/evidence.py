"""How sure we are, from the passages found, that a question is about certain documents: 0 to 1.

Knows nothing about modules or thresholds. Invariant: it rises with how near the documents' best passage is to the
question and how many of its words that passage has, and with how far both are ahead of every other document's.

The four numbers go into a logistic function. Its weights were fitted (logistic regression, rounded) on questions over
four sets of documents and checked on five others, with the default embedder: `eval/routing_threshold.py` measures what
passes a threshold. The lead over rivals is what tells look-alike documents apart; where there is no rival, an ordinary
stranger's numbers stand in for it, so that a store of one document does not take every question for its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from hybridqa.retrieval.lexical import question_words, stem, text_words
from hybridqa.types import ScoredPassage

COSINE_WEIGHT = 4.0  # of the best cosine
OVERLAP_WEIGHT = 4.0  # of the best share of the question's words
COSINE_LEAD_WEIGHT = 15.0  # of each one's lead over the best of all other documents
OVERLAP_LEAD_WEIGHT = 6.0
BIAS = -6.0
COSINE_LEAD = 0.2  # leads count up to this much, either way
OVERLAP_LEAD = 0.3
STRANGER_COSINE = 0.3  # what a document that has nothing to do with the question may reach
STRANGER_OVERLAP = 0.4
CONSIDERED = 8  # passages, best first


def evidence_for(question: str, passages: Sequence[ScoredPassage], doc_ids: Collection[str]) -> float:
    """The evidence, 0 to 1, that the question is about these documents (together); 0 when none was found.

    `passages` are a search's, best first; all of one collection.
    """
    words = {stem(word) for word in question_words(question)}
    cosine, overlap = 0.0, 0.0
    rival_cosine, rival_overlap = STRANGER_COSINE, STRANGER_OVERLAP
    found = False
    for scored in passages[:CONSIDERED]:
        near, shared = scored.dense or 0.0, _overlap(words, scored)
        if scored.passage.doc_id in doc_ids:
            found = True
            cosine, overlap = max(cosine, near), max(overlap, shared)
        else:
            rival_cosine, rival_overlap = max(rival_cosine, near), max(rival_overlap, shared)
    if not found:
        return 0.0
    return _logistic(
        BIAS
        + COSINE_WEIGHT * cosine
        + OVERLAP_WEIGHT * overlap
        + COSINE_LEAD_WEIGHT * _within(cosine - rival_cosine, COSINE_LEAD)
        + OVERLAP_LEAD_WEIGHT * _within(overlap - rival_overlap, OVERLAP_LEAD)
    )


def document_evidence(question: str, passages: Sequence[ScoredPassage]) -> dict[str, float]:
    """The evidence of every document among the passages."""
    doc_ids = dict.fromkeys(scored.passage.doc_id for scored in passages[:CONSIDERED])
    return {doc_id: evidence_for(question, passages, (doc_id,)) for doc_id in doc_ids}


def _overlap(words: set[str], scored: ScoredPassage) -> float:
    """The share of the question's words that the passage, its title or its heading has."""
    passage = scored.passage
    if not words:
        return 0.0
    own = {stem(word) for word in text_words(f"{passage.title} {passage.heading} {passage.text}")}
    return len(words & own) / len(words)


def _within(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
