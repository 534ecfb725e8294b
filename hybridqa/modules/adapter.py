"""A PEFT LoRA folder as it lies on disk: its configuration, what it targets, and its tensors when they are asked for.

Knows nothing about manifests, stacks or base models, and reads no weights before `load`. Invariant: an adapter that was
read is plain LoRA of linear layers and nothing else, with tensors that agree with one another and with the
configuration, so `scale * B @ A` is all that it does to a layer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridqa.errors import CorruptModuleError, UnsupportedAdapterError
from hybridqa.modules.folders import known_sha256

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."

_KEY = re.compile(r"base_model\.model\.(?P<target>.+)\.lora_(?P<side>[AB])\.weight")
_INFIX_KEY = re.compile(r"base_model\.model\..+\.lora_[AB]\.(?P<adapter>.+)\.weight")
_DTYPES = frozenset({"BF16", "F16", "F32", "F64"})
# What an adapter does once it is trained does not depend on these; any other field must be empty or false.
_FIELDS_READ = frozenset(
    {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"}
)
_FIELDS_WITHOUT_EFFECT = frozenset(
    {
        "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
        "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern",
        "megatron_core", "qalora_group_size", "runtime_config", "loftq_config", "eva_config",
    }
)  # fmt: skip
_INITS_THAT_KEEP_THE_BASE = frozenset({"gaussian", "eva", "orthogonal"})  # PiSSA, OLoRA and the like change its weights


@dataclass(frozen=True, slots=True)
class LoraTarget:
    """One layer that an adapter changes."""

    rank: int
    inputs: int
    outputs: int
    scale: float  # alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA
    dtype: str  # as safetensors calls it; the wider one of A's and B's


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A LoRA folder whose configuration and tensor shapes have been checked; tensors stay on disk until `load`."""

    path: Path
    config: Mapping[str, Any]
    targets: Mapping[str, LoraTarget]  # by the layer's name in the base model, sorted

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max(target.rank for target in self.targets.values())

    @property
    def digest(self) -> str:
        """A hash of the folder's configuration and weights; costs a read of the file once per process."""
        return f"{known_sha256(self.path / CONFIG_FILE)}{known_sha256(self.path / WEIGHTS_FILE)}"

    def load(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A (rank, inputs) and B (outputs, rank) of every target, by its name. Raises `CorruptModuleError`."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path / WEIGHTS_FILE
        try:
            # Read, not mapped: a mapped file that shrinks kills the process instead of raising.
            tensors = load(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise damaged(path, f"cannot be read: {error}") from error
        try:
            pairs = {
                name: (tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"])
                for name in self.targets
            }
        except KeyError as error:
            raise damaged(path, f"has lost tensor {error}") from error
        for name, (a_R_I, b_O_R) in pairs.items():
            target = self.targets[name]
            if a_R_I.shape != (target.rank, target.inputs) or b_O_R.shape != (target.outputs, target.rank):
                raise damaged(path, f"has changed the shape of {name!r} since it was opened")
        return pairs

    def check_values(self) -> None:
        """Raises `CorruptModuleError` when a weight is no finite number."""
        for name, pair in self.load().items():
            if not all(all_finite(tensor) for tensor in pair):
                raise damaged(self.path / WEIGHTS_FILE, f"has values in {name!r} that are no finite numbers")


def read_adapter(folder: Path) -> LoraAdapter:
    """The adapter in a PEFT folder, all checked but its values.

    Raises `UnsupportedAdapterError` for anything but plain LoRA of linear layers, and `CorruptModuleError` for files
    that are missing, damaged or disagree.
    """
    config = _read_config(folder / CONFIG_FILE)
    _refuse_unsupported(config, folder)
    path = folder / WEIGHTS_FILE
    shapes = _read_shapes(path)
    targets: dict[str, LoraTarget] = {}
    for name, sides in sorted(_pair_up(shapes, path).items()):
        (a_shape, a_dtype), (b_shape, b_dtype) = sides["A"], sides["B"]
        if len(a_shape) != 2 or len(b_shape) != 2:
            raise UnsupportedAdapterError(
                f"{str(path)!r}: {name!r} has tensors of shape {a_shape} and {b_shape}; expected two "
                "matrices each, as for linear layers. Train the adapter on linear layers only."
            )
        rank, scale = _rank_and_scale(config, name, folder)
        if a_shape[0] != rank or b_shape[1] != rank:
            raise damaged(
                path, f"{name!r} has A of shape {a_shape} and B of {b_shape}, where the configuration says rank {rank}"
            )
        if 0 in (*a_shape, *b_shape):
            raise damaged(path, f"{name!r} has an empty tensor")
        dtypes = {a_dtype, b_dtype}
        if not dtypes <= _DTYPES:
            raise UnsupportedAdapterError(
                f"{str(path)!r}: {name!r} is stored as {sorted(dtypes)}; expected one of {sorted(_DTYPES)}. "
                "Convert the adapter's weights to bfloat16."
            )
        dtype = a_dtype if len(dtypes) == 1 else ("F64" if "F64" in dtypes else "F32")
        targets[name] = LoraTarget(rank, a_shape[1], b_shape[0], scale, dtype)
    return LoraAdapter(folder, config, targets)


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinities; many times faster than `isfinite().all()`."""
    low, high = tensor.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def damaged(path: Path, what: str) -> CorruptModuleError:
    """The error that says that a module's file is not what it was."""
    return CorruptModuleError(
        f"{str(path)!r} {what}; expected the file as it was written. Run `hybridqa refresh --force` for its "
        "document, `hybridqa modules rollback MODULE` to an older version, or import it again."
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(path, f"cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise damaged(path, "holds no object")
    return config


def _refuse_unsupported(config: Mapping[str, Any], folder: Path) -> None:
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type is {config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {config['bias']!r}")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _INITS_THAT_KEEP_THE_BASE:
        problems.append(f"init_lora_weights is {init!r}")
    known = _FIELDS_READ | _FIELDS_WITHOUT_EFFECT | {"bias", "init_lora_weights"}
    problems.extend(f"{name} is {value!r}" for name, value in config.items() if value and name not in known)
    if problems:
        raise UnsupportedAdapterError(
            f"adapter {str(folder)!r} is not plain LoRA: {'; '.join(problems)}. Expected peft_type LORA without bias, "
            "modules_to_save, DoRA or other additions; train it again with a plain LoraConfig."
        )


def _read_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor, from the header; the header must account for the whole file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = ((key, file.get_slice(key)) for key in file.keys())  # noqa: SIM118
            return {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices}
    except (OSError, SafetensorError) as error:
        raise damaged(path, f"cannot be read: {error}") from error


def _pair_up(
    shapes: Mapping[str, tuple[tuple[int, ...], str]], path: Path
) -> dict[str, dict[str, tuple[tuple[int, ...], str]]]:
    pairs: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {}
    for key, shape in shapes.items():
        match = _KEY.fullmatch(key)
        if match is None:
            infix = _INFIX_KEY.fullmatch(key)
            hint = "write the adapter with peft's save_pretrained"
            if infix is not None:
                hint = f"it carries the adapter's name {infix['adapter']!r}, as a raw state_dict does: {hint}"
            raise UnsupportedAdapterError(
                f"{str(path)!r} has a tensor {key!r}; expected names like "
                f"'{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight' and no others; {hint}."
            )
        pairs.setdefault(match["target"], {})[match["side"]] = shape
    for name, sides in pairs.items():
        if len(sides) != 2:
            raise damaged(path, f"has only lora_{next(iter(sides))} of {name!r}")
    if not pairs:
        raise damaged(path, "holds no tensors")
    return pairs


def _rank_and_scale(config: Mapping[str, Any], name: str, folder: Path) -> tuple[int, float]:
    """What PEFT would take for this layer: the first pattern that matches the end of its name, or the default."""
    try:
        rank = _by_pattern(config.get("rank_pattern") or {}, name, config["r"])
        alpha = float(_by_pattern(config.get("alpha_pattern") or {}, name, config["lora_alpha"]))
        if not isinstance(rank, int) or rank < 1 or not math.isfinite(alpha):
            raise ValueError(f"rank {rank!r} and alpha {alpha!r} for {name!r}")
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise damaged(folder / CONFIG_FILE, f"has no usable rank and alpha: {error!r}") from error
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
