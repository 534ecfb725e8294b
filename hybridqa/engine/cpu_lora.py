"""LoRA on a CPU for vLLM: one pair of small float32 matrix products per adapter that is present in the batch.

Knows nothing about hybridqa's stores or prompts; it replaces vLLM's own CPU wrapper, which lets requests without an
adapter gather another request's weights and copies A and B once per token. Invariant: a row whose request has no
adapter is never touched, and a row gets its own adapter's product whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Rows = slice | torch.Tensor  # a stretch of the batch's rows, or their indices
_BLOCK_RANK = 96  # up to this sum of ranks, B of all slices is one block-diagonal matrix


@dataclass(frozen=True, slots=True)
class Packed:
    """One adapter in one layer, at its true rank, ready to multiply; float32, which is also the fast type on a CPU."""

    a_I_R: torch.Tensor  # A of all output slices side by side, transposed
    b: tuple[tuple[int, int, int, int, torch.Tensor], ...]  # rank from:to, output from:to, B transposed


class GroupedPunicaWrapperCPU(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is not typed for us
    """vLLM's CPU wrapper with rows grouped by adapter."""

    def __init__(self, max_num_batched_tokens: int, max_batches: int, device: Any, **kwargs: Any) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        self._token_groups: list[tuple[int, Rows]] = []
        self._sampler_groups: list[tuple[int, Rows]] = []
        self._packed: dict[tuple[int, int], tuple[tuple[int, ...], Packed | None]] = {}

    def update_metadata(self, mapping: Any, lora_index_to_id: Any, max_loras: int, vocab_size: int, **kw: Any) -> None:
        """Learns which slot each row of the next batch uses."""
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kw)
        self._token_groups = group_rows(self.token_lora_indices)
        self._sampler_groups = group_rows(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: Any = None,
        **kwargs: Any,
    ) -> None:
        """`y[rows, slice] += x[rows] @ A.T @ B.T * scale` for every adapter present and every output slice."""
        if not self._token_groups:
            return
        y = y.view(-1, y.shape[-1])
        x = x.view(-1, x.shape[-1])
        for slot, rows in self._token_groups:
            packed = self._pack(slot, lora_a_stacked, lora_b_stacked, output_slices)
            if packed is None:
                continue
            hidden_N_R = torch.mm(x[rows].float(), packed.a_I_R)
            if scale != 1.0:
                hidden_N_R *= scale
            for rank_from, rank_to, start, end, b_R_O in packed.b:
                _add(y, rows, start, end, hidden_N_R[:, rank_from:rank_to], b_R_O)

    def add_shrink(self, y: Any, x: torch.Tensor, lora_a_stacked: Any, scale: float, **kwargs: Any) -> None:
        """`y[i] += x @ A[i].T * scale`, for layers that shrink and expand apart (fully sharded ones)."""
        x = x.view(-1, x.shape[-1])
        for i, a_S_R_I in enumerate(lora_a_stacked):
            out = y[i].view(-1, y[i].shape[-1])
            for slot, rows in self._token_groups:
                _add(out, rows, 0, out.shape[-1], x[rows].float() * scale, _matrix(a_S_R_I, slot).T.float())

    def add_expand(
        self,
        y: torch.Tensor,
        x: Any,
        lora_b_stacked: Any,
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """`y[:, slice] += x[i] @ B[i].T`; rows without an adapter stay as they are."""
        y = y.view(-1, y.shape[-1])
        start = offset_start
        for i, (b_S_O_R, size) in enumerate(zip(lora_b_stacked, output_slices, strict=True)):
            for slot, rows in self._token_groups:
                if not add_inputs:
                    y[rows, start : start + size] = 0
                _add(y, rows, start, start + size, x[i][rows].float(), _matrix(b_S_O_R, slot).T.float())
            start += size

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        """`y += x @ B.T`, where x are the embedding's rows of A."""
        self.add_expand(y, (x.view(-1, x.shape[-1]),), (lora_b_stacked,), (y.shape[-1],), 0, add_inputs)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: Any = None,
        **kwargs: Any,
    ) -> None:
        """`y += x @ A.T @ B.T * scale` on the rows that are sampled from."""
        y = y.view(-1, y.shape[-1])
        x = x.view(-1, x.shape[-1])
        for slot, rows in self._sampler_groups:
            hidden_N_R = torch.mm(x[rows].float(), _matrix(lora_a_stacked, slot).T.float()) * scale
            b_O_R = _matrix(lora_b_stacked, slot)
            size = min(y.shape[-1], b_O_R.shape[0])  # either side may be padded
            _add(y, rows, 0, size, hidden_N_R, b_O_R[:size].T.float())

    def _pack(
        self, slot: int, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], output_slices: Sequence[int]
    ) -> Packed | None:
        """The slot's weights in this layer; packed anew when vLLM has written to any slot of it since."""
        versions = tuple(tensor._version for tensor in (*a, *b))
        key = (a[0].data_ptr(), slot)
        known = self._packed.get(key)
        if known is None or known[0] != versions:
            known = (versions, pack([_matrix(t, slot) for t in a], [_matrix(t, slot) for t in b], output_slices))
            self._packed[key] = known
        return known[1]


