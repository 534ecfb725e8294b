"""Modules read when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from hybridqa.training.lazy_companions import LazyCompanions
from hybridqa.training.lora import Companion

ONE, TWO = Path("one"), Path("two")


def test_each_place_has_its_own_and_memory_is_bounded() -> None:
    read: list[Path] = []

    def load(folders: Sequence[Path]) -> Companion:
        (folder,) = folders
        read.append(folder)
        return Companion({folder.name: (torch.zeros(2, 3), torch.zeros(3, 2))})  # 48 bytes

    def names(found: LazyCompanions) -> list[str | None]:
        return [None if companion is None else next(iter(companion.factors)) for companion in found]

    places = [ONE, None, TWO, ONE]
    ample = LazyCompanions(places, load, 1000)
    assert names(ample) == ["one", None, "two", "one"] and len(ample) == 4
    assert read == [ONE, TWO]
    read.clear()
    tight = LazyCompanions(places, load, 50)
    assert names(tight) == ["one", None, "two", "one"]
    assert read == [ONE, TWO, ONE]
    assert tight[-1] is tight[0]
