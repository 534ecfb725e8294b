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
    first_layer: float = 0.5  # share of the lowest layers that get no adapter
    learning_rate: float = 1e-3  # of A
    b_ratio: float = 8.0  # B's learning rate over A's: B starts at 0 and has further to go (LoRA+, arXiv 2402.12354)
    warmup: float = 0.06  # share of the steps
    epochs: float = 2.8  # passes over the examples, when steps is 0
    steps: int = 0
    pack_tokens: int = 208  # of a pack's examples, beside what their prompts share; as many as that, if it is more
    reading: float = 0.5  # share of the pairs that are also learned with their chunk in the prompt
    top_k: int = 64
    temperature: float = 1.0
    kl: float = 1.0
    hidden: float = 1.0
    cross_entropy: float = 1.0
    trust: bool = True  # the teacher counts as far as it believes the target; cross-entropy takes the rest
    weight_decay: float = 0.0
    checkpoint_steps: int = 25
    seed: int = 0
