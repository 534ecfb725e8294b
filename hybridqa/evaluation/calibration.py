"""How far probabilities keep what they promise, and how well they tell right from wrong.

Knows nothing about where they come from. Invariant: every number is of outcomes that are 0 or 1.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

BINS = 10  # of equal width
Floats = npt.NDArray[np.float64]


def reliability(said_N: Floats, was_N: Floats) -> list[dict[str, float]]:
    """For each bin that holds any: how many, what was said on average, and how often it was so."""
    bins_N = np.clip((said_N * BINS).astype(int), 0, BINS - 1)
    return [
        {"count": int((bins_N == place).sum()), "said": float(said_N[bins_N == place].mean()), "was": float(was)}
        for place in range(BINS)
        if (bins_N == place).any()
        for was in [was_N[bins_N == place].mean()]
    ]


def expected_calibration_error(said_N: Floats, was_N: Floats) -> float:
    """The mean distance between what was said and how often it was so, over the bins by their size."""
    return sum(one["count"] * abs(one["said"] - one["was"]) for one in reliability(said_N, was_N)) / len(said_N)


def brier(said_N: Floats, was_N: Floats) -> float:
    """The mean squared error of the probabilities."""
    return float(((said_N - was_N) ** 2).mean())


def area_under_roc(said_N: Floats, was_N: Floats) -> float:
    """How often a right one is said to be likelier than a wrong one; not a number where there is none of either."""
    from scipy.stats import rankdata

    right = float(was_N.sum())
    wrong = len(was_N) - right
    if not right or not wrong:
        return math.nan
    ranks_N = rankdata(said_N)
    return float((ranks_N[was_N > 0].sum() - right * (right + 1) / 2) / (right * wrong))


def risk_coverage(said_N: Floats, was_N: Floats) -> tuple[Floats, Floats]:
    """Answering the surest first: the share that is answered, and the share of those that is wrong, at each step."""
    order_N = np.argsort(-said_N, kind="stable")
    counts_N = np.arange(1, len(said_N) + 1)
    return counts_N / len(said_N), np.cumsum(1 - was_N[order_N]) / counts_N


def area_under_risk_coverage(said_N: Floats, was_N: Floats) -> float:
    """The mean share of wrong answers over all coverages; lower is better. Equal probabilities count as their mean."""
    order_N = np.argsort(-said_N, kind="stable")
    said_N, wrong_N = said_N[order_N], 1.0 - was_N[order_N]
    _, starts, counts = np.unique(-said_N, return_index=True, return_counts=True)
    for start, count in zip(starts, counts, strict=True):  # the order of equals must not count
        wrong_N[start : start + count] = wrong_N[start : start + count].mean()
    return float((np.cumsum(wrong_N) / np.arange(1, len(wrong_N) + 1)).mean())
