"""Adapters from elsewhere: what is taken in as what, and what is refused and why."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from hybridqa import HybridQA
from hybridqa.errors import (
    AdapterError,
    BaseModelMismatchError,
    CollectionNotFoundError,
    CorruptModuleError,
    HybridQAError,
    InputError,
    RankLimitError,
    UnsupportedAdapterError,
)
from hybridqa.models import ModelFolder
from hybridqa.modules.base_layers import linear_layers
from hybridqa.modules.manifest import Manifest, read_manifest, write_manifest
from hybridqa.modules.registry import module_id_for
from hybridqa.types import ModuleKind, ModuleStatus

Make = Callable[..., Path]
KETTLE = "The Lumen kettle holds 1.7 litres of water."


@pytest.fixture
def qa(tmp_path: Path, tiny_model: ModelFolder) -> Iterator[HybridQA]:
    with HybridQA.open(tmp_path / "store", create=True, model=str(tiny_model.path), engine="reference") as opened:
        yield opened


@pytest.fixture
def plain(tmp_path: Path, tiny_model: ModelFolder, make_adapter: Make) -> Path:
    """An adapter without a manifest, and with things that peft or a trainer leave beside it."""
    folder = make_adapter(tmp_path / "House Style", tiny_model, rank=4)
    (folder / "README.md").write_text("a model card")
    (folder / "optimizer.pt").write_bytes(b"state")
    return folder


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def with_manifest(folder: Path, qa: HybridQA, **fields: Any) -> Path:
    given: dict[str, Any] = {
        "module_id": "from-elsewhere",
        "version": 7,
        "collection": "elsewhere",
        "kind": "extractor",
        "base_model": "tiny",
        "base_model_hash": qa.model.hash,
        "rank": 4,
        "alpha": 16,
        "targets": ["q_proj"],
        "metrics": {"gate": {"passed": True, "gain": 0.5}},
        "seeds": {"train": 3},
    }
    write_manifest(folder, Manifest(**{**given, **fields}))
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_as_peft_saves_it_becomes_a_plugin(qa: HybridQA, tmp_path: Path, tiny_model: ModelFolder) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(str(tiny_model.path))
    folder = tmp_path / "saved"
    get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])).save_pretrained(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] is None
    before = bytes_of(folder)
    module = qa.import_module(folder, kind="instructions", module_id="house-style")
    assert (module.name, module.kind, module.current) == ("house-style@1", ModuleKind.INSTRUCTIONS, True)
    assert module.documents == {} and module.base_model_hash == qa.model.hash
    assert bytes_of(folder) == before
    qa.registry.verify(module)
    manifest = read_manifest(module.path)
    assert (manifest.rank, manifest.alpha, manifest.targets) == (4, 8, ["down_proj", "q_proj"])
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((module.path / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert not list((qa.settings.module_dir / "work").iterdir())


def test_its_id_is_the_folder_s_name_and_again_is_a_new_version(qa: HybridQA, plain: Path) -> None:
    assert qa.import_module(plain, kind=ModuleKind.EXAMPLES).name == "house-style@1"
    assert qa.import_module(plain, kind=ModuleKind.EXAMPLES).name == "house-style@2"
    assert [module.name for module in qa.modules() if module.current] == ["house-style@2"]
    assert qa.rollback("house-style").version == 1
    with pytest.raises(InputError, match="of kind 'examples'"):
        qa.import_module(plain, kind="scratchpad")
    removed = qa.remove_module("house-style")
    assert [module.name for module in removed] == ["house-style@1", "house-style@2"]
    assert not qa.modules() and not any(module.path.exists() for module in removed)
    assert qa.import_module(plain, kind="scratchpad").version > 2  # a name is never given twice


def test_an_extractor_comes_with_what_its_manifest_says(qa: HybridQA, plain: Path) -> None:
    weights = {"model.layers.1.mlp.up_proj": 0.5}
    with_manifest(plain, qa, module_weights=weights, serves={"passages": 3})
    module = qa.import_module(plain)
    manifest = read_manifest(module.path)
    assert (module.name, module.kind) == ("from-elsewhere@1", ModuleKind.EXTRACTOR)
    assert (manifest.collection, manifest.module_weights, manifest.serves) == ("default", weights, {"passages": 3})
    assert (manifest.seeds, manifest.metrics["gate"]["gain"]) == ({"train": 3}, 0.5)
    second = qa.import_module(plain, module_id="another")
    assert [m.name for m in qa.modules() if m.current] == [second.name]  # there is one extractor in service


def test_a_document_s_module_needs_its_document(qa: HybridQA, plain: Path) -> None:
    qa.add_text("kettle", KETTLE)
    content_hash = qa.documents()[0].content_hash
    qa.add_text("other", "Another text.")
    with_manifest(plain, qa, kind="document", documents={"made-as": content_hash})
    with pytest.raises(InputError, match="leave --id out"):
        qa.import_module(plain, module_id="mine")
    module = qa.import_module(plain)
    assert module.module_id == module_id_for("default", "kettle")  # the same content under another id
    assert module.documents == {"kettle": content_hash}
    assert qa.module_state("kettle") == "published"
    with pytest.raises(InputError, match=r"document 'kettle'.*hybridqa rm"):
        qa.remove_module(module.module_id)
    qa.add_text("kettle", KETTLE + " It is red.")
    with pytest.raises(InputError, match=r"'made-as'.*no document with the content.*hybridqa add"):
        qa.import_module(plain)
    qa.catalog.create_collection("empty")
    with pytest.raises(InputError, match="'empty'"):
        qa.import_module(plain, collection="empty")


def test_documents_that_are_not_here_do_not_come_with_other_kinds(qa: HybridQA, plain: Path) -> None:
    qa.add_text("kettle", KETTLE)
    here = qa.documents()[0].content_hash
    with_manifest(plain, qa, kind="scratchpad", documents={"kettle": here, "gone": "another hash"})
    assert qa.import_module(plain).documents == {"kettle": here}
    qa.remove("kettle")
    assert not qa.modules()


def test_what_its_gate_rejected_stays_rejected(qa: HybridQA, plain: Path) -> None:
    with_manifest(plain, qa, metrics={"gate": {"passed": False}})
    module = qa.import_module(plain)
    assert module.status is ModuleStatus.REJECTED and not module.current


def refuse_layers(folder: Path, qa: HybridQA, make: Make) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    made = {key.replace("layers.1", "layers.9"): value for key, value in tensors.items()}
    save_file(made, folder / "adapter_model.safetensors")


def refuse_sizes(folder: Path, qa: HybridQA, make: Make) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    key = next(name for name in tensors if name.endswith("down_proj.lora_A.weight"))
    tensors[key] = tensors[key][:, :100].clone()
    save_file(tensors, folder / "adapter_model.safetensors")


def refuse_values(folder: Path, qa: HybridQA, make: Make) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")


def refuse_pickle(folder: Path, qa: HybridQA, make: Make) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def refuse_damage(folder: Path, qa: HybridQA, make: Make) -> None:
    with_manifest(folder, qa)
    data = bytearray((folder / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(data)


Refuse = Callable[[Path, HybridQA, Make], object]
REFUSED: dict[str, tuple[Refuse, type[HybridQAError], str]] = {
    "no folder": (lambda f, q, m: shutil.rmtree(f), InputError, "is no folder"),
    "no adapter": (lambda f, q, m: (f / "adapter_config.json").unlink(), InputError, "no 'adapter_config.json'"),
    "a pickle": (refuse_pickle, InputError, "is a pickle"),
    "layers of another model": (refuse_layers, BaseModelMismatchError, r"'model\.layers\.9.*has none"),
    "sizes of another model": (refuse_sizes, BaseModelMismatchError, "100 inputs.*has one of 256 inputs"),
    "no finite numbers": (refuse_values, CorruptModuleError, "cannot be imported.*no finite numbers"),
    "not plain LoRA": (lambda f, q, m: edit_config(f, use_dora=True), UnsupportedAdapterError, "use_dora"),
    "another task": (lambda f, q, m: edit_config(f, task_type="SEQ_CLS"), UnsupportedAdapterError, "'SEQ_CLS'"),
    "too large": (lambda f, q, m: m(f, q.model, rank=65), RankLimitError, "65.*at most 64.*max_lora_rank"),
    "changed since": (refuse_damage, CorruptModuleError, r"cannot be imported: .*sha256.*Copy it again"),
    "another base model": (
        lambda f, q, m: with_manifest(f, q, base_model_hash="x" * 64), BaseModelMismatchError, "in use"
    ),
    "another kind": (lambda f, q, m: with_manifest(f, q), InputError, "'extractor' by its manifest, not 'examples'"),
    "a weight for no layer": (
        lambda f, q, m: with_manifest(f, q, kind="extractor", module_weights={"model.layers.7.up": 1.0}),
        AdapterError,
        r"'model\.layers\.7\.up'",
    ),
    "no manifest of ours": (
        lambda f, q, m: (f / "manifest.json").write_text("{}"), CorruptModuleError, r"manifest\.json"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "error", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_serve_is_refused_and_leaves_nothing(
    qa: HybridQA, plain: Path, make_adapter: Make, spoil: Refuse, error: type[HybridQAError], says: str
) -> None:
    spoil(plain, qa, make_adapter)
    kind = None if (plain / "manifest.json").exists() and "not 'examples'" not in says else "examples"
    with pytest.raises(error, match=says) as raised:
        qa.import_module(plain, kind=kind)
    assert "refresh" not in str(raised.value)  # nothing here was made by it
    assert qa.modules() == [] and not list(qa.settings.module_dir.glob("default/*"))


def test_a_plain_folder_must_be_said_to_be_something(qa: HybridQA, plain: Path) -> None:
    for kind in (None, "document"):
        with pytest.raises(InputError, match="--kind with one of instructions, examples, scratchpad, extractor"):
            qa.import_module(plain, kind=kind)
    with pytest.raises(InputError, match="'sermon'"):
        qa.import_module(plain, kind="sermon")
    with pytest.raises(InputError, match=r"'Über/Stil'.*--id"):
        qa.import_module(plain, kind="examples", module_id="Über/Stil")
    with pytest.raises(CollectionNotFoundError, match="'nowhere'"):
        qa.import_module(plain, kind="examples", collection="nowhere")


def test_the_model_that_peft_has_noted_is_compared_where_it_is_here(
    qa: HybridQA, plain: Path, tiny_model: ModelFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = tmp_path / "same"
    shutil.copytree(tiny_model.path, same)
    edit_config(plain, base_model_name_or_path=str(same))
    assert qa.import_module(plain, kind="examples").current
    config = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps({**config, "rope_theta": 7.0}))
    with pytest.raises(BaseModelMismatchError, match="was trained on"):
        qa.import_module(plain, kind="examples")
    edit_config(plain, base_model_name_or_path="somebody/some-model")
    with caplog.at_level(logging.WARNING):
        assert qa.import_module(plain, kind="examples").version == 2
    assert any("cannot be compared" in text for text in caplog.messages)


def test_linear_layers_are_those_of_the_weights(tiny_model: ModelFolder, tmp_path: Path) -> None:
    layers = linear_layers(tiny_model.path)
    tensors = load_file(tiny_model.path / "model.safetensors")
    assert layers.pop("lm_head") == (128, tensors["model.embed_tokens.weight"].shape[0])
    assert layers == {
        name.removesuffix(".weight"): tuple(reversed(tensor.shape))
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and "embed" not in name
    }
    gpt2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps({**gpt2, "vocab_size": 20, "n_positions": 16}))
    assert linear_layers(tmp_path)["transformer.h.0.attn.c_attn"] == (8, 24)
