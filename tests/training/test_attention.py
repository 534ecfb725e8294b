"""Attention example by example: the values and gradients of attention under a mask, in fewer steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hybridqa.training import attention
from hybridqa.training.attention import Layout, packed_attention, segmented
from hybridqa.training.packing import Example, Pack, additive_mask, pack
from hybridqa.training.recipe import Recipe
from hybridqa.training.trainer import Trainer

CPU = torch.device("cpu")


def a_row(prefix: int, *own: int) -> Pack:
    """A pack whose examples share `prefix` tokens and have so many of their own."""
    return pack(
        [
            Example((*range(10, 10 + prefix), 50 + key), tuple(range(1, length + 1)), key)
            for key, length in enumerate(own)
        ]
    )


@pytest.mark.parametrize("row", [a_row(7, 3, 9, 1), a_row(0, 4, 2), a_row(12, 5), a_row(1, 1, 1)])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("most", [0, attention.MOST_WEIGHTS])  # torch's own way, and the one of this file
def test_it_gives_what_attention_under_the_mask_gives(
    row: Pack, groups: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MOST_WEIGHTS", most)
    torch.manual_seed(0)
    heads, tokens, size = 2 * groups, len(row), 8
    shapes = [(1, heads, tokens, size), (1, 2, tokens, size), (1, 2, tokens, size)]
    mine = [torch.randn(shape, requires_grad=True) for shape in shapes]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in mine]
    outer = torch.randn(1, tokens, heads, size)

    with segmented(Layout.of(row, CPU)):
        found, _ = packed_attention(torch.nn.Identity(), *mine, None, scaling=0.3)
    (found * outer).sum().backward()

    query, key, value = theirs
    key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    mask = additive_mask(row.allowed(), torch.float32)
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3).transpose(1, 2)
    (plain * outer).sum().backward()

    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_a_trainer_uses_it_and_a_model_with_more_than_causal_attention_does_not(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = a_row(6, 4, 2)
    trainer = Trainer(tiny_llama)
    trainer.attach(Recipe(rank=2))
    with torch.no_grad():
        apart_N_V, _, _ = trainer.forward(row, hidden=False)
        monkeypatch.setattr(trainer, "_apart", False)
        masked_N_V, _, _ = trainer.forward(row, hidden=False)
    torch.testing.assert_close(apart_N_V, masked_N_V, rtol=1e-4, atol=1e-5)

    asked: list[bool] = []
    plain = attention._plain

    def spy(*arguments: object, **options: object) -> object:
        asked.append(True)
        return plain(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "_plain", spy)
    tensors = [torch.randn(1, 2, len(row), 8) for _ in range(3)]
    module = torch.nn.Identity()
    mask = additive_mask(row.allowed(), torch.float32)
    with segmented(Layout.of(row, CPU)):
        packed_attention(module, *tensors, mask)
        assert not asked
        packed_attention(module, *tensors, mask, sliding_window=4)
        assert len(asked) == 1
    packed_attention(module, *tensors, mask)  # no pack under way
    assert len(asked) == 2


def test_a_pack_says_what_its_examples_say_alone_where_layers_look_back_no_further_than_a_window(
    tiny_windowed: Path,
) -> None:
    trainer = Trainer(tiny_windowed, device="cpu")
    trainer.attach(Recipe(rank=2))
    for row in (a_row(2, 3, 2), a_row(6, 4, 9), a_row(20, 4, 2)):
        with torch.no_grad():
            packed_N_V, _, _ = trainer.forward(row, hidden=False)
            alone_N_V = torch.cat([trainer.forward(one, hidden=False)[0] for one in row.alone()])
        torch.testing.assert_close(packed_N_V, alone_N_V, rtol=1e-4, atol=1e-5)


def test_the_trainer_goes_through_it(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts: list[int] = []
    apart = Layout.of

    def count(row: Pack, device: torch.device) -> Layout:
        layouts.append(len(row))
        return apart(row, device)

    monkeypatch.setattr(Layout, "of", count)
    trainer = Trainer(tiny_llama)
    trainer.attach(Recipe(rank=2))
    row = a_row(6, 4, 2)
    with torch.no_grad():
        trainer.forward(row, hidden=False)
    assert layouts[-1] == len(row)
