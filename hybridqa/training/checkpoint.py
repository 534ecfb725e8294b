"""The trainer's state on disk, so that a killed run goes on where it stood.

Knows nothing about what is being learned. Invariant: weights and optimiser state are in one file, which is of one step
and one recipe; a file that is damaged or of another run is not taken up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hybridqa.files import atomic_write_bytes
from hybridqa.training.lesson import CHECKPOINT
from hybridqa.training.recipe import Recipe

__all__ = ["CHECKPOINT", "load_checkpoint", "save_checkpoint"]


def _fingerprint(recipe: Recipe, total: int) -> dict[str, Any]:
    return {**asdict(recipe), "total_steps": total}


def save_checkpoint(
    folder: Path,
    recipe: Recipe,
    step: int,
    total: int,
    adapter: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Weights and optimiser state of `step`, in one file, so that they cannot disagree."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weight/{name}": weight.detach().cpu() for name, weight in adapter.items()}
    for name, weight in adapter.items():
        for key, value in optimiser.state[weight].items():
            tensors[f"state/{key}/{name}"] = torch.as_tensor(value).detach().cpu()
    meta = {"step": str(step), "recipe": json.dumps(_fingerprint(recipe, total))}
    atomic_write_bytes(folder / CHECKPOINT, save(tensors, metadata=meta))


def load_checkpoint(
    folder: Path,
    recipe: Recipe,
    total: int,
    adapter: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> int:
    """The step to go on from; 0 when there is no checkpoint, or it belongs to another run or is damaged."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            if json.loads(meta.get("recipe", "{}")) != _fingerprint(recipe, total):
                return 0
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError):
        return 0
    if any(f"weight/{name}" not in tensors for name in adapter):
        return 0
    with torch.no_grad():
        for name, weight in adapter.items():
            weight.copy_(tensors[f"weight/{name}"])
            keys = _state_keys(tensors, name)
            optimiser.state[weight] = {key: value.to(weight.device if value.ndim else "cpu") for key, value in keys}
    return int(meta["step"])


def _state_keys(tensors: dict[str, Tensor], name: str) -> Iterator[tuple[str, Tensor]]:
    for full, tensor in tensors.items():
        _, _, rest = full.partition("/")
        key, _, owner = rest.partition("/")
        if full.startswith("state/") and owner == name:
            yield key, tensor
