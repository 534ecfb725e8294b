"""Fusion of scores by what it promises, and of ranks against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridqa.retrieval.fusion import FusionWeights, TitleMatch, best_first, reciprocal_rank_fusion
from hybridqa.types import Passage, ScoredPassage


def candidate(number: int, dense: float | None, lexical: float | None, coverage: float, title: float) -> ScoredPassage:
    return ScoredPassage(Passage(number, f"d{number}", "c", 0, 0, 0, ""), 0.0, dense, lexical, coverage, title)


def fused(found: list[ScoredPassage], weights: FusionWeights) -> list[ScoredPassage]:
    """The candidates with their scores, best first."""
    return best_first(replace(one, score=score) for one, score in zip(found, weights.scores(found), strict=True))


SHARE = st.floats(0, 1)
CANDIDATES = st.lists(
    st.tuples(st.none() | st.floats(-1, 1), st.none() | st.floats(0, 40), SHARE, SHARE), min_size=2, max_size=8
)


@given(CANDIDATES)
def test_who_has_more_of_a_signal_and_no_less_of_any_is_never_behind(rows: list[tuple[float | None, ...]]) -> None:
    ranked = fused([candidate(number, *row) for number, row in enumerate(rows)], FusionWeights())  # type: ignore[arg-type]
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    for place, ahead in enumerate(ranked):
        for behind in ranked[place + 1 :]:
            mine, theirs = signals(ahead), signals(behind)
            assert not all(one <= other for one, other in zip(mine, theirs, strict=True)) or ahead.score == behind.score


def signals(scored: ScoredPassage) -> tuple[float, float, float, float]:
    return scored.dense or 0.0, scored.lexical or 0.0, scored.coverage, scored.title


def test_equal_candidates_go_by_id_and_nothing_gives_nothing() -> None:
    alike = [candidate(number, 0.5, 3.0, 0.5, 0.0) for number in (9, 4, 7)]
    assert [one.passage.passage_id for one in fused(alike, FusionWeights())] == [4, 7, 9]
    assert fused([], FusionWeights()) == []


def test_each_weight_counts_its_own_signal() -> None:
    rivals = [candidate(1, 0.9, None, 0.0, 0.0), candidate(2, 0.1, 9.0, 0.0, 0.0), candidate(3, 0.1, None, 1.0, 0.0)]
    rivals.append(candidate(4, 0.1, None, 0.0, 1.0))
    for first, only in enumerate(("dense", "lexical", "coverage", "title"), 1):
        weights = FusionWeights(
            **(dict.fromkeys(("lexical", "dense", "nearest", "title", "coverage"), 0.0) | {only: 1.0})
        )
        assert fused(rivals, weights)[0].passage.passage_id == first


def test_a_title_is_named_by_all_of_its_words_and_no_others() -> None:
    kettle, museum = frozenset(("lumen", "kettl")), frozenset(("veldmoor", "museum"))
    titles = TitleMatch([kettle, museum, kettle])
    assert titles.score({"lumen", "kettl"}, kettle) == 1
    whole, part = titles.score({"lumen", "kettl", "cost"}, kettle), titles.score({"lumen"}, kettle)
    assert 0 < part < 1 and 0 < whole < 1
    assert titles.score({"cost"}, kettle) == titles.score(set(), kettle) == titles.score({"cost"}, frozenset()) == 0


def test_words_that_all_titles_have_name_none() -> None:
    titles = [frozenset(("privacy", "policy", site)) for site in ("alder", "birch", "cedar", "dogwood")]
    match = TitleMatch(titles)
    asked = {"privacy", "policy", "birch", "keep"}
    named, other = match.score(asked, titles[1]), match.score(asked, titles[0])
    assert named > 3 * other
    one_document = TitleMatch(titles[:1] * 3)
    assert one_document.score({"alder", "privacy", "policy"}, titles[0]) == 1


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
