"""The recipe of a training run: plain numbers, all of them on record in the module's manifest.

Knows nothing about torch. Invariant: two runs with equal recipes, examples and hardware give equal adapters.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what a training run does."""

    rank: int = 16
    alpha: int = 32
    first_layer: float = 0.0  # share of the lowest layers that get no adapter
    learning_rate: float = 2e-3
    warmup: float = 0.06  # share of the steps
    epochs: float = 6.0  # passes over the examples, when steps is 0
    steps: int = 0
    pack_tokens: int = 320
    top_k: int = 64
    temperature: float = 1.0
    kl: float = 1.0
    hidden: float = 1.0
    cross_entropy: float = 0.0
    weight_decay: float = 0.0
    checkpoint_steps: int = 25
    seed: int = 0
