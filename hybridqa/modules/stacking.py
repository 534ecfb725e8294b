"""Composes several LoRA adapters into one that does what they do together: concatenation along the rank.

Knows nothing about the base model, the registry or caches, and loads no model. Invariant: for every layer,
`B @ A` of the result is the sum of `weight * scale * B @ A` over the parts (exact but for the rounding of B to the
output's dtype), the result's own scale is 1, and any order of the same parts gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridqa.errors import AdapterError, BaseModelMismatchError, RankLimitError, UnsupportedAdapterError
from hybridqa.files import atomic_dir
from hybridqa.modules.adapter import (
    CONFIG_FILE,
    PREFIX,
    WEIGHTS_FILE,
    LoraAdapter,
    LoraTarget,
    all_finite,
    read_adapter,
)
from hybridqa.modules.folders import full_storage_named
from hybridqa.types import Weight

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_TORCH_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def compose(
    parts: Sequence[tuple[Path | LoraAdapter, Weight]],
    destination: Path,
    *,
    max_rank: int,
    dtype: str | None = None,
) -> int:
    """Writes the sum of the weighted adapters as a new PEFT folder at `destination` and returns its rank.

    `dtype` is a torch name such as "float32"; without it, the widest of the parts'. Layers where a weight is 0 take no
    rank. Raises `FileExistsError`, `RankLimitError`, `UnsupportedAdapterError`, `CorruptModuleError`,
    `BaseModelMismatchError`, `StorageFullError`.
    """
    with full_storage_named(destination), atomic_dir(destination) as folder:
        return compose_into(folder, parts, max_rank=max_rank, dtype=dtype)


def compose_into(
    folder: Path,
    parts: Sequence[tuple[Path | LoraAdapter, Weight]],
    *,
    max_rank: int,
    dtype: str | None = None,
) -> int:
    """`compose` into a folder that is there already, for callers that make it atomic themselves."""
    from safetensors.torch import save

    read = [(part if isinstance(part, LoraAdapter) else read_adapter(part), weight) for part, weight in parts]
    ordered = sorted(read, key=lambda item: (item[0].digest, _canonical(item[1])))
    factors = [_factors(adapter, weight) for adapter, weight in ordered]
    adapters = [adapter for adapter, _ in ordered]
    layers = _layers(adapters, factors)
    rank = _check_rank(adapters, factors, max_rank)
    fan_in_fan_out = _shared(adapters, "fan_in_fan_out")
    tensors = _concatenate(adapters, factors, layers, rank, dtype)
    weights = save(tensors, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).write_bytes(weights)
    config = {
        "alpha_pattern": {},
        "base_model_name_or_path": next(
            (name for adapter in adapters if (name := adapter.config.get("base_model_name_or_path"))), None
        ),
        "bias": "none",
        "fan_in_fan_out": bool(fan_in_fan_out),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": sorted(layers),
        "task_type": _shared(adapters, "task_type"),
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return rank


def _canonical(weight: Weight) -> str:
    """The same text for the same weight; refuses what is no finite number."""
    values = list(weight.values()) if isinstance(weight, Mapping) else [weight]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise AdapterError(f"a stack's weight is {value!r}; expected a finite number. Give a number such as 1.0.")
    if isinstance(weight, Mapping):
        return json.dumps({name: float(value) for name, value in weight.items()}, sort_keys=True)
    return repr(float(weight))


def _factors(adapter: LoraAdapter, weight: Weight) -> dict[str, float]:
    """What multiplies `B @ A` of each layer that has any effect."""
    if isinstance(weight, Mapping):
        missing, unknown = adapter.targets.keys() - weight.keys(), weight.keys() - adapter.targets.keys()
        if missing or unknown:
            raise AdapterError(
                f"the weights of adapter {str(adapter.path)!r} do not name its layers: missing {sorted(missing)[:3]}, "
                f"unknown {sorted(unknown)[:3]}; expected one for each of its {len(adapter.targets)} layers."
            )
        weights = {name: float(weight[name]) for name in adapter.targets}
    else:
        weights = dict.fromkeys(adapter.targets, float(weight))
    return {name: weights[name] * target.scale for name, target in adapter.targets.items() if weights[name] != 0.0}


def _layers(adapters: Sequence[LoraAdapter], factors: Sequence[Mapping[str, float]]) -> dict[str, LoraTarget]:
    """Every layer that the stack changes; parts must agree on its size."""
    layers: dict[str, LoraTarget] = {}
    for adapter, scales in zip(adapters, factors, strict=True):
        for name in scales:
            target = adapter.targets[name]
            known = layers.setdefault(name, target)
            if (known.inputs, known.outputs) != (target.inputs, target.outputs):
                raise BaseModelMismatchError(
                    f"adapter {str(adapter.path)!r} takes {name!r} for a layer of {target.inputs} inputs and "
                    f"{target.outputs} outputs, another part of the stack for {known.inputs} and {known.outputs}; "
                    "expected adapters of one base model. `hybridqa modules` shows which model each belongs to."
                )
    if not layers:
        raise AdapterError(
            "a stack has no part with a weight other than 0; expected one or more. Use no adapter at all."
        )
    return dict(sorted(layers.items()))


def _check_rank(adapters: Sequence[LoraAdapter], factors: Sequence[Mapping[str, float]], max_rank: int) -> int:
    """The largest sum of ranks in any layer."""
    sums: dict[str, int] = {}
    for adapter, scales in zip(adapters, factors, strict=True):
        for name in scales:
            sums[name] = sums.get(name, 0) + adapter.targets[name].rank
    rank = max(sums.values())
    if rank > max_rank:
        ranks = " + ".join(str(adapter.rank) for adapter, scales in zip(adapters, factors, strict=True) if scales)
        raise RankLimitError(
            f"a stack of ranks {ranks} needs rank {rank}; expected at most {max_rank}. "
            "Plug in fewer modules, or raise max_lora_rank in hybridqa.toml."
        )
    return rank


def _shared(adapters: Sequence[LoraAdapter], field: str) -> Any:
    """A field that the parts must agree on; None and false count as left out."""
    values = {adapter.config.get(field) or None for adapter in adapters}
    if len(values) > 1:
        raise UnsupportedAdapterError(
            f"the parts of a stack have different {field!r}: {sorted(map(str, values))}; expected the same in all. "
            "Train them again for one kind of model."
        )
    return values.pop()


def _concatenate(
    adapters: Sequence[LoraAdapter],
    factors: Sequence[Mapping[str, float]],
    layers: Mapping[str, LoraTarget],
    rank: int,
    dtype: str | None,
) -> dict[str, Tensor]:
    """A rows stacked, B columns stacked with the factors folded in; layers of a smaller rank are filled up with zeros.

    Zeros, not a rank_pattern: every reader then agrees on one rank and one scale, also those that ignore patterns.
    """
    import torch

    out = _output_dtype(adapters, dtype)
    wide = torch.promote_types(out, torch.float32)
    made: dict[str, Tensor] = {}
    filled = dict.fromkeys(layers, 0)
    for name, layer in layers.items():
        made[f"{PREFIX}{name}.lora_A.weight"] = torch.zeros(rank, layer.inputs, dtype=out)
        made[f"{PREFIX}{name}.lora_B.weight"] = torch.zeros(layer.outputs, rank, dtype=out)
    for adapter, scales in zip(adapters, factors, strict=True):  # one part in memory at a time
        tensors = adapter.load() if scales else {}
        for name, scale in scales.items():
            a_R_I, b_O_R = tensors[name]
            start, end = filled[name], filled[name] + len(a_R_I)
            made[f"{PREFIX}{name}.lora_A.weight"][start:end] = a_R_I
            made[f"{PREFIX}{name}.lora_B.weight"][:, start:end] = b_O_R.to(wide) * scale
            filled[name] = end
    for key, tensor in made.items():
        if not all_finite(tensor):
            for adapter in adapters:
                adapter.check_values()  # names the part, if it is one
            raise AdapterError(
                f"a stack overflows {out} at {key!r}; expected weights that keep it finite. Give smaller weights, or "
                'dtype="float32".'
            )
    return made


def _output_dtype(adapters: Sequence[LoraAdapter], dtype: str | None) -> torch.dtype:
    import torch

    if dtype is not None and dtype not in _TORCH_DTYPES.values():
        raise AdapterError(f"dtype is {dtype!r}; expected one of {sorted(_TORCH_DTYPES.values())}.")
    names = [dtype] if dtype is not None else [
        _TORCH_DTYPES[target.dtype] for adapter in adapters for target in adapter.targets.values()
    ]  # fmt: skip
    widest: torch.dtype = getattr(torch, names[0])
    for name in set(names):
        widest = torch.promote_types(widest, getattr(torch, name))
    return widest
