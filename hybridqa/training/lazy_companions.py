"""Documents' modules that stand beside an adapter in training, read when they are needed and kept while there is room.

Knows nothing about what they are of. Invariant: what is given for a place is that place's module, however often it has
been read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

from hybridqa.training.lora import Companion


class LazyCompanions(Sequence[Companion | None]):
    """A companion, or none, for each list of examples; many lists may name one folder."""

    def __init__(
        self, folders: Sequence[Path | None], load: Callable[[Sequence[Path]], Companion], budget_bytes: int
    ) -> None:
        """`load` reads a folder; at most about `budget_bytes` are kept, and always the last one."""
        self._folders = folders
        self._load = load
        self._budget = budget_bytes
        self._kept: OrderedDict[Path, Companion] = OrderedDict()

    def __len__(self) -> int:
        return len(self._folders)

    @overload
    def __getitem__(self, place: int) -> Companion | None: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Companion | None]: ...
    def __getitem__(self, place: int | slice) -> Companion | Sequence[Companion | None] | None:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        folder = self._folders[place]
        return None if folder is None else self.read(folder)

    def read(self, folder: Path) -> Companion:
        """The module in a folder."""
        if folder in self._kept:
            self._kept.move_to_end(folder)
            return self._kept[folder]
        found = self._load([folder])
        self._kept[folder] = found
        while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > self._budget:
            self._kept.popitem(last=False)
        return found


def _bytes(companion: Companion) -> int:
    return sum(tensor.numel() * tensor.element_size() for pair in companion.factors.values() for tensor in pair)
