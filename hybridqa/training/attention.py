"""Attention over a pack, example by example: each sees the shared prefix and itself, and nothing else is computed.

Under a mask of all pairs of tokens, attention computes them all and throws away those between examples: most of them.
Knows nothing about models: it stands behind transformers' attention interface, and gives way to the plain function with
the mask wherever a model asks for more than causal attention. Invariant: both give the same, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridqa.training.packing import Pack

NAME = "hybridqa_packed"  # as transformers' `attn_implementation`
MOST_WEIGHTS = 8_000_000  # attention weights of a layer that are kept for the way back; beyond it torch's own way
PLAIN = frozenset(("is_causal", "position_ids", "use_cache", "output_attentions", "output_hidden_states"))


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the examples of a pack are: S of them, L tokens each when padded, behind a prefix of P tokens."""

    tokens: int  # T
    prefix: int  # P
    examples: int  # S
    length: int  # L
    places_SL: Tensor  # of each padded token, in the row; padding points anywhere
    slots_O: Tensor  # of each of the row's own tokens, among the padded ones
    allowed_L_K: Tensor  # bool, K = P + L: a token sees the prefix and its example's tokens up to itself
    causal_P_P: Tensor  # bool, of the prefix

    @classmethod
    def of(cls, row: Pack, device: torch.device) -> Layout:
        """The layout of a pack."""
        owners_T = row.owners_T
        prefix = int((owners_T == -1).sum())
        lengths = torch.bincount(owners_T[prefix:])
        count, length = len(lengths), int(lengths.max())
        first_S = prefix + lengths.cumsum(0) - lengths
        within_L = torch.arange(length)
        places_S_L = first_S[:, None] + torch.minimum(within_L[None], lengths[:, None] - 1)
        valid_S_L = within_L[None] < lengths[:, None]
        slots_O = torch.arange(count * length)[valid_S_L.flatten()]
        allowed_L_K = torch.ones(length, prefix + length, dtype=torch.bool).tril(prefix)
        return cls(
            len(row),
            prefix,
            count,
            length,
            places_S_L.flatten().to(device),
            slots_O.to(device),
            allowed_L_K.to(device),
            torch.ones(prefix, prefix, dtype=torch.bool, device=device).tril(),
        )


_LAYOUT: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def segmented(layout: Layout | None) -> Iterator[None]:
    """Inside, models that use this attention take the row for a pack of that layout."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


class _Apart(torch.autograd.Function):
    """(H, T, D) → (H, S·L, D): each example's tokens, padded. What is padding gets and gives no gradient."""

    @staticmethod
    def forward(ctx: Any, x_H_T_D: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x_H_T_D.index_select(1, layout.places_SL)

    @staticmethod
    def backward(ctx: Any, outer_H_SL_D: Tensor) -> tuple[Tensor, None]:
        layout = ctx.layout
        own_H_O_D = outer_H_SL_D.index_select(1, layout.slots_O)
        none = own_H_O_D.new_zeros(own_H_O_D.shape[0], layout.prefix, own_H_O_D.shape[2])
        return torch.cat([none, own_H_O_D], dim=1), None


class _Together(torch.autograd.Function):
    """(H, S·L, D) → (H, T - P, D): the examples' tokens without the padding, in the row's order."""

    @staticmethod
    def forward(ctx: Any, x_H_SL_D: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x_H_SL_D.index_select(1, layout.slots_O)

    @staticmethod
    def backward(ctx: Any, outer_H_O_D: Tensor) -> tuple[Tensor, None]:
        layout = ctx.layout
        spread = outer_H_O_D.new_zeros(outer_H_O_D.shape[0], layout.examples * layout.length, outer_H_O_D.shape[2])
        return spread.index_copy_(1, layout.slots_O, outer_H_O_D), None


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for (1, H, T, D) queries, keys and values; gives (1, T, H, D)."""
    layout = _LAYOUT.get()
    extra = any(value is not None for name, value in options.items() if name not in PLAIN)
    if layout is None or extra or dropout or query.shape[:1] != (1,) or query.shape[2] != layout.tokens:
        return _plain(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options)
    groups = query.shape[1] // key.shape[1]
    q_H_T_D = query[0]
    k_H_T_D, v_H_T_D = (each[0] if groups == 1 else each[0].repeat_interleave(groups, 0) for each in (key, value))
    prefix, count, length = layout.prefix, layout.examples, layout.length

    def apart(x_H_T_D: Tensor) -> Tensor:
        own_H_SL_D = _Apart.apply(x_H_T_D, layout)  # type: ignore[no-untyped-call]
        own: Tensor = own_H_SL_D.view(x_H_T_D.shape[0], count, length, x_H_T_D.shape[2])
        return own

    def behind_prefix(x_H_T_D: Tensor) -> Tensor:
        shared = x_H_T_D[:, None, :prefix].expand(-1, count, -1, -1)
        return torch.cat([shared, apart(x_H_T_D)], dim=2)

    own_H_S_L_D = _attend(apart(q_H_T_D), behind_prefix(k_H_T_D), behind_prefix(v_H_T_D), layout.allowed_L_K, scaling)
    flat = own_H_S_L_D.reshape(own_H_S_L_D.shape[0], count * length, own_H_S_L_D.shape[3])
    parts = [_Together.apply(flat, layout)]  # type: ignore[no-untyped-call]
    if prefix:
        q, k, v = (each[None, :, :prefix] for each in (q_H_T_D, k_H_T_D, v_H_T_D))
        parts.insert(0, _attend(q, k, v, layout.causal_P_P, scaling)[0])
    return torch.cat(parts, dim=1).transpose(0, 1).contiguous()[None], None


def _attend(query: Tensor, key: Tensor, value: Tensor, allowed_L_K: Tensor, scaling: float | None) -> Tensor:
    """Attention of (H, S, L, D) queries over (H, S, K, D) keys and values."""
    weights = query.shape[0] * query.shape[1] * allowed_L_K.numel()
    if query.device.type != "cpu" or not torch.is_grad_enabled() or weights > MOST_WEIGHTS:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed_L_K, scale=scaling)
    # On a CPU the way back through torch's own function takes twice as long as this one.
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    barred_L_K = torch.zeros_like(allowed_L_K, dtype=query.dtype).masked_fill_(~allowed_L_K, -torch.inf)
    scores = torch.matmul(query * scale, key.transpose(-1, -2)) + barred_L_K
    return torch.matmul(torch.softmax(scores, -1), value)


def _plain(module: torch.nn.Module, *tensors: Tensor | None, **options: Any) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    found: tuple[Tensor, None] = sdpa_attention_forward(module, *tensors, **options)
    return found


def use_packed_attention(model: Any) -> bool:
    """Has a model that uses torch's attention through transformers' interface use this one; whether it does."""
    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        return False
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, TypeError, AttributeError):  # a family that takes none but its own
        return False
    return True
