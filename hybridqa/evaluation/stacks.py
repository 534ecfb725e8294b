"""The adapters of a grid: modules and extractors composed, each set of them once, under a name that is its content.

Knows nothing about documents or questions. Invariant: a name always means the same bytes, so an engine or a record of
answers may go by it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from hybridqa.engine.protocol import Adapter
from hybridqa.modules.adapter import LoraAdapter, read_adapter
from hybridqa.modules.stacking import compose
from hybridqa.types import Weight


class GridStacks:
    """Composes into one folder, and finds there what was composed before."""

    def __init__(self, folder: Path, max_rank: int) -> None:
        self._folder = folder
        self._max_rank = max_rank
        self._known: dict[str, Adapter] = {}
        self.clear()  # of a run that was killed

    def adapter(self, parts: Sequence[tuple[LoraAdapter, Weight]]) -> Adapter | None:
        """One adapter for all the parts; None for no part. Raises an `AdapterError`."""
        if not parts:
            return None
        named = sorted(
            json.dumps([part.digest, weight if isinstance(weight, float) else dict(weight)], sort_keys=True)
            for part, weight in parts
        )
        name = f"grid-{hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]}"
        if name not in self._known:
            path = self._folder / name
            self._folder.mkdir(parents=True, exist_ok=True)
            rank = read_adapter(path).rank if path.is_dir() else compose(parts, path, max_rank=self._max_rank)
            self._known[name] = Adapter(name, path, rank)
        return self._known[name]

    def clear(self) -> None:
        """Removes all of them: they are made again in moments, and for many questions they would fill a disk."""
        self._known.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
