"""How much each of several documents' modules counts in one stack.

Each module also teaches how answers look, and in a stack all of them say so at once: plugged in whole, two overshoot.
Knows nothing about questions: the same modules always make the same stack. Invariant: one module alone counts whole.
"""

from __future__ import annotations

import math

from hybridqa.types import Weight


def share_of(modules: int) -> float:
    """The weight of each of so many (1 or more): what they say in common adds up, what is each one's own does not."""
    return 1.0 / math.sqrt(modules)


def scaled(weight: Weight, share: float) -> Weight:
    """A weight, or one for each layer, times a share."""
    if isinstance(weight, float):
        return weight * share
    return weight if share == 1.0 else {name: value * share for name, value in weight.items()}
