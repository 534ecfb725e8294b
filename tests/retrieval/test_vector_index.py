"""Vectors in lists against the same vectors compared one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridqa.retrieval import lists, vector_index
from hybridqa.retrieval.vector_index import VectorIndex

DIMENSION = 16


def clustered(count: int, seed: int = 0, directions: int = 20) -> np.ndarray:
    """Unit vectors around a few directions."""
    rng = np.random.default_rng(seed)
    centres_N_D = np.random.default_rng(99).standard_normal((directions, DIMENSION))
    vectors_N_D = centres_N_D[rng.integers(0, directions, count)] + 0.4 * rng.standard_normal((count, DIMENSION))
    return (vectors_N_D / np.linalg.norm(vectors_N_D, axis=1, keepdims=True)).astype(np.float32)


def pair(count: int, seed: int = 0) -> tuple[VectorIndex, VectorIndex]:
    """The same vectors compared one by one, and in lists."""
    exact = VectorIndex.empty(DIMENSION)
    exact.add(np.arange(count) * 3 + 7, clustered(count, seed))
    listed = exact.renewed(1)
    assert exact.is_exact and not listed.is_exact
    return exact, listed


def recall(exact: VectorIndex, listed: VectorIndex, k: int, only: np.ndarray | None = None) -> float:
    """Over questions near the vectors."""
    shares = []
    for query_D in clustered(100, seed=5):
        truth = exact.search(query_D[None], k, only)
        found = listed.search(query_D[None], k, only)
        assert len(found) == len(truth)
        scores = dict(exact.search(query_D[None], len(exact), only))
        assert [score for _, score in found] == pytest.approx([scores[i] for i, _ in found], abs=1e-5)
        shares.append(len({i for i, _ in found} & {i for i, _ in truth}) / max(1, len(truth)))
    return float(np.mean(shares))


def test_the_training_says_what_the_search_does() -> None:
    exact, listed = pair(3_000)
    training = listed.training
    assert training is not None and training.vectors == 3_000 and training.questions == lists.QUESTIONS
    assert 0 < training.nprobe < training.nlist
    assert lists.RECALL <= training.recall_low <= training.recall
    assert recall(exact, listed, 10) > 0.98


def test_lists_keep_their_recall_when_vectors_come_and_go() -> None:
    exact, listed = pair(2_000)
    gone = exact.ids[::5]
    for index in (exact, listed):
        index.remove(gone)
        index.add(np.arange(10_000, 10_300), clustered(300, seed=3))
    assert listed.changed == 700 and len(listed) == len(exact) == 1_900
    np.testing.assert_array_equal(listed.ids, exact.ids)
    np.testing.assert_array_equal(listed.vectors(exact.ids), exact.vectors(exact.ids))
    assert listed.known(np.array([gone[0], 10_000])).tolist() == [10_000]
    assert recall(exact, listed, 10) > 0.97


@pytest.mark.parametrize("passing", [0.5, 0.1, 0.01, 0.002])
def test_a_filter_costs_no_recall(passing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_index, "ALL_OF", 0)
    exact, listed = pair(3_000)
    chosen = np.random.default_rng(1).choice(exact.ids, int(passing * 3_000), replace=False)
    assert recall(exact, listed, 10, np.sort(chosen)) > 0.98


def test_a_filter_that_passes_what_is_far_from_the_question_is_no_dead_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hardest there is: only the third of all vectors that is farthest from the question passes."""
    monkeypatch.setattr(vector_index, "ALL_OF", 0)
    exact, listed = pair(3_000)
    shares = []
    for query_D in clustered(50, seed=8):
        far = np.sort(exact.ids[np.argsort(exact.vectors(exact.ids) @ query_D)[:1_000]])
        truth, found = exact.search(query_D[None], 10, far), listed.search(query_D[None], 10, far)
        shares.append(len({i for i, _ in truth} & {i for i, _ in found}) / 10)
    assert np.mean(shares) > 0.85


