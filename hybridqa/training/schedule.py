"""Which pack of examples each training step takes.

Knows nothing about models or losses. Invariant: equal examples and recipes give equal packs in an equal order, so a
run that is taken up again goes on where it stopped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from hybridqa.errors import TrainingError
from hybridqa.training.packing import Example, Pack, group, pack, shared_length
from hybridqa.training.recipe import Recipe


def schedule(students: Sequence[Sequence[Example]], recipe: Recipe) -> tuple[list[Pack], list[int]]:
    """The packs of all examples, and which pack each step takes: every epoch all of them, in an order drawn anew.

    Raises `TrainingError` when there is no example.
    """
    rng = random.Random(recipe.seed)
    packs: list[Pack] = []
    for wording in students:
        examples = list(wording)
        rng.shuffle(examples)
        if examples:
            shared = shared_length([item.prompt for item in examples])
            packs.extend(pack(part) for part in group(examples, shared + max(recipe.pack_tokens, shared)))
    if not packs:
        raise TrainingError(
            "the document holds nothing to learn; expected at least one fact that can be asked for, or a summary. "
            "It goes on answering from its passages."
        )
    steps = recipe.steps or max(1, round(recipe.epochs * len(packs)))
    plan: list[int] = []
    while len(plan) < steps:
        order = list(range(len(packs)))
        rng.shuffle(order)
        plan.extend(order)
    return packs, plan[:steps]
