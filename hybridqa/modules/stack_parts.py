"""What a stack is made of: modules and weights in one canonical form, which gives it its name and its record.

Knows nothing about where stacks are kept or who holds them. Invariant: the same modules with the same effect on every
layer have the same name, in whatever order and form their weights were given, and another effect has another name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hybridqa.errors import CorruptModuleError
from hybridqa.files import sha256_file
from hybridqa.modules.adapter import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from hybridqa.modules.manifest import check_files, read_manifest
from hybridqa.modules.stacking import compose_into
from hybridqa.types import Module, ModuleChoice, Weight

RECORD_FILE = "stack.json"
DEFAULT_WEIGHT = 1.0  # of a layer that a mapping does not name


@dataclass(frozen=True, slots=True)
class StackPart:
    """One module of a stack."""

    module: Module
    files: Mapping[str, str]  # file name → sha256, from the manifest
    weight: Weight  # one number, or one for each layer of the module where they differ

    def as_record(self) -> dict[str, Any]:
        """What the name hashes and the record holds."""
        weight = dict(self.weight) if isinstance(self.weight, Mapping) else self.weight
        return {"module": self.module.name, "files": dict(self.files), "weight": weight}


def parts_of(choices: Sequence[ModuleChoice]) -> list[StackPart]:
    """The choices that have any effect, in canonical form and order. Raises `CorruptModuleError`."""
    parts = []
    for choice in choices:
        if choice.weight == 0.0:
            continue
        files = _files(choice.module)
        weight: Weight = choice.weight
        if isinstance(weight, Mapping):
            weight = fitted(weight, _layers(choice.module.path, files[CONFIG_FILE], files[WEIGHTS_FILE]))
        else:
            weight = float(weight)
        if weight != 0.0:
            parts.append(StackPart(choice.module, files, weight))
    return sorted(parts, key=lambda part: json.dumps(part.as_record(), sort_keys=True))


def fitted(weight: Mapping[str, float], layers: Sequence[str]) -> Weight:
    """The weight for a module of these layers: all of them named and no other, or one number where all are alike."""
    by_layer = {name: float(weight.get(name, DEFAULT_WEIGHT)) for name in sorted(layers)}
    values = set(by_layer.values())
    return values.pop() if len(values) == 1 else by_layer


def stack_name(parts: Sequence[StackPart]) -> str:
    """The name of the stack of these parts, as `parts_of` gives them."""
    text = json.dumps([part.as_record() for part in parts], sort_keys=True)
    return f"stack-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def write_stack(folder: Path, name: str, parts: Sequence[StackPart], max_rank: int) -> int:
    """Composes into `folder`, writes the record of what was composed, and gives the rank. Raises `AdapterError`."""
    for part in parts:
        check_files(part.module.path, read_manifest(part.module.path))
    adapters = [(read_adapter(part.module.path), part.weight) for part in parts]
    rank = compose_into(folder, adapters, max_rank=max_rank)
    files = {file: sha256_file(folder / file) for file in (CONFIG_FILE, WEIGHTS_FILE)}
    record = {
        "format": 1,
        "name": name,
        "rank": rank,
        "parts": [part.as_record() for part in parts],
        "files": files,
    }
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return rank


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a stack; None when it is missing or damaged."""
    try:
        record = json.loads((folder / RECORD_FILE).read_bytes())
        if record["format"] == 1 and isinstance(record["rank"], int) and isinstance(record["files"], dict):
            parts = [{"module": str(part["module"]), "weight": _weight(part["weight"])} for part in record["parts"]]
            return {**record, "parts": parts}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _weight(value: Any) -> Weight:
    return {str(name): float(each) for name, each in value.items()} if isinstance(value, dict) else float(value)


def _files(module: Module) -> dict[str, str]:
    """The hashes that the module's manifest vouches for; they are not compared with the files here."""
    files = read_manifest(module.path).files
    try:
        return {name: files[name] for name in (CONFIG_FILE, WEIGHTS_FILE)}
    except KeyError as error:
        raise CorruptModuleError(
            f"the manifest of module {module.name!r} does not vouch for {error}; expected the hash of each file. "
            "Run `hybridqa refresh --force` for its document, or import it again."
        ) from error


@lru_cache(maxsize=1024)
def _layers(path: Path, *hashes: str) -> tuple[str, ...]:
    """The layers of a module; published files never change, so that they are read once for each content."""
    return tuple(read_adapter(path).targets)
