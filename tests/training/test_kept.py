"""What is kept between steps: equal to what was put, inside the budget, gone at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridqa.training.kept import Kept
from hybridqa.training.objectives import summarise_teacher
from hybridqa.training.targets import KeptTargets


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), st.integers(0, 3000))
def test_all_is_given_back_and_the_budget_holds(sizes: list[int], budget: int) -> None:
    groups = {key: {"a": torch.rand(size), "b": torch.arange(key + 1)} for key, size in enumerate(sizes)}
    with Kept(budget) as kept:
        for key, tensors in groups.items():
            assert key not in kept
            kept.put(key, tensors)
        assert 0 <= kept.room <= budget
        for key, tensors in groups.items():
            assert key in kept
            found = kept.get(key)
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_files_are_gone_with_it(tmp_path: Path) -> None:
    with Kept(0, tmp_path) as kept:
        kept.put(7, {"a": torch.ones(3, dtype=torch.bfloat16)})
        assert list(tmp_path.rglob("*.safetensors"))
        with pytest.raises(KeyError):
            kept.get(8)
    assert not list(tmp_path.iterdir())


def test_targets_come_back_as_they_were() -> None:
    torch.manual_seed(0)
    targets = summarise_teacher(torch.randn(3, 50), torch.randn(3, 2, 8), torch.tensor([1, 2, 3]), top_k=5)
    for budget in (0, 10_000):
        with Kept(budget) as kept:
            shelf = KeptTargets(kept)
            shelf.put(4, targets)
            found = shelf[4]
        assert torch.equal(found.hidden_N_L_D, targets.hidden_N_L_D)
        assert torch.equal(found.ids_N_K, targets.ids_N_K)
        assert found.rest_N.dtype == torch.float32
