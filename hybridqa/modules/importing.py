"""Takes a PEFT folder from elsewhere in as a module, after everything about it that can be checked has been.

Knows nothing about routing or engines. Invariant: the folder given is only read, and nothing reaches the registry that
does not fit every layer that it names of the base model in use.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hybridqa.catalog import Catalog
from hybridqa.errors import (
    AdapterError,
    BaseModelMismatchError,
    CorruptModuleError,
    InputError,
    ModelError,
    RankLimitError,
    UnsupportedAdapterError,
)
from hybridqa.files import TEMP_SUFFIX
from hybridqa.models import ModelFolder, model_hash
from hybridqa.modules.adapter import CONFIG_FILE, WEIGHTS_FILE, LoraAdapter, read_adapter
from hybridqa.modules.base_layers import linear_layers
from hybridqa.modules.folders import full_storage_named, slug
from hybridqa.modules.manifest import MANIFEST_FILE, Manifest, check_files, read_manifest
from hybridqa.modules.registry import ModuleRegistry, module_id_for
from hybridqa.types import Module, ModuleKind

log = logging.getLogger(__name__)
PICKLED = "adapter_model.bin"
TASK = "CAUSAL_LM"
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class ModuleImporter:
    """Imports modules into one store, for one base model."""

    catalog: Catalog
    registry: ModuleRegistry
    model: ModelFolder
    work_dir: Path
    max_rank: int

    def run(
        self, folder: Path, collection: str, *, module_id: str | None = None, kind: ModuleKind | None = None
    ) -> Module:
        """Publishes the adapter in `folder`, with our manifest or as peft saved it, as the next version of its module.

        Raises `InputError`, `AdapterError` with its kinds, `CollectionNotFoundError`, `ModelError`, `StorageFullError`.
        """
        self.catalog.require_collection(collection)
        adapter = self._read(folder)
        given = self._manifest_of(folder)
        manifest = self._manifest(folder, adapter, given, collection, module_id, kind)
        self._check_layers(folder, adapter, manifest)
        self.work_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".import.", suffix=TEMP_SUFFIX, dir=self.work_dir) as temporary:
            staged = Path(temporary) / "adapter"
            with full_storage_named(staged):
                staged.mkdir()
                shutil.copyfile(folder / WEIGHTS_FILE, staged / WEIGHTS_FILE)
                config = {**adapter.config, "task_type": TASK}  # peft leaves it out, and a stack wants it alike in all
                (staged / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            return self.registry.publish(staged, manifest, _passed(manifest))

    def _read(self, folder: Path) -> LoraAdapter:
        """The adapter, when it is one that a stack can hold."""
        if not folder.is_dir():
            raise InputError(f"{str(folder)!r} is no folder; expected one that peft's `save_pretrained` has written.")
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                pickled = name == WEIGHTS_FILE and (folder / PICKLED).is_file()
                hint = f"; {PICKLED!r} is a pickle and is not read: save it with `safe_serialization=True`"
                raise InputError(
                    f"{str(folder)!r} has no {name!r}; expected a PEFT folder with {CONFIG_FILE!r} and "
                    f"{WEIGHTS_FILE!r}{hint if pickled else ''}."
                )
        with _of_import(folder):
            adapter = read_adapter(folder)
            adapter.check_values()
        task = adapter.config.get("task_type") or TASK
        if task != TASK:
            raise UnsupportedAdapterError(
                f"adapter {str(folder)!r} was trained for the task {task!r}; expected {TASK!r}, as for a model that "
                "writes text."
            )
        if adapter.rank > self.max_rank:
            raise RankLimitError(
                f"adapter {str(folder)!r} has rank {adapter.rank}; expected at most {self.max_rank}. Raise "
                "max_lora_rank in hybridqa.toml, then import it again."
            )
        return adapter

    def _manifest_of(self, folder: Path) -> Manifest | None:
        """Our manifest, where there is one and the files are those that it vouches for."""
        if not (folder / MANIFEST_FILE).exists():
            return None
        with _of_import(folder):
            manifest = read_manifest(folder)
            check_files(folder, manifest)
        return manifest

    def _manifest(
        self,
        folder: Path,
        adapter: LoraAdapter,
        given: Manifest | None,
        collection: str,
        module_id: str | None,
        kind: ModuleKind | None,
    ) -> Manifest:
        """The manifest to publish with."""
        if given is None:
            if kind is None or kind is ModuleKind.DOCUMENT:
                others = ", ".join(other for other in ModuleKind if other is not ModuleKind.DOCUMENT)
                asked = "does not say which document it is of" if kind else "does not say what it was made from"
                raise InputError(
                    f"{str(folder)!r} has no {MANIFEST_FILE!r} and {asked}; expected a manifest, or --kind with one of "
                    f"{others}."
                )
            self._check_named_model(folder, adapter)
            return Manifest(
                module_id=_checked_id(module_id or slug(folder.absolute().name)),
                collection=collection,
                kind=kind,
                base_model=self.model.name,
                base_model_hash=self.model.hash,
                rank=adapter.rank,
                alpha=float(adapter.config["lora_alpha"]),
                targets=sorted({name.rsplit(".", 1)[-1] for name in adapter.targets}),
                metrics={"reason": "imported: no gate has judged it here"},
            )
        if kind is not None and kind is not given.kind:
            raise InputError(
                f"{str(folder)!r} is a module of kind '{given.kind}' by its manifest, not '{kind}'; leave --kind out."
            )
        if given.base_model_hash != self.model.hash:
            raise BaseModelMismatchError(
                f"{str(folder)!r} belongs to the base model {given.base_model!r} ({given.base_model_hash[:12]}); "
                f"expected {self.model.name!r} ({self.model.hash[:12]}), the one in use. Set `model` in hybridqa.toml "
                "to the module's, or import one made for this base model."
            )
        documents = self._documents(given, collection)
        if given.kind is ModuleKind.DOCUMENT:
            module_id = self._document_module_id(folder, given, documents, collection, module_id)
        changes = {
            "module_id": _checked_id(module_id or given.module_id),
            "version": 0,
            "collection": collection,
            "documents": documents,
        }
        return given.model_copy(update=changes)

    def _documents(self, given: Manifest, collection: str) -> dict[str, str]:
        """Those of the documents that are in the collection with the content that the module was distilled from."""
        ids: dict[str, list[str]] = {}
        for document in self.catalog.list_documents(collection):
            ids.setdefault(document.content_hash, []).append(document.doc_id)
        found = {}
        for doc_id, content_hash in given.documents.items():
            here = ids.get(content_hash, [])
            if here:
                found[doc_id if doc_id in here else here[0]] = content_hash
        return found

    def _document_module_id(
        self, folder: Path, given: Manifest, documents: Mapping[str, str], collection: str, module_id: str | None
    ) -> str:
        """The id that `refresh` would give, so that the module is found, renewed and removed with its document."""
        missing = [doc_id for doc_id, digest in given.documents.items() if digest not in documents.values()]
        if missing:
            raise InputError(
                f"{str(folder)!r} is the module of {missing[0]!r}, and collection {collection!r} has no document with "
                "the content that it was distilled from; expected the same title and text. Add the document first "
                "with `hybridqa add`, or name its collection with --collection."
            )
        own = module_id_for(collection, next(iter(documents))) if len(documents) == 1 else given.module_id
        if module_id not in (None, own):
            raise InputError(f"a document's module has an id of its own, {own!r}, not {module_id!r}; leave --id out.")
        return own

    def _check_named_model(self, folder: Path, adapter: LoraAdapter) -> None:
        """Compares the model that peft has noted with ours, as far as that can be done on this machine."""
        named = adapter.config.get("base_model_name_or_path")
        if not named or named == self.model.name:
            return
        path = Path(str(named))
        if path.is_dir():
            try:
                same = path.resolve() == self.model.path.resolve() or model_hash(path) == self.model.hash
            except (ModelError, OSError):
                same = False
            if not same:
                raise BaseModelMismatchError(
                    f"{str(folder)!r} was trained on {str(named)!r}, which is not {self.model.name!r}, the base model "
                    "in use; expected an adapter of that one. Set `model` in hybridqa.toml to the one of the adapter."
                )
            return
        log.warning(
            "%r says that it was trained on %r, which cannot be compared with %r here: only layers and sizes have been",
            str(folder),
            named,
            self.model.name,
        )

    def _check_layers(self, folder: Path, adapter: LoraAdapter, manifest: Manifest) -> None:
        """Every layer that the adapter changes or weights must be one of the base model, of the same size."""
        layers = linear_layers(self.model.path)
        for name, target in adapter.targets.items():
            size = layers.get(name)
            if size != (target.inputs, target.outputs):
                has = "has none" if size is None else f"has one of {size[0]} inputs and {size[1]} outputs"
                raise BaseModelMismatchError(
                    f"{str(folder)!r} changes a linear layer {name!r} of {target.inputs} inputs and {target.outputs} "
                    f"outputs, and the base model {self.model.name!r} {has}; expected an adapter of this base model. "
                    "Set `model` in hybridqa.toml to the one it was trained on."
                )
        if unknown := sorted((manifest.module_weights or {}).keys() - layers.keys()):
            raise AdapterError(
                f"{str(folder)!r} has 'module_weights' for {unknown[:3]}, which the base model {self.model.name!r} has "
                "not; expected names of its linear layers."
            )


@contextmanager
def _of_import(folder: Path) -> Iterator[None]:
    """Inside: what is damaged is said of the folder to import, without the way to mend a published module."""
    try:
        yield
    except CorruptModuleError as error:
        what = str(error).split("; expected the file as it was written")[0].split("; otherwise run")[0]
        raise CorruptModuleError(
            f"{str(folder)!r} cannot be imported: {what.rstrip('.')}. Copy it again from where it was made."
        ) from error


def _checked_id(module_id: str) -> str:
    if not _ID.fullmatch(module_id):
        raise InputError(
            f"{module_id!r} cannot be a module's id; expected 1 to 100 of a-z, 0-9, '.', '_' and '-', a letter or "
            "digit first. Give one with --id."
        )
    return module_id


def _passed(manifest: Manifest) -> bool:
    """What its gate said where it was made; without a gate's report it is taken on its importer's word."""
    gate = manifest.metrics.get("gate")
    return not isinstance(gate, dict) or gate.get("passed") is not False
