"""What a manifest may say of each kind of module."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from module_folders import manifest
from pydantic import ValidationError

from hybridqa.errors import CorruptModuleError
from hybridqa.modules.manifest import Manifest, read_manifest
from hybridqa.types import ModuleKind


def test_a_manifest_from_before_there_were_kinds_is_a_document_s(tmp_path: Path) -> None:
    fields = json.loads(manifest().model_dump_json())
    for name in ("kind", "module_weights", "serves"):
        del fields[name]
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    read = read_manifest(tmp_path)
    assert (read.kind, read.module_weights, read.serves) == (ModuleKind.DOCUMENT, None, {})


@pytest.mark.parametrize("kind", [kind for kind in ModuleKind if kind is not ModuleKind.DOCUMENT])
def test_other_kinds_need_no_document(kind: ModuleKind, tmp_path: Path) -> None:
    made = manifest(kind=kind, documents={})
    (tmp_path / "manifest.json").write_text(made.model_dump_json())
    assert read_manifest(tmp_path) == made


def test_an_extractor_says_what_it_is_for(tmp_path: Path) -> None:
    fields = {"module_weights": {"model.layers.0.mlp.up_proj": -0.25}, "serves": {"passages": 4, "modules": 1}}
    made = manifest(kind="extractor", documents={}, **fields)
    (tmp_path / "manifest.json").write_text(made.model_dump_json())
    read = read_manifest(tmp_path)
    assert (read.module_weights, read.serves) == (fields["module_weights"], fields["serves"])


BAD: list[dict[str, Any]] = [
    {"documents": {}},
    {"kind": "document", "documents": {}},
    {"kind": "sermon"},
    {"module_weights": {"model.layers.0.mlp.up_proj": 1.0}},
    {"kind": "examples", "documents": {}, "module_weights": {}},
    *({"kind": "extractor", "documents": {}, "module_weights": {"x": value}} for value in (math.nan, math.inf, "much")),
]


@pytest.mark.parametrize("fields", BAD, ids=str)
def test_what_does_not_fit_its_kind_is_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        manifest(**fields)
    given = {**json.loads(manifest().model_dump_json()), **fields}
    (tmp_path / "manifest.json").write_text(json.dumps(given))
    with pytest.raises(CorruptModuleError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parents[2] / "modules" / "README.md").read_text(encoding="utf-8")
    table = page.split("`manifest.json`, format 1")[1].split("\n## ")[0]
    assert not [name for name in Manifest.model_fields if f"`{name}`" not in table]
