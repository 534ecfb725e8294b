"""What several modules count in one stack."""

from __future__ import annotations

import pytest

from hybridqa.routing.shares import scaled, share_of, shares_of


def test_one_counts_whole_and_several_count_less_each_and_more_together() -> None:
    shares = [share_of(count) for count in range(1, 9)]
    assert shares[0] == 1.0 and shares[3] == 0.5
    assert shares == sorted(shares, reverse=True)
    totals = [share * count for count, share in enumerate(shares, 1)]
    assert totals == sorted(totals)
    assert sum(share**2 for share in [share_of(7)] * 7) == pytest.approx(1.0)


def test_the_likeliest_leads_and_the_others_count_in_few_steps() -> None:
    assert shares_of([]) == ()
    assert shares_of([0.2]) == (1.0,)
    assert shares_of([0.4, 0.4, 0.4, 0.4]) == (0.5,) * 4
    lead, half = shares_of([0.9, 0.5])
    assert half / lead == pytest.approx(0.5)
    small, most, none = shares_of([0.2, 0.9, 0.0])
    assert small == none == pytest.approx(most / 4)
    assert sum(share**2 for share in (small, most, none)) == pytest.approx(1.0)
    assert len({shares_of([1.0, evidence / 100]) for evidence in range(101)}) == 3


def test_where_nothing_speaks_for_any_of_them_none_leads() -> None:
    assert shares_of([0.0, 0.0]) == (share_of(2),) * 2


def test_weights_by_layer_are_scaled_layer_by_layer() -> None:
    weights = {"layers.0.q_proj": 0.5, "layers.1.q_proj": -2.0}
    assert scaled(weights, 0.5) == {"layers.0.q_proj": 0.25, "layers.1.q_proj": -1.0}
    assert scaled(weights, 1.0) is weights
    assert scaled(3.0, 0.5) == 1.5
