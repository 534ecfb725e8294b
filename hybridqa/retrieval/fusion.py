"""Puts rankings of the same things together.

Knows nothing about what is ranked. Invariant: the result depends on ranks and weights alone, never on raw scores, and
equal inputs give equal order.
"""

from __future__ import annotations

from collections.abc import Sequence

K0 = 60  # Cormack, Clarke and Büttcher, SIGIR 2009


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[int]], weights: Sequence[float] | None = None, k0: float = K0
) -> list[tuple[int, float]]:
    """Everything ranked with the sum of `weight / (k0 + rank)` over the rankings that hold it, best first.

    Ranks count from 1; an id counts once in a ranking, where it stands first; equal scores go by id.
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
