"""The bootstrap over documents: what it must cover, and what it must see through."""

from __future__ import annotations

import math
import random

import pytest

from hybridqa.evaluation.statistics import mean_interval, paired_difference, ratio_interval, widened


def draw(rng: random.Random, documents: int, questions: int) -> tuple[list[float], list[int]]:
    """Questions whose scores hang mostly on their document; the mean over all is 0."""
    values, clusters = [], []
    for document in range(documents):
        level = rng.gauss(0, 1)
        for _ in range(questions):
            values.append(level + rng.gauss(0, 0.3))
            clusters.append(document)
    return values, clusters


def test_the_interval_covers_the_mean_when_documents_differ() -> None:
    rng = random.Random(0)
    covered = naive = 0
    for trial in range(150):
        values, clusters = draw(rng, 25, 8)
        interval = mean_interval(values, clusters, seed=trial)
        covered += interval.low <= 0 <= interval.high
        single = mean_interval(values, seed=trial)
        naive += single.low <= 0 <= single.high
    assert 130 <= covered <= 149  # of 150: about 93%, as a percentile bootstrap over 25 has it
    assert naive < 100  # questions drawn one by one promise far too much


@pytest.mark.parametrize("documents", [2, 3, 5, 8])
def test_over_few_documents_a_widened_interval_promises_no_more_than_it_keeps(documents: int) -> None:
    rng = random.Random(documents)
    covered = plain = 0
    for trial in range(300):
        values, clusters = draw(rng, documents, 6)
        narrow = mean_interval(values, clusters, seed=trial)
        wide = widened(narrow, documents)
        plain += narrow.low <= 0 <= narrow.high
        covered += wide.low <= 0 <= wide.high
        assert wide.mean == narrow.mean and wide.low <= narrow.low <= narrow.high <= wide.high
    assert covered >= 0.9 * 300
    assert plain <= covered - 9
    alone = mean_interval([0.0, 1.0], ["a", "a"])
    assert math.isnan(widened(alone, 1).low)


def test_one_question_a_document_is_the_plain_bootstrap() -> None:
    rng = random.Random(1)
    values = [rng.gauss(0, 1) for _ in range(40)]
    assert mean_interval(values, range(40), seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_the_mean_is_over_questions_and_order_does_not_matter() -> None:
    values, clusters = [1.0, 1.0, 1.0, 0.0], ["long", "long", "long", "short"]
    assert mean_interval(values, clusters).mean == 0.75
    interval = mean_interval(values, clusters)
    assert (interval.low, interval.high) == (0.0, 1.0)
    mixed = mean_interval([1.0, 0.0, 1.0, 1.0], ["long", "short", "long", "long"])
    assert mixed == interval


def test_a_paired_difference_takes_out_what_both_share() -> None:
    rng = random.Random(5)
    values, clusters = draw(rng, 20, 5)
    better = [value + 0.2 + rng.gauss(0, 0.05) for value in values]
    interval = paired_difference(better, values, clusters)
    assert 0.15 < interval.low < interval.mean < interval.high < 0.25
    apart = mean_interval(better, clusters)
    assert apart.high - apart.low > 5 * (interval.high - interval.low)
    with pytest.raises(ValueError):
        paired_difference([1.0], [1.0, 2.0])


def test_a_ratio_is_of_sums() -> None:
    interval = ratio_interval([1.0, 3.0, 2.0, 6.0], [2.0, 6.0, 4.0, 12.0], ["a", "a", "b", "b"])
    assert interval.mean == interval.low == interval.high == 0.5
    assert math.isnan(ratio_interval([1.0, 1.0], [0.0, 0.0]).mean)
    unsure = ratio_interval([1.0, 1.0], [1.0, 0.0])  # some draws have nothing to divide by
    assert unsure.mean == 2 and math.isnan(unsure.low)


def test_one_document_has_no_interval_and_no_value_is_an_error() -> None:
    alone = mean_interval([0.0, 1.0], ["a", "a"])
    assert alone.mean == 0.5 and math.isnan(alone.low) and math.isnan(alone.high)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
    with pytest.raises(ValueError, match="1 clusters for 2 values"):
        mean_interval([0.0, 1.0], ["a"])
