"""How much each of several documents' modules counts in one stack.

Each module also teaches how answers look, and in a stack all of them say so at once: plugged in whole, two overshoot.
So the squares of their weights sum to 1: what they say in common adds up, what is each one's own does not. The one that
the question is most likely about leads, and the others count in few steps, so that the same modules make few stacks.
Knows nothing about passages. Invariant: one module alone counts whole, and each of several counts something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hybridqa.types import ModuleChoice, Weight

STEPS = (1.0, 0.5, 0.25)  # of the leading module's weight


def share_of(modules: int) -> float:
    """The weight of each of so many (1 or more), where none of them leads."""
    return 1.0 / math.sqrt(modules)


def shares_of(evidence: Sequence[float]) -> tuple[float, ...]:
    """The weight of each of several modules, from the evidence (0 or more) that the question is about its documents.

    Each counts, beside the strongest, the nearest of `STEPS` to its share of that one's evidence.
    """
    strongest = max(evidence, default=0.0)
    if strongest <= 0.0:
        return (share_of(len(evidence)),) * len(evidence) if evidence else ()
    steps = [min(STEPS, key=lambda step: abs(step - value / strongest)) for value in evidence]
    size = math.sqrt(sum(step**2 for step in steps))
    return tuple(step / size for step in steps)


def scaled(weight: Weight, share: float) -> Weight:
    """A weight, or one for each layer, times a share."""
    if isinstance(weight, float):
        return weight * share
    return weight if share == 1.0 else {name: value * share for name, value in weight.items()}


def weighed(choices: Sequence[ModuleChoice], weight: Weight = 1.0) -> tuple[ModuleChoice, ...]:
    """The modules of one stack, each with its share of a weight that is one for all, or one for each layer."""
    shares = shares_of([choice.evidence for choice in choices])
    return tuple(replace(choice, weight=scaled(weight, share)) for choice, share in zip(choices, shares, strict=True))
