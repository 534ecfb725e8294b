"""The lowest layers of a decoder, run once per sequence: without an adapter they say the same at every step.

Works on any transformers decoder that keeps its layers in one list and hands hidden states from layer to layer as the
first argument. Knows nothing about adapters. Invariant: a forward pass inside `replaced` gives what a whole one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hybridqa.errors import TrainingError


class _Captured(Exception):
    """Ends a forward pass once the lower layers have run."""


def decoder_layers(model: nn.Module, count: int) -> nn.ModuleList:
    """The list of a model's decoder layers. Raises `TrainingError` when none has `count` entries."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise TrainingError(f"no list of {count} decoder layers in {type(model).__name__!r}; train with first_layer = 0.")


def is_linear(part: nn.Module) -> bool:
    """Whether a module is a linear map that LoRA can stand beside."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(part, nn.Linear | Conv1D)


def linear_names(model: Any) -> list[str]:
    """The last name parts of all linear maps inside the decoder layers: what an adapter targets."""
    layers = decoder_layers(model, model.config.get_text_config().num_hidden_layers)
    names = {name.rpartition(".")[2] for name, part in layers.named_modules() if is_linear(part)}
    if not names:
        raise TrainingError(f"no linear maps in the layers of {type(model).__name__!r}; LoRA has nothing to adapt.")
    return sorted(names)


class FrozenLayers:
    """The first `count` layers of a decoder."""

    def __init__(self, model: Any, count: int) -> None:
        self.count = count
        layers = decoder_layers(model, model.config.get_text_config().num_hidden_layers)
        self._lower = [layers[place] for place in range(count)]
        self._next = layers[count]
        self._in_tuple = False  # whether a layer's result is a tuple that holds the hidden states; `capture` sees it

    def capture(self, run: Callable[[], Any]) -> Tensor:
        """What the lower layers hand on while `run` calls the model: (T, D). The rest of the pass is left out.

        Comes before `replaced`: it learns how a layer hands on.
        """
        kept: list[Tensor] = []

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept.append(args[0] if args else kwargs["hidden_states"])
            raise _Captured

        def look(_: nn.Module, __: Any, result: Any) -> None:
            self._in_tuple = isinstance(result, tuple)

        handles = (
            self._next.register_forward_pre_hook(hook, with_kwargs=True),
            self._lower[-1].register_forward_hook(look),
        )
        try:
            run()
        except _Captured:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return kept[0][0].detach().clone()

    @contextmanager
    def replaced(self, hidden_T_D: Tensor) -> Iterator[None]:
        """Inside, the lower layers do nothing and the next one gets `hidden_T_D`."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (hidden_T_D[None], *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden_T_D[None]}

        handle = self._next.register_forward_pre_hook(hook, with_kwargs=True)
        for layer in self._lower:
            layer.forward = (
                _hand_on_in_tuple if self._in_tuple else _hand_on
            )  # on the instance: its attributes stay what the model expects
        try:
            yield
        finally:
            handle.remove()
            for layer in self._lower:
                del layer.forward


def _hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _hand_on_in_tuple(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
    return (hidden_states,)
