"""Parts that are dear to make, made once for the session: the default model, one vLLM engine, a tiny random model."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from hybridqa.config import Settings
from hybridqa.engine.environment import prepare_environment
from hybridqa.models import (
    DEFAULT_EMBEDDER,
    DEFAULT_MODEL,
    ModelFolder,
    load_tokenizer,
    resolve_embedder,
    resolve_model,
)

if TYPE_CHECKING:
    from hybridqa.engine.reference import ReferenceEngine
    from hybridqa.engine.vllm import VllmEngine

prepare_environment()  # before anything imports torch

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MakeAdapter = Callable[..., Path]
NOBODY = 65534  # the user of no files: on Linux and elsewhere
LONGEST = ("test_pipeline.py", "test_distill.py", "test_grid.py", "test_vllm.py")  # files that take minutes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """The user's own cache, so that the default model is converted once per machine."""
    return Settings().cache_dir


@pytest.fixture(scope="session")
def model_folder(cache_dir: Path) -> ModelFolder:
    """The default base model, real weights."""
    return resolve_model(DEFAULT_MODEL, cache_dir)


@pytest.fixture(scope="session")
def embedder_path() -> Path:
    """The default embedder, real weights."""
    return resolve_embedder(DEFAULT_EMBEDDER)


@pytest.fixture(scope="session")
def tokenizer(model_folder: ModelFolder) -> Any:
    """The default model's tokenizer."""
    return load_tokenizer(model_folder.path)


@pytest.fixture(scope="session")
def engine(model_folder: ModelFolder) -> Iterator[VllmEngine]:
    """One running vLLM engine for the whole session: float32, so that greedy text is exact; usable from any loop."""
    from hybridqa.engine.vllm import VllmEngine

    made = VllmEngine(model_folder, dtype="float32", max_model_len=2048, max_stacks=3, kv_cache_mb=384)
    asyncio.run(made.start())
    yield made
    asyncio.run(made.close())


@pytest.fixture(scope="session")
def reference_engine(model_folder: ModelFolder) -> Iterator[ReferenceEngine]:
    """transformers and peft on the default model in float32."""
    from hybridqa.engine.reference import ReferenceEngine

    made = ReferenceEngine(model_folder, dtype="float32", max_model_len=2048)
    asyncio.run(made.start())
    yield made
    asyncio.run(made.close())


@pytest.fixture(scope="session")
def tiny_model(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> ModelFolder:
    """A random two-layer Llama with the real tokenizer, for tests of shapes and of life cycles."""
    folder = tmp_path_factory.mktemp("tiny-model")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(model_folder.path / name, folder / name)
    hidden, inner, heads, kv_heads, size = 128, 256, 4, 2, 32
    config = json.loads((model_folder.path / "config.json").read_text())
    config |= {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "max_position_embeddings": 512,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    shapes = {
        "self_attn.q_proj": (heads * size, hidden),
        "self_attn.k_proj": (kv_heads * size, hidden),
        "self_attn.v_proj": (kv_heads * size, hidden),
        "self_attn.o_proj": (hidden, heads * size),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    embedding = random.standard_normal((config["vocab_size"], hidden), np.float32) * np.float32(0.2)
    tensors = {"model.embed_tokens.weight": embedding}  # small, or the tied head repeats the last token for ever
    tensors["model.norm.weight"] = np.ones(hidden, np.float32)
    for layer in range(2):
        for name, shape in shapes.items():
            weight = random.standard_normal(shape, np.float32) * shape[1] ** -0.5
            tensors[f"model.layers.{layer}.{name}.weight"] = weight.astype(np.float32)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ones(hidden, np.float32)
    from safetensors.numpy import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return resolve_model(str(folder), cache_dir)


@pytest.fixture(scope="session")
def make_adapter() -> MakeAdapter:
    """A function that writes a random PEFT LoRA folder fit for a model; see `write_adapter`."""
    return write_adapter


def write_adapter(
    folder: Path,
    model: ModelFolder | Path,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] = ALL_LINEAR,
    seed: int = 0,
    rslora: bool = False,
    strength: float = 0.1,
) -> Path:
    """Writes a LoRA with normal A and B at `folder`, float32; `strength` is how far it moves each layer's output."""
    from safetensors.numpy import save_file

    path = model.path if isinstance(model, ModelFolder) else model
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, (rows, columns) in sorted(_weight_shapes(path).items()):
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] not in targets:
            continue
        scale = alpha / (rank**0.5 if rslora else rank)
        a = random.standard_normal((rank, columns)) * columns**-0.5
        b = random.standard_normal((rows, rank)) * strength / (scale * rank**0.5)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(targets),
        "use_rslora": rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "base_model_name_or_path": None,
        "modules_to_save": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _weight_shapes(model: Path) -> dict[str, tuple[int, int]]:
    shapes: dict[str, tuple[int, int]] = {}
    for path in model.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if len(entry.get("shape", ())) == 2}
    return shapes


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder; as root, the test runs under another user's id."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if superuser := os.geteuid() == 0:
            folder.chmod(0o777)
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            if superuser:
                os.seteuid(0)
            for path in folder.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
