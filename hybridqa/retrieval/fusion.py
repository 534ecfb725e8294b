"""Puts what speaks for a passage together into one score.

Knows nothing about where the signals come from. Invariant: of two candidates for one question, the one that has more of
a signal and no less of any other is never behind.

The scores are log-odds: their softmax over a question's candidates is how likely each is to be the one. Fusing ranks
alone loses to the better side wherever the other is weak; `eval/fusion_weights.py` fits the weights and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import log, sqrt

from hybridqa.types import ScoredPassage

K0 = 60  # Cormack, Clarke and Büttcher, SIGIR 2009
LEXICAL_POWER = 0.7  # the best by words is ahead of the next by more than they differ in what they are worth


@dataclass(frozen=True, slots=True)
class FusionWeights:
    """What each signal counts; the defaults are those of eval/results/fusion_weights.json."""

    lexical: float = 4.5  # BM25 as a share of the best candidate's, to `LEXICAL_POWER`
    dense: float = 2.6  # cosine
    nearest: float = 3.6  # cosine as a share of the best candidate's
    title: float = 1.9  # how far the question names the document
    coverage: float = 3.1  # share of the question's words that the passage has

    def scores(self, found: Sequence[ScoredPassage]) -> list[float]:
        """The score of each of a question's candidates, in their order; None counts as nothing."""
        best_lexical = max((scored.lexical or 0.0 for scored in found), default=0.0)
        best_dense = max((scored.dense or 0.0 for scored in found), default=0.0)
        return [
            self.lexical * _share(scored.lexical, best_lexical) ** LEXICAL_POWER
            + self.dense * (scored.dense or 0.0)
            + self.nearest * _share(scored.dense, best_dense)
            + self.title * scored.title
            + self.coverage * scored.coverage
            for scored in found
        ]


def _share(value: float | None, best: float) -> float:
    return max(0.0, value or 0.0) / best if best > 0 else 0.0


def best_first(scored: Iterable[ScoredPassage]) -> list[ScoredPassage]:
    """The passages by score, equal ones by id."""
    return sorted(scored, key=lambda one: (-one.score, one.passage.passage_id))


class TitleMatch:
    """How far a question's words name each of several titles."""

    def __init__(self, titles: Iterable[frozenset[str]]) -> None:
        """`titles` are the words of all candidates' titles: what most of them have tells none from another."""
        different = set(titles)
        counts = Counter(word for title in different for word in title)
        self._weights = {word: log((1 + len(different)) / count) for word, count in counts.items()}

    def score(self, asked: Collection[str], title: frozenset[str]) -> float:
        """0 to 1: all that is the title's own, and hardly another word, gives 1."""
        if not asked:
            return 0.0
        shared = title.intersection(asked)
        return self.share(title, shared) * sqrt(len(shared) / len(asked))

    def share(self, title: frozenset[str], words: Collection[str]) -> float:
        """How much of a title these words of it are, by how rare they are among the titles: 0 to 1."""
        whole = sum(self._weights[word] for word in title)
        return sum(self._weights[word] for word in words) / whole if whole > 0 else 0.0


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[int]], weights: Sequence[float] | None = None, k0: float = K0
) -> list[tuple[int, float]]:
    """Everything ranked with the sum of `weight / (k0 + rank)` over the rankings that hold it, best first.

    Ranks count from 1; an id counts once in a ranking, where it stands first; equal scores go by id. What evaluation
    compares the fusion of scores with.
    """
    if weights is None:
        weights = [1.0] * len(rankings)
    if len(weights) != len(rankings):
        raise ValueError(f"{len(rankings)} rankings need as many weights, not {len(weights)}")
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, item in enumerate(dict.fromkeys(ranking), start=1):
            scores[item] = scores.get(item, 0.0) + weight / (k0 + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
