"""Means and what chance makes of them: 95% percentile intervals by bootstrap, over documents where there are several.

Questions about one document rise and fall together, so whole documents are drawn, each with all of its questions. Of
few documents a bootstrap promises too much, of two no more than their own two means; `widened` makes up for it. Knows
nothing about what was measured. Invariant: equal values, clusters and seed give equal intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95% interval; `low` and `high` are not a number where there is one cluster alone."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int = 0) -> Interval:
    """The mean of the values; the bootstrap draws clusters (one for each value), or single values without them.

    Raises `ValueError` when there is no value.
    """
    return ratio_interval(values, [1.0] * len(values), clusters, seed=seed)


def paired_difference(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Interval:
    """The mean of `first` minus `second`, both of the same questions in the same order."""
    return mean_interval([one - other for one, other in zip(first, second, strict=True)], clusters, seed=seed)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """The sum of the one over the sum of the other; not a number where the latter is 0, and then no bounds either."""
    if not len(numerators):
        raise ValueError("no values; expected at least one to take the mean of.")
    places_N = _places(clusters, len(numerators))
    above_C = np.bincount(places_N, weights=np.asarray(numerators, dtype=np.float64))
    below_C = np.bincount(places_N, weights=np.asarray(denominators, dtype=np.float64))
    count = len(above_C)
    draws_R_C = np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, count))
    mean = float(_divide(above_C.sum(keepdims=True), below_C.sum(keepdims=True))[0])
    drawn_R = _divide(above_C[draws_R_C].sum(axis=1), below_C[draws_R_C].sum(axis=1))
    if count < 2 or math.isnan(mean) or bool(np.isnan(drawn_R).any()):
        return Interval(mean, math.nan, math.nan)
    low, high = np.percentile(drawn_R, _PERCENTILES)
    return Interval(mean, float(low), float(high))


def statistic_interval(
    statistic: Callable[[npt.NDArray[np.int64]], float],
    count: int,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = 500,
) -> Interval:
    """What a statistic is of `count` values, given by their places; draws clusters as `mean_interval` does.

    Draws for which it is not a number are left out; it may be one of a few places, drawn more than once.
    """
    if not count:
        raise ValueError("no values; expected at least one.")
    places_N = _places(clusters, count)
    members = [np.flatnonzero(places_N == place) for place in range(places_N.max() + 1)]
    value = statistic(np.arange(count))
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(np.concatenate([members[place] for place in rng.integers(0, len(members), size=len(members))]))
        for _ in range(resamples)
    ]
    kept = [one for one in drawn if not math.isnan(one)]
    if len(members) < 2 or math.isnan(value) or not kept:
        return Interval(value, math.nan, math.nan)
    low, high = np.percentile(kept, _PERCENTILES)
    return Interval(value, float(low), float(high))


def widened(interval: Interval, clusters: int) -> Interval:
    """The interval, stretched on both sides as Student's t asks for a mean over so few clusters (2 or more).

    By sqrt(C / (C - 1)) for the spread that a draw of C loses, and by t over the normal quantile: 9.2 times for two
    clusters, 1.6 for five, 1.1 for twenty.
    """
    from scipy.stats import norm, t

    if clusters < 2:
        return interval
    times = math.sqrt(clusters / (clusters - 1)) * t.ppf(0.975, clusters - 1) / norm.ppf(0.975)
    below, above = interval.mean - interval.low, interval.high - interval.mean
    return Interval(interval.mean, float(interval.mean - times * below), float(interval.mean + times * above))


def _places(clusters: Sequence[Hashable] | None, count: int) -> npt.NDArray[np.int64]:
    """Each value's cluster as a number from 0, in the order of their first values."""
    if clusters is None:
        return np.arange(count)
    if len(clusters) != count:
        raise ValueError(f"{len(clusters)} clusters for {count} values; expected one for each.")
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[cluster] for cluster in clusters], dtype=np.int64)


def _divide(above: Floats, below: Floats) -> Floats:
    """Their quotient; not a number where the divisor is 0."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