def test_more_may_be_asked_for_than_the_lists_that_are_searched_hold() -> None:
    exact, listed = pair(1_000)
    query_1_D = clustered(1, seed=8)
    for k in (1, 10, 100, 999, 1_000, 5_000):
        assert len(listed.search(query_1_D, k)) == min(k, 1_000)
    assert {i for i, _ in listed.search(query_1_D, 1_000)} == set(exact.ids.tolist())
    assert listed.search(query_1_D, 0) == []
    assert listed.search(query_1_D, 3, np.empty(0, np.int64)) == []
    assert listed.search(query_1_D, 3, np.array([1, 2])) == []  # ids that are not there


def test_vectors_without_any_order_are_compared_one_by_one() -> None:
    rng = np.random.default_rng(0)
    exact = VectorIndex.empty(96)
    exact.add(np.arange(2_000), lists._unit(rng.standard_normal((2_000, 96), dtype=np.float32)))
    renewed = exact.renewed(1)
    assert renewed.is_exact
    assert renewed.training is not None and not renewed.training.is_worth_it
    assert renewed.training.recall < lists.RECALL
    assert not renewed.is_due(1)  # it has been tried


def test_lists_are_made_when_there_are_enough_vectors_and_anew_when_a_third_has_changed() -> None:
    index = VectorIndex.empty(DIMENSION)
    index.add(np.arange(999), clustered(999))
    assert not index.is_due(1_000)
    index.add(np.arange(999, 1_200), clustered(201, seed=1))
    assert index.is_due(1_000)
    index = index.renewed(1_000)
    assert not index.is_exact and not index.is_due(1_000)
    index.remove(np.arange(400))
    assert not index.is_due(1_000)
    index.add(np.arange(2_000, 2_001), clustered(1, seed=2))
    assert index.is_due(1_000)
    index = index.renewed(1_000)
    assert index.training is not None and (index.training.vectors, index.changed) == (801, 0)
    index.remove(index.ids[:310])
    index = index.renewed(1_000)
    assert index.is_exact and index.training is None  # far fewer than lists are for
    assert len(index) == 491 and not index.is_due(1_000)


def test_a_list_that_has_lost_its_last_vector_keeps_nothing_of_it() -> None:
    vectors_N_D = np.concatenate([clustered(500), -clustered(1, seed=7)])
    exact = VectorIndex.empty(DIMENSION)
    exact.add(np.arange(501), vectors_N_D)
    listed = exact.renewed(1)
    members, numbers = lists.members(listed.faiss_index)
    alone = members[np.isin(numbers, np.flatnonzero(np.bincount(numbers) == 1))]
    assert alone.size, "no list has one vector"
    secret_N_D = listed.vectors(alone)
    listed.remove(alone)
    centres_L_D = listed.faiss_index.quantizer.reconstruct_n(0, listed.faiss_index.nlist)
    assert (centres_L_D @ secret_N_D.T).max() < 0.9999
    assert recall(listed.renewed(10**9), listed, 10) > 0.97


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_filtered_search_is_brute_force_over_what_passes(data: st.DataObject) -> None:
    """In lists too, for they are few enough."""
    exact, listed = INDEXES
    chosen = data.draw(st.sets(st.sampled_from(exact.ids.tolist()), max_size=150))
    only = np.array(sorted(chosen | data.draw(st.sets(st.integers(0, 9_000), max_size=5))), dtype=np.int64)
    k = data.draw(st.integers(1, 40))
    query_1_D = clustered(1, seed=data.draw(st.integers(0, 1_000)))
    there = exact.known(only)
    scores_N = exact.vectors(there) @ query_1_D[0] if there.size else np.empty(0)
    expected = np.sort(scores_N)[::-1][:k]
    for index in (exact, listed):
        found = index.search(query_1_D, k, only)
        assert {i for i, _ in found} <= set(there.tolist())
        np.testing.assert_allclose(sorted((score for _, score in found), reverse=True), expected, atol=1e-5)


INDEXES = pair(2_000)
