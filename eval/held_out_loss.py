"""The held-out loss of adapters, the same number computed the same way whoever trained them.

An adapter is written down as its A and B by layer while it is trained, and judged afterwards, in another process: mean
negative log-likelihood per answer token, in float32, by a plain forward pass of the base model with the adapter's
product added to each layer's output. Knows nothing about trainers. Invariant: a trainer's numeric type, packing and
caches are no part of the judgement, and judging takes none of its time or memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_NAME = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+?)\.lora_(?P<side>[AB])(?:\.\w+)*")

Layers = dict[str, tuple[Tensor, Tensor]]  # layer's name → A (r, in), B (out, r)


def write_snapshot(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes an adapter's weights under names that peft's and other trainers' share: LAYER.lora_A and LAYER.lora_B."""
    tensors = {}
    for name, weight in weights.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is no weight of a LoRA; expected a name with .lora_A or .lora_B in it")
        tensors[f"{match['layer']}.lora_{match['side']}"] = weight.detach().float().cpu().contiguous()
    save_file(tensors, path)


def read_snapshot(path: Path) -> Layers:
    """What `write_snapshot` wrote."""
    tensors = load_file(path)
    layers = sorted(name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A"))
    return {layer: (tensors[f"{layer}.lora_A"], tensors[f"{layer}.lora_B"]) for layer in layers}


@contextmanager
def plugged(model: nn.Module, layers: Layers, scale: float) -> Iterator[None]:
    """Inside, every layer's output has `scale` · B A x added. Raises `ValueError` for a layer that is not there."""
    device = next(model.parameters()).device
    handles = []
    try:
        for name, (a_R_I, b_O_R) in layers.items():
            a_R_I, b_O_R = a_R_I.to(device), b_O_R.to(device)
            handles.append(_layer(model, name).register_forward_hook(_added(a_R_I, b_O_R, scale)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _added(a_R_I: Tensor, b_O_R: Tensor, scale: float) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + scale * ((inputs[0] @ a_R_I.T) @ b_O_R.T)

    return hook


def _layer(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    found = [name] if name in modules else [other for other in modules if other.endswith(f".{name}")]
    if len(found) != 1:
        raise ValueError(f"an adapter sits on {name!r}, which names {len(found)} parts of the model; expected one")
    return modules[found[0]]


def held_out_loss(model: Any, examples: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch: int = 8) -> float:
    """Mean negative log-likelihood, in nats, of all target tokens of (prompt, target) examples."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    rows = sorted((([*prompt, *target], len(prompt)) for prompt, target in examples), key=lambda row: len(row[0]))
    for first in range(0, len(rows), batch):  # rows of like lengths: little padding
        part = rows[first : first + batch]
        longest = len(part[-1][0])
        ids_B_T = torch.zeros(len(part), longest, dtype=torch.long)
        given_B_T = torch.zeros_like(ids_B_T)
        labels_B_T = torch.full_like(ids_B_T, -100)
        for place, (row, begin) in enumerate(part):
            ids_B_T[place, : len(row)] = torch.tensor(row)
            given_B_T[place, : len(row)] = 1
            labels_B_T[place, begin : len(row)] = torch.tensor(row[begin:])
        with torch.no_grad():
            logits_B_T_V = model(ids_B_T.to(device), attention_mask=given_B_T.to(device), use_cache=False).logits
        labels_M = labels_B_T[:, 1:].flatten().to(device)
        losses = F.cross_entropy(logits_B_T_V[:, :-1].flatten(0, 1).float(), labels_M, reduction="sum")
        total += float(losses)
        count += int((labels_M != -100).sum())
    return total / count
