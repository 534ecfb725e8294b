"""Reciprocal rank fusion against numbers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridqa.retrieval.fusion import reciprocal_rank_fusion


def test_scores_are_the_sums_worked_out_by_hand() -> None:
    fused = reciprocal_rank_fusion([[7, 8, 9], [9, 7]], k0=60)
    assert fused == [
        (7, pytest.approx(1 / 61 + 1 / 62)),
        (9, pytest.approx(1 / 63 + 1 / 61)),
        (8, pytest.approx(1 / 62)),
    ]


def test_weights_scale_a_ranking() -> None:
    assert reciprocal_rank_fusion([[1], [2]], [1.0, 3.0], k0=1) == [(2, 1.5), (1, 0.5)]


def test_a_repeated_id_counts_once_where_it_stands_first_and_ties_go_by_id() -> None:
    assert reciprocal_rank_fusion([[5, 5, 4], [4, 5]], k0=0) == [(4, 1.5), (5, 1.5)]


def test_nothing_ranked_gives_nothing() -> None:
    assert reciprocal_rank_fusion([]) == []
    assert reciprocal_rank_fusion([[], []]) == []


def test_wrong_number_of_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="as many weights"):
        reciprocal_rank_fusion([[1]], [1.0, 1.0])


@given(st.lists(st.lists(st.integers(0, 20), unique=True, max_size=10), max_size=4))
def test_agrees_with_the_definition(rankings: list[list[int]]) -> None:
    fused = reciprocal_rank_fusion(rankings)
    assert {item for item, _ in fused} == {item for ranking in rankings for item in ranking}
    for item, score in fused:
        assert score == pytest.approx(sum(1 / (61 + ranking.index(item)) for ranking in rankings if item in ranking))
    assert fused == sorted(fused, key=lambda pair: (-pair[1], pair[0]))
