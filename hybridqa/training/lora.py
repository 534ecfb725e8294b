"""LoRA on a decoder's linear maps: one adapter that learns, and others that stand beside it and don't.

Hooks add what the adapters say, so the model itself is never taken apart; products run in the model's own precision,
while the weights that learn are float32. Knows nothing about losses or prompts. Invariant: with nothing switched on the
model answers as if nothing were here, and what is saved is a plain PEFT folder that does what was learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from hybridqa.errors import BaseModelMismatchError
from hybridqa.files import atomic_write_bytes
from hybridqa.modules.adapter import PREFIX, WEIGHTS_FILE, read_adapter
from hybridqa.training.frozen import decoder_layers, is_linear


@dataclass(frozen=True, slots=True)
class Companion:
    """Published adapters as one: for each layer that any of them changes, A (R, I) and B (O, R), scales folded in."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    count: int = 1  # adapters that it is the sum of

    @classmethod
    def load(cls, folders: Sequence[Path]) -> Companion:
        """The sum of PEFT folders, in float32. Raises what `read_adapter` raises."""
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for folder in folders:
            adapter = read_adapter(folder)
            for name, (a_R_I, b_O_R) in adapter.load().items():
                parts.setdefault(name, []).append((a_R_I.float(), b_O_R.float() * adapter.targets[name].scale))
        return cls(
            {
                name: (torch.cat([a_R_I for a_R_I, _ in pairs]), torch.cat([b_O_R for _, b_O_R in pairs], dim=1))
                for name, pairs in parts.items()
            },
            len(folders),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Companion:
        """The same on a device, in a model's precision."""
        factors = {
            name: (a_R_I.to(device, dtype), b_O_R.to(device, dtype)) for name, (a_R_I, b_O_R) in self.factors.items()
        }
        return Companion(factors, self.count)


class LoraMaps:
    """The adapter under training, hooked onto the linear maps of a decoder's layers."""

    def __init__(
        self, model: Any, *, rank: int, alpha: int, first_layer: int, seed: int, learn_weights: bool = False
    ) -> None:
        """An adapter on all linear maps from `first_layer` on; its first output equals the base model's.

        With `learn_weights` each map also learns two numbers that begin at 1: how much the adapter itself counts there,
        and how much a companion does.
        """
        self.rank, self.alpha, self.first_layer = rank, alpha, first_layer
        layers = decoder_layers(model, model.config.get_text_config().num_hidden_layers)
        self._layer_of = {id(part): place for place, layer in enumerate(layers) for part in layer.modules()}
        self.maps = {
            name: part for name, part in model.named_modules() if id(part) in self._layer_of and is_linear(part)
        }
        self.trained = [name for name, part in self.maps.items() if self._layer_of[id(part)] >= first_layer]
        self.parameters: dict[str, nn.Parameter] = {}
        random = torch.Generator().manual_seed(seed)
        for name in self.trained:
            weight = self.maps[name].weight
            outputs, inputs = weight.shape if isinstance(self.maps[name], nn.Linear) else reversed(weight.shape)
            bound = 1 / math.sqrt(inputs)  # as PEFT draws it
            a_R_I = (torch.rand(rank, inputs, generator=random) * 2 - 1) * bound
            self.parameters[f"{name}.lora_A.weight"] = nn.Parameter(a_R_I.to(weight.device))
            self.parameters[f"{name}.lora_B.weight"] = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))
        if learn_weights:
            for name, part in self.maps.items():
                ones = [f"{name}.companion_weight"] + [f"{name}.own_weight"] * (name in self.trained)
                for key in ones:
                    self.parameters[key] = nn.Parameter(torch.ones((), device=part.weight.device))
        self.resting = False  # while it is, the model answers as if neither the adapter nor a companion were here
        self._on = True
        self._companion: Companion | None = None
        self._share = 1.0
        self._handles = [part.register_forward_hook(self._adder(name)) for name, part in self.maps.items()]

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def only(self, *, adapter: bool, companion: Companion | None = None, share: float = 1.0) -> Iterator[None]:
        """Inside, the model answers with or without the adapter, and with `companion` or none; each counts `share`."""
        before = self._on, self._companion, self._share
        self._on, self._companion, self._share = adapter, companion, share
        try:
            yield
        finally:
            self._on, self._companion, self._share = before

    def echo(self, weight: float) -> Companion:
        """The adapter as it is now, `weight` times: a companion that moves answers as another one's form would."""
        scale = weight * self.alpha / self.rank
        factors = {}
        for name in self.trained:
            a, b = (self.parameters[f"{name}.lora_{side}.weight"].detach() for side in "AB")
            dtype = self.maps[name].weight.dtype
            factors[name] = a.to(dtype), (b * scale).to(dtype)
        return Companion(factors)

    def factors(self, name: str) -> tuple[Tensor, Tensor, float] | None:
        """The adapter's A (R, I), B (O, R) and scale in one linear map, as they learn; None where it has none."""
        a_R_I, b_O_R = (self.parameters.get(f"{name}.lora_{side}.weight") for side in "AB")
        return None if a_R_I is None or b_O_R is None else (a_R_I, b_O_R, self.alpha / self.rank)

    def lowest(self, companion: Companion | None) -> int:
        """The lowest layer that the adapter or the companion changes."""
        touched = [self._layer_of[id(self.maps[name])] for name in (companion.factors if companion else ())]
        return min([self.first_layer, *touched])

    def check(self, companion: Companion) -> Companion:
        """The companion itself, when it fits this model. Raises `BaseModelMismatchError`."""
        for name, (a_R_I, b_O_R) in companion.factors.items():
            known = name in self.maps
            shape = tuple(self.maps[name].weight.shape) if known else ()
            if sorted(shape) != sorted((b_O_R.shape[0], a_R_I.shape[1])):
                raise BaseModelMismatchError(
                    f"an adapter for a layer {name!r} of {a_R_I.shape[1]} inputs and {b_O_R.shape[0]} outputs stands "
                    f"beside the one that learns; expected one of this base model, where it has {shape or 'no such'}. "
                    "`hybridqa modules` shows which model each belongs to."
                )
        return companion

    def _adder(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        a = self.parameters.get(f"{name}.lora_A.weight")
        b = self.parameters.get(f"{name}.lora_B.weight")
        own, other = (self.parameters.get(f"{name}.{key}_weight") for key in ("own", "companion"))
        scale = self.alpha / self.rank

        def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self.resting:
                return None
            companion = self._companion.factors.get(name) if self._companion is not None else None
            if companion is None and (a is None or not self._on):
                return None
            x = args[0]
            if companion is not None:
                said = F.linear(F.linear(x, companion[0]) * self._share, companion[1])
                output = output + (said if other is None or not self._on else said * other.to(x.dtype))
            if a is not None and b is not None and self._on:
                counts = scale * self._share
                inner = F.linear(x, a.to(x.dtype)) * (counts if own is None else (own * counts).to(x.dtype))
                output = output + F.linear(inner, b.to(x.dtype))
            return output

        return add

    def companion_weights(self) -> dict[str, float]:
        """What a companion counts in each layer; empty when that was not learned."""
        return {
            name.removesuffix(".companion_weight"): float(weight.detach())
            for name, weight in self.parameters.items()
            if name.endswith(".companion_weight")
        }

    def save(self, folder: Path, base_model: str | None, targets: Sequence[str], layers: int) -> None:
        """Writes the adapter as a PEFT folder, weights in bfloat16, and rounds those that are attached alike."""
        from peft import LoraConfig

        tensors: dict[str, Tensor] = {}
        with torch.no_grad():
            for name in self.trained:
                own = self.parameters.get(f"{name}.own_weight")
                if own is not None:
                    self.parameters[f"{name}.lora_B.weight"].mul_(own)
                    own.fill_(1.0)
                for side in "AB":
                    weight = self.parameters[f"{name}.lora_{side}.weight"]
                    rounded = weight.to(torch.bfloat16)
                    weight.copy_(rounded)
                    tensors[f"{PREFIX}{name}.lora_{side}.weight"] = rounded.cpu().contiguous()
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=0.0,
            target_modules=sorted(targets),
            layers_to_transform=list(range(self.first_layer, layers)) if self.first_layer else None,
            fan_in_fan_out=any(not isinstance(part, nn.Linear) for part in self.maps.values()),
            inference_mode=True,
            base_model_name_or_path=base_model,  # a name: a path would tell of this machine
        )
        config.save_pretrained(str(folder))
        atomic_write_bytes(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
