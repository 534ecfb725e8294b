"""The teacher's targets of a training run, kept within a memory budget.

Knows nothing about how they were made. Invariant: what was put under a key is given back equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from hybridqa.training.kept import Kept
from hybridqa.training.objectives import TeacherTargets

_FIELDS = tuple(field.name for field in fields(TeacherTargets))


class KeptTargets:
    """Targets by the key of their example."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def put(self, key: int, targets: TeacherTargets) -> None:
        """Keeps the targets of an example."""
        # Cloned: a piece of a split tensor would hold the whole of it in memory.
        self._kept.put(key, {name: getattr(targets, name).clone() for name in _FIELDS})

    def __getitem__(self, key: int) -> TeacherTargets:
        return TeacherTargets(**self._kept.get(key))


Teachers = Sequence[TeacherTargets] | KeptTargets
