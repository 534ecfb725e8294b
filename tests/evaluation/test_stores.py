"""The stores that evaluations make: with a task extractor, gone on with, and of other files made anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hybridqa.errors import HybridQAError
from hybridqa.evaluation.datasets import EvalDocument
from hybridqa.evaluation.stores import store_of
from hybridqa.models import ModelFolder
from hybridqa.modules.manifest import Manifest, write_manifest
from hybridqa.types import ModuleKind

MakeAdapter = Callable[..., Path]
WEIGHTS = {"model.layers.0.self_attn.q_proj": 0.25}
DOCUMENTS = [EvalDocument("kettle", "The kettle", "Maren Holt designed the Lumen kettle in 2031.")]


@pytest.fixture
def extractor(tmp_path: Path, tiny_model: ModelFolder, make_adapter: MakeAdapter) -> Callable[[int], Path]:
    def make(seed: int) -> Path:
        folder = make_adapter(tmp_path / f"extractor-{seed}", tiny_model, rank=4, seed=seed)
        shared = {"collection": "default", "base_model": "tiny", "base_model_hash": tiny_model.hash, "alpha": 16}
        shared |= {"rank": 4, "targets": ["q_proj"], "module_id": "reader", "kind": "extractor"}
        write_manifest(folder, Manifest(**shared, module_weights=WEIGHTS))
        return folder

    return make


def test_an_extractor_is_imported_once_and_another_gets_its_own_store(
    extractor: Callable[[int], Path], tiny_model: ModelFolder, tmp_path: Path
) -> None:
    held = []
    for seed in (1, 1, 2):
        settings = {"model": str(tiny_model.path), "engine": "reference"}
        with store_of(DOCUMENTS, tmp_path / "w", lambda *_: None, extractor=extractor(seed), **settings) as store:
            assert [document.doc_id for document in store.documents()] == ["kettle"]
            held.append((store.settings.store, [(one.kind, one.version) for one in store.modules()]))
    assert held[0] == held[1] and held[0][1] == [(ModuleKind.EXTRACTOR, 1)]
    assert held[2][0] != held[0][0] and held[2][1] == held[0][1]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_without_an_extractor_is_named(there: bool, tiny_model: ModelFolder, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    if there:
        folder.mkdir()
    with (
        pytest.raises(HybridQAError, match=r"nothing.*expected"),
        store_of(DOCUMENTS, tmp_path / "w", lambda *_: None, extractor=folder, model=str(tiny_model.path)),
    ):
        pass
