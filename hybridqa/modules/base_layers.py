"""The linear layers of a base model by name and size, read from its configuration alone.

Knows nothing about adapters. Invariant: no weight is loaded, and names are those that transformers gives to the layers,
which are those in a PEFT folder.
"""

from __future__ import annotations

from pathlib import Path

from hybridqa.errors import ModelError


def linear_layers(folder: Path) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every linear layer of the model in `folder`. Raises `ModelError`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"transformers could not read the shape of the model in {str(folder)!r}: {error}. Expected a decoder model "
            "that it knows; download the model's folder again."
        ) from error
    layers: dict[str, tuple[int, int]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layers[name] = (layer.in_features, layer.out_features)
        elif isinstance(layer, Conv1D):  # of GPT-2 and its kin: the weight lies the other way round
            inputs, outputs = layer.weight.shape
            layers[name] = (inputs, outputs)
    return layers
