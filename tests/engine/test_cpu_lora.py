"""The grouped CPU LoRA kernel against plain matrix products."""

from __future__ import annotations

import pytest
import torch

from hybridqa.vllm_plugin import self_test

pytest.importorskip("vllm")


def wrapper_for(slots: list[int], ids: list[int | None]):
    from vllm.lora.layers import LoRAMapping

    from hybridqa.engine.cpu_lora import GroupedPunicaWrapperCPU

    made = GroupedPunicaWrapperCPU(256, 32, torch.device("cpu"))
    mapping = tuple(0 if slot < 0 else ids[slot] for slot in slots)
    made.update_metadata(LoRAMapping(mapping, mapping, is_prefill=True), ids, len(ids) + 1, 100)
    return made


def weights(slots: int, max_rank: int, ranks: list[list[int]], width: int, sizes: list[int], dtype=torch.float32):
    """Zero-padded buffers as vLLM keeps them; `ranks[slice][slot]`."""
    a = tuple(torch.zeros(slots, 1, max_rank, width, dtype=dtype) for _ in sizes)
    b = tuple(torch.zeros(slots, 1, size, max_rank, dtype=dtype) for size in sizes)
    for i, size in enumerate(sizes):
        for slot in range(slots):
            rank = ranks[i][slot]
            a[i][slot, 0, :rank] = torch.randn(rank, width).to(dtype)
            b[i][slot, 0, :, :rank] = torch.randn(size, rank).to(dtype)
    return a, b


def expected(y, x, slots, a, b, sizes):
    out = y.clone().double()
    for row, slot in enumerate(slots):
        start = 0
        for a_i, b_i, size in zip(a, b, sizes, strict=True):
            if slot >= 0:
                out[row, start : start + size] += b_i[slot, 0].double() @ (a_i[slot, 0].double() @ x[row].double())
            start += size
    return out


BATCHES = {
    "one adapter": [0, 0, 0],
    "none": [-1, -1],
    "base in front": [-1, -1, 1, 1, 0],
    "interleaved": [1, -1, 0, 1, 2, -1, 0],
    "single row": [2],
    "base last": [2, 2, -1],
}


@pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize(
    ("sizes", "ranks"),
    [
        ([20], [[4, 16, 64]]),
        ([20, 8, 8], [[4, 16, 0], [4, 16, 8], [0, 16, 8]]),  # unlike ranks, absent targets
        ([24, 24], [[60, 16, 1], [60, 3, 1]]),  # past the block-diagonal form
    ],
    ids=["one slice", "three slices", "large ranks"],
)
def test_mixed_batches_equal_plain_products(slots: list[int], sizes: list[int], ranks: list[list[int]]) -> None:
    torch.manual_seed(0)
    a, b = weights(3, 64, ranks, 32, sizes)
    x, y = torch.randn(len(slots), 32), torch.randn(len(slots), sum(sizes))
    before = y.clone()
    want = expected(y, x, slots, a, b, sizes)
    wrapper_for(slots, [11, 5, 8]).add_lora_linear(y, x, a, b, 1.0, tuple(sizes))
    torch.testing.assert_close(y.double(), want, rtol=1e-4, atol=1e-4)
    for row, slot in enumerate(slots):
        if slot < 0:
            assert torch.equal(y[row], before[row])


@pytest.mark.parametrize("slots", [[0, 0, -1], [0, -1, 0]])
def test_bfloat16_rounds_once(slots: list[int]) -> None:
    torch.manual_seed(0)
    a, b = weights(1, 16, [[16]], 32, [20], torch.bfloat16)
    x, y = torch.randn(3, 32).bfloat16(), torch.randn(3, 20).bfloat16()
    want = expected(y, x, slots, a, b, [20]).bfloat16()
    wrapper_for(slots, [1]).add_lora_linear(y, x, a, b, 1.0, (20,))
    difference = (y.float() - want.float()).abs() / want.float().abs().clamp_min(1)
    assert float(difference.max()) <= 2**-8  # one unit in the last place, where float32 rounds the other way


def test_weights_written_again_are_seen() -> None:
    """vLLM loads adapters into a slot under inference mode: the packed copy must not outlive them."""
    torch.manual_seed(0)
    a, b = weights(1, 16, [[4]], 32, [20])
    wrapper = wrapper_for([0], [1])
    x, first = torch.randn(1, 32), torch.zeros(1, 20)
    wrapper.add_lora_linear(first, x, a, b, 1.0, (20,))
    with torch.inference_mode():
        a[0][0, 0, :9].copy_(torch.randn(9, 32))  # a larger rank, the same slot
        b[0][0, 0, :, :9].copy_(torch.randn(20, 9))
    second = torch.zeros(1, 20)
    want = expected(second, x, [0], a, b, [20])
    wrapper.add_lora_linear(second, x, a, b, 1.0, (20,))
    torch.testing.assert_close(second.double(), want, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, second)


def test_logits_and_embeddings_leave_base_rows_alone() -> None:
    torch.manual_seed(0)
    slots = [0, -1, 1]
    a, b = weights(2, 8, [[8, 3]], 32, [20])
    wrapper = wrapper_for(slots, [1, 2])
    x, y = torch.randn(3, 32), torch.randn(3, 20)
    want = expected(y, x, slots, a, b, [20])
    wrapper.add_lora_logits(y, x, a[0], b[0], 1.0)
    torch.testing.assert_close(y.double(), want, rtol=1e-4, atol=1e-4)

    rows_of_a, out = torch.randn(3, 8), torch.zeros(3, 20)
    wrapper.add_lora_embedding(out, rows_of_a, b[0])
    for row, slot in enumerate(slots):
        if slot < 0:
            assert not out[row].any()
        else:
            torch.testing.assert_close(out[row], b[0][slot, 0] @ rows_of_a[row], rtol=1e-4, atol=1e-4)


def test_shrink_then_expand_equals_linear() -> None:
    torch.manual_seed(0)
    slots, sizes = [1, -1, 0], [12, 8]
    a, b = weights(2, 8, [[8, 3], [5, 8]], 32, sizes)
    wrapper = wrapper_for(slots, [1, 2])
    x, y = torch.randn(3, 32), torch.randn(3, 20)
    want = expected(y, x, slots, a, b, sizes)
    hidden = torch.zeros(2, 3, 8)
    wrapper.add_shrink(hidden, x, a, 1.0)
    wrapper.add_expand(y, hidden, b, tuple(sizes))
    torch.testing.assert_close(y.double(), want, rtol=1e-4, atol=1e-4)


def test_self_test_agrees_here() -> None:
    assert self_test() is None


def test_self_test_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own wrapper fails the very comparison that ours must pass on an untested version."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    monkeypatch.setattr("hybridqa.engine.cpu_lora.GroupedPunicaWrapperCPU", PunicaWrapperCPU)
    problem = self_test()
    assert problem is not None and "mixed batch" in problem
