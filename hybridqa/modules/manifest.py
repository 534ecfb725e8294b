"""The manifest of a module folder: what it was made from, for which base model, how, and the hash of each file.

Knows nothing about the registry or about adapters' tensors. Invariant: a manifest names every file of its folder that
matters and the bytes that each must have; a folder that does not match is refused, never mended.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from hybridqa.errors import CorruptModuleError
from hybridqa.files import atomic_write_text, sha256_file
from hybridqa.modules.adapter import CONFIG_FILE, WEIGHTS_FILE, damaged
from hybridqa.modules.folders import known_sha256
from hybridqa.types import ModuleKind

MANIFEST_FILE = "manifest.json"


class Manifest(BaseModel):
    """Everything that is on record about one version of a module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    module_id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")  # a safe file name
    version: int = Field(default=0, ge=0)  # 0 until it is published
    collection: str = Field(min_length=1)
    kind: ModuleKind = ModuleKind.DOCUMENT
    documents: dict[str, str] = Field(default_factory=dict)  # doc_id → content_hash that it was distilled from
    base_model: str  # what its user called it
    base_model_hash: str = Field(min_length=1)
    rank: int = Field(ge=1)
    alpha: float
    targets: list[str] = Field(min_length=1)  # names of the layers' kinds, such as "q_proj"
    recipe: dict[str, Any] = Field(default_factory=dict)  # everything that decided what the training did
    seeds: dict[str, int] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    commit: str | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)  # the gate's report
    module_weights: dict[str, FiniteFloat] | None = None  # of an extractor: documents' modules' beside it, by layer
    serves: dict[str, Any] = Field(
        default_factory=dict
    )  # of an extractor: passages, modules and prompt it was made for
    files: dict[str, str] = Field(default_factory=dict)  # file name → sha256 hex; filled by `write_manifest`
    created_at: str = ""  # ISO 8601, UTC

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind is ModuleKind.DOCUMENT and not self.documents:
            raise ValueError("a module of kind 'document' covers no document; expected one or more in 'documents'")
        if self.kind is not ModuleKind.EXTRACTOR and self.module_weights is not None:
            raise ValueError(f"'module_weights' is given for kind '{self.kind}'; expected it for 'extractor' alone")
        return self


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hashes the folder's files into the manifest, writes it there, and returns it. Raises `StorageFullError`."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False))
    files = {name: sha256_file(folder / name) for name in names if name != MANIFEST_FILE and not name.startswith(".")}
    filled = manifest.model_copy(update={"files": files})
    atomic_write_text(folder / MANIFEST_FILE, filled.model_dump_json(indent=2) + "\n")
    return filled


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a module folder; does not look at the other files. Raises `CorruptModuleError`."""
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise damaged(path, f"cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "its fields together"
        raise CorruptModuleError(
            f"{str(path)!r} is no manifest of format 1: {where!r}: {first['msg']}. If a newer hybridqa wrote it, "
            "upgrade with `pip install -U hybridqa`; otherwise run `hybridqa refresh --force` for its document, or "
            "`hybridqa modules import` for a module of another kind."
        ) from error


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compares the folder's files with the manifest; hashes each once per process. Raises `CorruptModuleError`."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in manifest.files:
            raise damaged(folder / MANIFEST_FILE, f"does not vouch for {name!r}")
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).name != name:
            raise damaged(folder / MANIFEST_FILE, f"names a file outside its folder, {name!r}")
        try:
            found = known_sha256(path)
        except OSError as error:
            raise damaged(path, f"cannot be read: {error}") from error
        if found != expected:
            raise damaged(path, f"has sha256 {found[:12]}…, its manifest says {expected[:12]}…")