def group_rows(slots_N: torch.Tensor) -> list[tuple[int, Rows]]:
    """The rows of each slot that is present, as a slice where they are one stretch; -1, no adapter, is left out."""
    rows_of: dict[int, list[int]] = {}
    for row, slot in enumerate(slots_N.tolist()):
        if slot >= 0:
            rows_of.setdefault(slot, []).append(row)
    groups: list[tuple[int, Rows]] = []
    for slot, rows in rows_of.items():
        together = rows[-1] - rows[0] == len(rows) - 1
        groups.append((slot, slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows)))
    return groups


def pack(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], output_slices: Sequence[int]) -> Packed | None:
    """A (max_rank, in) and B (out, max_rank) of each output slice, without the padding; None when all is zero."""
    kept: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []  # output from:to, A, B
    start = 0
    for a_R_I, b_O_R, size in zip(a, b, output_slices, strict=True):
        rank = _true_rank(a_R_I)
        if rank and bool(b_O_R.any()):
            kept.append((start, start + size, a_R_I[:rank].float(), b_O_R[:size, :rank].float()))
        start += size
    if not kept:
        return None
    a_I_R = torch.cat([a_R_I for *_, a_R_I, _ in kept]).T.contiguous()
    total = a_I_R.shape[1]
    blocks: list[tuple[int, int, int, int, torch.Tensor]] = []
    rank_from = 0
    for out_from, out_to, a_R_I, b_O_R in kept:
        blocks.append((rank_from, rank_from + a_R_I.shape[0], out_from, out_to, b_O_R.T.contiguous()))
        rank_from += a_R_I.shape[0]
    if len(blocks) > 1 and total <= _BLOCK_RANK:
        low, high = kept[0][0], kept[-1][1]
        joined_R_O = torch.zeros(total, high - low)
        for rank_from, rank_to, out_from, out_to, b_R_O in blocks:
            joined_R_O[rank_from:rank_to, out_from - low : out_to - low] = b_R_O
        blocks = [(0, total, low, high, joined_R_O)]
    return Packed(a_I_R, tuple(blocks))


def _true_rank(a_R_I: torch.Tensor) -> int:
    """Rows of A up to the last that is not zero: vLLM pads each slot to the largest rank it allows."""
    used = (a_R_I != 0).any(dim=1).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def _matrix(stacked: torch.Tensor, slot: int) -> torch.Tensor:
    """The slot's matrix of a (slots, 1, rows, columns) or (slots, rows, columns) buffer."""
    matrix = stacked[slot]
    return matrix[0] if matrix.ndim == 3 else matrix


def _add(y: torch.Tensor, rows: Rows, start: int, end: int, left_N_R: torch.Tensor, right_R_O: torch.Tensor) -> None:
    """`y[rows, start:end] += left @ right`, rounded once."""
    if isinstance(rows, slice):
        target = y[rows, start:end]
        if y.dtype == torch.float32:
            target.addmm_(left_N_R, right_R_O)
        else:
            target += torch.mm(left_N_R, right_R_O)
    else:
        y[rows, start:end] = (y[rows, start:end] + torch.mm(left_N_R, right_R_O)).to(y.dtype)
