"""Which pack of examples each training step takes.

Knows nothing about models or losses. Invariant: equal examples and recipes give equal packs in an equal order, so a
run that is taken up again goes on where it stopped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from hybridqa.errors import TrainingError
from hybridqa.training.packing import Example, Pack, group, pack, shared_length
from hybridqa.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Row:
    """The examples of a pack, and which of the lists of examples they are from."""

    examples: tuple[Example, ...]
    group: int

    def pack(self) -> Pack:
        """Made anew each time: all rows' tensors would take more memory than a long document's examples do."""
        return pack(self.examples)

    @property
    def taught(self) -> bool:
        """Whether its examples have a teacher's targets; text to continue has no key to find any by."""
        return min(item.key for item in self.examples) >= 0


def rows_of(students: Sequence[Sequence[Example]], recipe: Recipe, *, first: int = 0) -> list[Row]:
    """The packs of all examples; lists are numbered from `first`."""
    rng = random.Random(recipe.seed + first)
    rows: list[Row] = []
    for place, wording in enumerate(students, first):
        examples = list(wording)
        rng.shuffle(examples)
        if examples:
            shared = shared_length([item.prompt for item in examples])
            parts = group(examples, shared + max(recipe.pack_tokens, shared))
            rows.extend(Row(tuple(part), place) for part in parts)
    return rows


def steps_of(rows: Sequence[Row], recipe: Recipe) -> list[int]:
    """Which row each step takes: every epoch all of them, in an order drawn anew, `recipe.least_steps` at least.

    Raises `TrainingError` when there is no row.
    """
    if not rows:
        raise TrainingError(
            "the document holds nothing to learn; expected at least one fact that can be asked for, or a summary. "
            "It goes on answering from its passages."
        )
    steps = recipe.steps or max(1, recipe.least_steps, round(recipe.epochs * len(rows)))
    return _epochs(range(len(rows)), steps, random.Random(recipe.seed))


def retained_of(retained: Sequence[Sequence[Example]], recipe: Recipe, steps: int) -> tuple[list[Row], dict[int, int]]:
    """The packs of prompts to be left as they are, and which of them each step takes along that takes one.

    Those steps are spread evenly, `recipe.retention` of them all.
    """
    rows = rows_of(retained, recipe) if recipe.retention > 0 else []
    share = recipe.retention
    taken = [step for step in range(steps) if int((step + 1) * share) > int(step * share)] if rows else []
    return rows, dict(zip(taken, _epochs(range(len(rows)), len(taken), random.Random(recipe.seed + 2)), strict=True))


def second_plan(plan: Sequence[int], turn: int, old: int, new: int, seed: int) -> list[int]:
    """The plan with rows `old` to `old + new` put into the steps from `turn` on: each of them once if there is room.

    The other steps take the old rows, in an order drawn anew.
    """
    rest = len(plan) - turn
    rng = random.Random(seed + 1)
    added = _epochs(range(old, old + new), min(new, rest), rng) if new else []
    kept = _epochs(range(old), rest - len(added), rng) if rest > len(added) else []
    mixed = [*added, *kept]
    rng.shuffle(mixed)
    return [*plan[:turn], *mixed]


def _epochs(places: Sequence[int], steps: int, rng: random.Random) -> list[int]:
    """`steps` places, each as often as any other, give or take one."""
    plan: list[int] = []
    while len(plan) < steps:
        order = list(places)
        rng.shuffle(order)
        plan.extend(order)
    return plan[:steps]
