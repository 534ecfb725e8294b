"""A task extractor as the grid plugs it in: a PEFT folder, and how much its companions' modules weigh beside it.

Two come with the package for the embedded model: one trained with modules, one with passages alone.

Knows nothing about how it was trained. Invariant: one that was loaded belongs to the base model in use, and its weights
are finite numbers by layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridqa.errors import AdapterError, BaseModelMismatchError
from hybridqa.modules.adapter import LoraAdapter, read_adapter
from hybridqa.modules.manifest import MANIFEST_FILE
from hybridqa.types import Weight

BUNDLED = Path(__file__).parent.parent / "extractors"
WITH_MODULES, PASSAGES_ALONE = "extractor", "extractor-passages"


@dataclass(frozen=True, slots=True)
class Extractor:
    """A task LoRA, plugged in with weight 1."""

    adapter: LoraAdapter
    module_weights: Mapping[str, float]  # by layer; empty: 1 in every layer
    base_model_hash: str | None

    @classmethod
    def load(cls, folder: Path) -> Extractor:
        """Reads and checks an extractor's folder. Raises an `AdapterError` that says what was expected."""
        adapter = read_adapter(folder)
        path = folder / MANIFEST_FILE
        try:
            manifest: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AdapterError(
                f"extractor {str(folder)!r} has no readable {MANIFEST_FILE}: {error}; expected one with "
                "`module_weights`. Make it with `hybridqa train-extractor`."
            ) from error
        weights = manifest.get("module_weights") if isinstance(manifest, dict) else None
        if not isinstance(weights, dict) or not all(map(_is_weight, weights.values())):
            raise AdapterError(
                f"{str(path)!r} has no usable 'module_weights'; expected an object of layer names and numbers, "
                "empty where modules weigh 1 in every layer."
            )
        return cls(adapter, weights, manifest.get("base_model_hash"))

    def check_base_model(self, digest: str) -> None:
        """Raises `BaseModelMismatchError` when its manifest names another base model."""
        if self.base_model_hash not in (None, digest):
            raise BaseModelMismatchError(
                f"extractor {str(self.adapter.path)!r} belongs to the base model {str(self.base_model_hash)[:12]!r}; "
                f"expected {digest[:12]!r}, the one in use. Set `model`, or train an extractor for this one."
            )

    def weight_of(self, module: LoraAdapter) -> Weight:
        """What a document's module is weighted with beside this extractor. Raises `AdapterError`."""
        if not self.module_weights:
            return 1.0
        if missing := sorted(module.targets.keys() - self.module_weights.keys()):
            raise AdapterError(
                f"extractor {str(self.adapter.path)!r} has no weight for layer {missing[0]!r} of module "
                f"{str(module.path)!r}; expected one for each layer. Train it beside modules of this recipe."
            )
        return {name: float(self.module_weights[name]) for name in module.targets}


def bundled(model: str) -> tuple[Path | None, Path | None]:
    """The folders of the extractors that come with the package for a model's alias: with modules, passages alone."""
    folder = BUNDLED / model
    if not model or Path(model).name != model or not (folder / WITH_MODULES / MANIFEST_FILE).is_file():
        return None, None
    alone = folder / PASSAGES_ALONE
    return folder / WITH_MODULES, alone if (alone / MANIFEST_FILE).is_file() else None


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
