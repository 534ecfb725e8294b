"""Makes LoRA folders, staged modules and stores for the tests of hybridqa.modules."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.modules.manifest import Manifest
from hybridqa.modules.registry import module_id_for
from hybridqa.types import Document

PROCESSES = multiprocessing.get_context("forkserver")  # forks from a process that has imported the slow things
PROCESSES.set_forkserver_preload(
    ["pytest", "safetensors.torch", "hybridqa.modules.registry", "hybridqa.modules.stacks"]
)
BASE = "base-model-hash"
LAYERS = {
    f"model.layers.{layer}.{name}": size
    for layer in range(2)
    for name, size in {"self_attn.q_proj": (12, 8), "mlp.up_proj": (12, 20), "mlp.down_proj": (20, 12)}.items()
}


def write_lora(
    folder: Path,
    *,
    rank: int = 4,
    alpha: float = 8,
    seed: int = 0,
    layers: Mapping[str, tuple[int, int]] = LAYERS,
    dtype: torch.dtype = torch.float32,
    std: float = 0.1,
    ranks: Mapping[str, int] | None = None,
    **config: Any,
) -> Path:
    """A PEFT LoRA folder with random weights; `layers` gives (inputs, outputs)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inputs, outputs) in layers.items():
        r = (ranks or {}).get(name, rank)
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = (torch.randn(r, inputs, generator=generator) * std).to(dtype)
        tensors[f"{key}.lora_B.weight"] = (torch.randn(outputs, r, generator=generator) * std).to(dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(layers),
        "bias": "none",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def delta(folder: Path, name: str, alpha: float, rank: int) -> torch.Tensor:
    """alpha / rank * B @ A of one layer, in float64."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    return alpha / rank * b @ a


def manifest(doc_id: str = "doc", collection: str = "default", rank: int = 4, **fields: Any) -> Manifest:
    """The manifest of a staged module."""
    given = {
        "module_id": module_id_for(collection, doc_id),
        "collection": collection,
        "documents": {doc_id: f"hash of {doc_id}"},
        "base_model": "base",
        "base_model_hash": BASE,
        "rank": rank,
        "alpha": 8,
        "targets": ["q_proj", "up_proj", "down_proj"],
        "metrics": {"gain": 0.25},
    }
    return Manifest(**{**given, **fields})


def open_catalog(store: Path, doc_ids: tuple[str, ...] = ("doc",), collection: str = "default") -> Catalog:
    """A catalog with one-passage documents; makes it when it is not there."""
    catalog = Catalog.open(store / "catalog.sqlite3", create=True, module_dir=store / "modules")
    for doc_id in doc_ids:
        document = Document(doc_id, collection, "", f"text of {doc_id}", f"hash of {doc_id}")
        draft = PassageDraft(0, 0, len(document.text), document.text, "")
        catalog.put_document(document, [draft], np.ones((1, 4), dtype=np.float32), "embedder")
    return catalog
