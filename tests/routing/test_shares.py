"""What several modules count in one stack."""

from __future__ import annotations

import pytest

from hybridqa.routing.shares import scaled, share_of


def test_one_counts_whole_and_several_count_less_each_and_more_together() -> None:
    shares = [share_of(count) for count in range(1, 9)]
    assert shares[0] == 1.0 and shares[3] == 0.5
    assert shares == sorted(shares, reverse=True)
    totals = [share * count for count, share in enumerate(shares, 1)]
    assert totals == sorted(totals)
    assert sum(share**2 for share in [share_of(7)] * 7) == pytest.approx(1.0)


def test_weights_by_layer_are_scaled_layer_by_layer() -> None:
    weights = {"layers.0.q_proj": 0.5, "layers.1.q_proj": -2.0}
    assert scaled(weights, 0.5) == {"layers.0.q_proj": 0.25, "layers.1.q_proj": -1.0}
    assert scaled(weights, 1.0) is weights
    assert scaled(3.0, 0.5) == 1.5
