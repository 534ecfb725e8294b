"""Tensors kept between steps within a memory budget: the first ones in memory, the rest in files.

Knows nothing about what the tensors mean. Invariant: `get` gives what was put, bit for bit, and no more than the budget
is held in memory; the files are gone with the object.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from safetensors.torch import load, save
from torch import Tensor


class Kept:
    """A shelf of named groups of tensors; close it, or use it in a `with` block."""

    def __init__(self, budget_bytes: int, folder: Path | None = None) -> None:
        """`folder` is where the files go, a temporary folder inside it; without it, the system's place for those."""
        self.room = budget_bytes
        self._memory: dict[int, Mapping[str, Tensor]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="kept-", dir=folder, ignore_cleanup_errors=True)

    def put(self, key: int, tensors: Mapping[str, Tensor]) -> None:
        """Keeps a group; one that the budget has no room for goes to a file."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if size <= self.room:
            self.room -= size
            self._memory[key] = tensors
        else:
            whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            self._path(key).write_bytes(save(whole))

    def get(self, key: int) -> Mapping[str, Tensor]:
        """The group that was put. Raises `KeyError`."""
        if key in self._memory:
            return self._memory[key]
        try:
            return load(self._path(key).read_bytes())
        except FileNotFoundError as error:
            raise KeyError(key) from error

    def __contains__(self, key: int) -> bool:
        return key in self._memory or self._path(key).exists()

    def _path(self, key: int) -> Path:
        return Path(self._folder.name) / f"{key}.safetensors"

    def close(self) -> None:
        """Lets go of everything."""
        self._memory.clear()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
