"""Reading LoRA folders: what is taken, and what is refused with which error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from module_folders import LAYERS, write_lora
from safetensors.torch import load_file, save_file

from hybridqa.errors import CorruptModuleError, UnsupportedAdapterError
from hybridqa.modules.adapter import read_adapter

LAYER = "model.layers.0.mlp.up_proj"


def rewrite(folder: Path, change: Any) -> None:
    """Passes the folder's tensors through `change`, in place."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_reads_shapes_scales_and_tensors(tmp_path: Path) -> None:
    adapter = read_adapter(write_lora(tmp_path / "a", rank=4, alpha=6, dtype=torch.bfloat16))
    assert list(adapter.targets) == sorted(LAYERS)
    target = adapter.targets[LAYER]
    assert (target.rank, target.inputs, target.outputs, target.scale, target.dtype) == (4, 12, 20, 1.5, "BF16")
    a_R_I, b_O_R = adapter.load()[LAYER]
    assert a_R_I.shape == (4, 12) and b_O_R.shape == (20, 4) and a_R_I.dtype == torch.bfloat16


def test_patterns_and_rank_stabilisation_give_the_scales_that_peft_gives(tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.sup = (torch.nn.Linear(6, 6) for _ in range(3))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(Block() for _ in range(2))

    patterns: dict[str, Any] = {
        "rank_pattern": {"up": 3, "layers.1.*": 2},
        "alpha_pattern": {r"layers\.1\.down": 7, "up": 5},
    }
    config = LoraConfig(r=4, lora_alpha=9, target_modules=["up", "down", "sup"], use_rslora=True, **patterns)
    model = inject_adapter_in_model(config, Net())
    expected = {
        name: (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "scaling")
    }
    folder = write_lora(
        tmp_path / "a", rank=4, alpha=9, use_rslora=True, layers=dict.fromkeys(expected, (6, 6)),
        ranks={name: rank for name, (rank, _) in expected.items()}, **patterns,
    )  # fmt: skip
    found = {name: (target.rank, target.scale) for name, target in read_adapter(folder).targets.items()}
    assert found.keys() == expected.keys() and len(set(expected.values())) >= 4
    for name, (rank, scale) in expected.items():
        assert found[name][0] == rank and math.isclose(found[name][1], scale)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True), ("bias", "all"), ("modules_to_save", ["lm_head"]), ("peft_type", "LOHA"),
        ("lora_bias", True), ("layer_replication", [[0, 1]]), ("init_lora_weights", "pissa"),
        ("alora_invocation_tokens", [1]), ("target_parameters", ["w"]), ("some_new_trick", {"on": True}),
    ],
)  # fmt: skip
def test_anything_but_plain_lora_is_refused_by_name(tmp_path: Path, field: str, value: Any) -> None:
    folder = write_lora(tmp_path / "a", **{field: value})
    with pytest.raises(UnsupportedAdapterError, match=field):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("base_model.model.x.lora_A.default.weight", "adapter's name 'default'"),
        ("base_model.model.x.lora_embedding_A", "lora_embedding_A"),
        ("base_model.model.x.lora_magnitude_vector", "magnitude"),
        ("model.x.lora_A.weight", "model.x"),
    ],
)
def test_other_tensor_names_are_refused(tmp_path: Path, key: str, says: str) -> None:
    folder = write_lora(tmp_path / "a")
    rewrite(folder, lambda tensors: tensors.update({key: torch.zeros(2, 2)}))
    with pytest.raises(UnsupportedAdapterError, match=says):
        read_adapter(folder)


def test_convolutions_are_refused(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "a")
    rewrite(
        folder, lambda tensors: tensors.update({f"base_model.model.{LAYER}.lora_A.weight": torch.zeros(4, 3, 2, 2)})
    )
    with pytest.raises(UnsupportedAdapterError, match="matrices"):
        read_adapter(folder)


def test_truncation_at_any_place_is_found(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    data = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 200, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptModuleError, match="adapter_model"):
            read_adapter(folder)
    path.write_bytes(data + b"x")
    with pytest.raises(CorruptModuleError):
        read_adapter(folder)


def test_halves_shapes_and_values_that_cannot_be_are_found(tmp_path: Path) -> None:
    key = f"base_model.model.{LAYER}.lora_"
    for place, (change, says) in enumerate(
        [
            (lambda tensors: tensors.pop(f"{key}B.weight"), "only lora_A"),
            (lambda tensors: tensors.update({f"{key}B.weight": torch.zeros(20, 3)}), "rank 4"),
            (lambda tensors: tensors.clear(), "no tensors"),
        ]
    ):
        folder = write_lora(tmp_path / str(place))
        rewrite(folder, change)
        with pytest.raises(CorruptModuleError, match=says):
            read_adapter(folder)
    for bad in (float("nan"), float("inf"), float("-inf")):
        folder = write_lora(tmp_path / f"value {bad}")
        rewrite(folder, lambda tensors, bad=bad: tensors[f"{key}A.weight"].__setitem__((1, 2), bad))
        with pytest.raises(CorruptModuleError, match="finite"):
            read_adapter(folder).check_values()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"peft_type": "LORA"}', '{"peft_type": "LORA", "r": 0, "lora_alpha": 1}']
)
def test_a_damaged_configuration_is_found(tmp_path: Path, text: str) -> None:
    folder = write_lora(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(CorruptModuleError, match=r"adapter_config.*`hybridqa modules rollback MODULE`"):
        read_adapter(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CorruptModuleError, match="adapter_config"):
        read_adapter(folder)


def test_what_peft_saves_is_read(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    model = get_peft_model(
        LlamaForCausalLM(config), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    model.save_pretrained(tmp_path / "a")
    adapter = read_adapter(tmp_path / "a")
    adapter.check_values()
    assert len(adapter.targets) == 14 and adapter.rank == 2
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["r"] == 2
