"""The trainer's state on disk, so that a killed run goes on where it stood.

Knows nothing about what is being learned. Invariant: weights and optimiser state are in one file, which is of one step
and one recipe; a file that is damaged or of another run is not taken up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hybridqa.files import atomic_write_bytes
from hybridqa.training.lesson import CHECKPOINT
from hybridqa.training.recipe import Recipe

__all__ = ["CHECKPOINT", "Spent", "load_checkpoint", "save_checkpoint"]


@dataclass(slots=True)
class Spent:
    """What a run has cost so far, its earlier legs included, and how it goes."""

    seconds: float = 0.0
    tokens: float = 0.0
    loss: float = math.nan  # a running mean


def _fingerprint(recipe: Recipe, total: int) -> dict[str, Any]:
    return {**asdict(recipe), "total_steps": total}


def save_checkpoint(
    folder: Path,
    recipe: Recipe,
    step: int,
    total: int,
    adapter: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
    spent: Spent,
) -> None:
    """Weights and optimiser state of `step`, in one file, so that they cannot disagree."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weight/{name}": weight.detach().cpu() for name, weight in adapter.items()}
    for name, weight in adapter.items():
        for key, value in optimiser.state[weight].items():
            tensors[f"state/{key}/{name}"] = torch.as_tensor(value).detach().cpu()
    meta = {"step": str(step), "recipe": json.dumps(_fingerprint(recipe, total)), "spent": json.dumps(asdict(spent))}
    atomic_write_bytes(folder / CHECKPOINT, save(tensors, metadata=meta))


def load_checkpoint(
    folder: Path,
    recipe: Recipe,
    total: int,
    adapter: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> tuple[int, Spent]:
    """The step to go on from, and what was spent up to it.

    Step 0 when there is no checkpoint, or it belongs to another run or is damaged.
    """
    path, nothing = folder / CHECKPOINT, (0, Spent())
    if not path.is_file():
        return nothing
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            if json.loads(meta.get("recipe", "{}")) != _fingerprint(recipe, total):
                return nothing
            spent = Spent(**json.loads(meta.get("spent", "{}")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError):
        return nothing
    if any(f"weight/{name}" not in tensors for name in adapter):
        return nothing
    with torch.no_grad():
        for name, weight in adapter.items():
            weight.copy_(tensors[f"weight/{name}"])
            # The step's number as well: a fused optimiser counts where its weights are.
            optimiser.state[weight] = {key: value.to(weight.device) for key, value in _state_keys(tensors, name)}
    return int(meta["step"]), spent


def _state_keys(tensors: dict[str, Tensor], name: str) -> Iterator[tuple[str, Tensor]]:
    for full, tensor in tensors.items():
        _, _, rest = full.partition("/")
        key, _, owner = rest.partition("/")
        if full.startswith("state/") and owner == name:
            yield key, tensor
