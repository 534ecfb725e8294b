"""Calibration against numbers worked out by hand, and against scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from hybridqa.evaluation.calibration import (
    area_under_risk_coverage,
    area_under_roc,
    brier,
    expected_calibration_error,
    reliability,
    risk_coverage,
)
from hybridqa.evaluation.statistics import statistic_interval

SAID = np.array([0.1, 0.15, 0.9, 0.95])
WAS = np.array([0.0, 1.0, 1.0, 1.0])


def test_reliability_is_the_bins_that_hold_any() -> None:
    first, last = reliability(SAID, WAS)
    assert (first["count"], first["said"], first["was"]) == (2, pytest.approx(0.125), 0.5)
    assert (last["count"], last["said"], last["was"]) == (2, pytest.approx(0.925), 1.0)
    assert expected_calibration_error(SAID, WAS) == pytest.approx((0.375 + 0.075) / 2)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0


def test_risk_falls_where_the_sure_are_right() -> None:
    coverage, risk = risk_coverage(SAID, WAS)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == [0, 0, 0, 0.25]
    assert area_under_risk_coverage(SAID, WAS) == pytest.approx(0.0625)
    assert area_under_risk_coverage(-SAID, WAS) > area_under_risk_coverage(SAID, WAS)


def test_the_order_of_equals_does_not_count() -> None:
    same = np.full(4, 0.5)
    assert area_under_risk_coverage(same, WAS) == pytest.approx(0.25) == area_under_risk_coverage(same, WAS[::-1])


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.2, 0.7, 1.0]), st.booleans()), min_size=1, max_size=40))
def test_agrees_with_scikit_learn(rows: list[tuple[float, bool]]) -> None:
    said, was = np.array([row[0] for row in rows]), np.array([float(row[1]) for row in rows])
    assert brier(said, was) == pytest.approx(
        brier_score_loss(was, said, pos_label=1) if len(set(was)) > 1 else brier(said, was)
    )
    if len(set(was)) > 1:
        assert area_under_roc(said, was) == pytest.approx(roc_auc_score(was, said))
    else:
        assert math.isnan(area_under_roc(said, was))


def test_an_interval_of_any_statistic_draws_clusters() -> None:
    values = np.array([0.0, 0.0, 1.0, 1.0])
    found = statistic_interval(lambda places: float(values[places].mean()), 4, ["a", "a", "b", "b"], seed=1)
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    alone = statistic_interval(lambda places: float(values[places].mean()), 4, ["a"] * 4)
    assert alone.mean == 0.5 and math.isnan(alone.low)
    with pytest.raises(ValueError, match="no values"):
        statistic_interval(lambda places: 0.0, 0)
