"""The registry of modules: every version a folder that never changes, and a row in the catalog that points at it.

Knows nothing about training, routing or engines. Invariant: a version is in the registry wholly (folder, manifest, row,
and the pointer if it passed) or not at all, whenever its publisher is killed: a journal, written before the first step,
says which version is under way, and the next registry that opens or writes finishes that version or removes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from hybridqa.catalog import Catalog
from hybridqa.errors import AdapterError, BaseModelMismatchError, CorruptModuleError, ModuleNotFoundInStoreError
from hybridqa.files import atomic_dir, atomic_write_text, fsync_dir
from hybridqa.modules.adapter import read_adapter
from hybridqa.modules.folders import full_storage_named, leftovers, remove_folder, remove_unfinished, slug
from hybridqa.modules.manifest import MANIFEST_FILE, Manifest, check_files, read_manifest, write_manifest
from hybridqa.types import Module, ModuleStatus

log = logging.getLogger(__name__)
JOURNAL = ".publishing.json"
LOCK = ".publishing.lock"
RESERVED = frozenset({"stacks", "work"})  # folders beside the collections'


def module_id_for(collection: str, doc_id: str) -> str:
    """The id of a document's module: readable, safe as a file name, and unlike any other document's."""
    digest = hashlib.sha256(f"{collection}\0{doc_id}".encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{slug(doc_id) or 'document'}-{digest}"


class ModuleRegistry:
    """The modules of one store, for one base model."""

    def __init__(self, catalog: Catalog, module_dir: Path, base_model_hash: str) -> None:
        """Opens the registry, and ends what a killed publisher or removal had begun."""
        self._catalog = catalog
        self._module_dir = module_dir.absolute()
        self._base_model_hash = base_model_hash
        module_dir.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout), self._alone(timeout=0):  # whoever is at work now cleans up after itself
            self._remove_folders(self._catalog.list_garbage())  # of removed modules whose remover was killed

    def publish(self, staged_folder: Path, manifest: Manifest, passed: bool) -> Module:
        """Makes the staged PEFT folder the next version of its module, and current if it `passed` its gate.

        The files are copied; the staged folder is removed once the version stands. Raises `BaseModelMismatchError`,
        `UnsupportedAdapterError`, `CorruptModuleError`, `DocumentNotFoundError` when the document has been removed
        meanwhile, `InputError` when the id belongs to a module of another kind, and `StorageFullError`; after an error
        the registry is as it was.
        """
        _check_base_model(
            f"{manifest.module_id}, staged in {str(staged_folder)!r},", manifest.base_model_hash, self._base_model_hash
        )
        adapter = read_adapter(staged_folder)
        adapter.check_values()
        if adapter.rank != manifest.rank:
            raise CorruptModuleError(
                f"the module staged in {str(staged_folder)!r} has rank {adapter.rank}, its manifest says "
                f"{manifest.rank}; expected the same. Make the module again."
            )
        with self._alone():
            version = self._catalog.next_module_version(manifest.collection, manifest.module_id)
            folder = self._folder(manifest.collection, manifest.module_id, version)
            self._write_journal(folder, manifest.collection, manifest.module_id, version, passed)
            try:
                created_at = manifest.created_at or datetime.now(UTC).isoformat(timespec="seconds")
                manifest = manifest.model_copy(update={"version": version, "created_at": created_at})
                self._copy(staged_folder, folder, manifest)
                self._catalog.add_module(self._as_module(folder, manifest, passed))
            except BaseException:
                self._recover()
                raise
            self._recover()  # makes it current and closes the journal: the way that a reopened registry takes, too
        shutil.rmtree(staged_folder, ignore_errors=True)
        module = self._catalog.get_module(manifest.collection, manifest.module_id, version)
        log.info("module %r %s", module.name, module.status)
        return module

    def rollback(self, collection: str, module_id: str, version: int | None = None) -> Module:
        """Makes a published version current: `version`, or the one before the current one.

        Raises `ModuleNotFoundInStoreError` when there is none, `AdapterError` for one that its gate rejected,
        `CorruptModuleError` and `BaseModelMismatchError` for one that cannot be used.
        """
        with self._alone():
            versions = [module for module in self._catalog.list_modules(collection) if module.module_id == module_id]
            module = self._choose(collection, module_id, versions, version)
            self.verify(module)
            self._catalog.set_current(collection, module_id, module.version)
        return self._catalog.get_module(collection, module_id, module.version)

    def remove_for(self, modules: Iterable[Module]) -> None:
        """Removes the folders of modules whose rows the catalog has removed."""
        with self._alone():
            self._remove_folders([module.path for module in modules])

    def verify(self, module: Module) -> None:
        """Refuses a module that is not what its manifest and the catalog say, or is of another base model.

        A file is hashed once per process, and again when its size or time of change has moved.
        Raises `CorruptModuleError`, `UnsupportedAdapterError`, `BaseModelMismatchError`.
        """
        verify_module(module, self._base_model_hash)

    def list_modules(self, collection: str | None = None) -> list[Module]:
        """Every version of every module, of one collection or of all."""
        return self._catalog.list_modules(collection)

    # Inside

    @contextmanager
    def _alone(self, timeout: float = -1) -> Iterator[None]:
        """One writer at a time, over all processes; a version that a killed one left half done is ended first."""
        with FileLock(self._module_dir / LOCK, timeout=timeout):
            remove_unfinished(self._module_dir / JOURNAL)
            self._recover()
            yield

    def _write_journal(self, folder: Path, collection: str, module_id: str, version: int, passed: bool) -> None:
        entry = {
            "folder": folder.relative_to(self._module_dir).as_posix(),
            "collection": collection,
            "module_id": module_id,
            "version": version,
            "passed": passed,
        }
        with full_storage_named(folder):
            atomic_write_text(self._module_dir / JOURNAL, json.dumps(entry))

    def _recover(self) -> None:
        """Ends the version in the journal: with its row, it stands and is current if it passed; without, it goes."""
        journal = self._module_dir / JOURNAL
        try:
            entry = json.loads(journal.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        try:
            module = self._catalog.get_module(entry["collection"], entry["module_id"], entry["version"])
        except ModuleNotFoundInStoreError:
            self._remove_version(self._module_dir / entry["folder"])
        else:
            if entry["passed"]:
                self._catalog.set_current(module.collection, module.module_id, module.version)
        journal.unlink(missing_ok=True)
        fsync_dir(self._module_dir)

    def _copy(self, staged: Path, folder: Path, manifest: Manifest) -> None:
        with full_storage_named(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with atomic_dir(folder) as target:
                for path in sorted(staged.iterdir()):
                    plain = path.is_file() and not path.is_symlink() and not path.name.startswith(".")
                    if plain and path.name != MANIFEST_FILE:
                        shutil.copyfile(path, target / path.name)
                write_manifest(target, manifest)

    def _as_module(self, folder: Path, manifest: Manifest, passed: bool) -> Module:
        return Module(
            module_id=manifest.module_id,
            version=manifest.version,
            collection=manifest.collection,
            path=folder,
            documents=manifest.documents,
            base_model_hash=manifest.base_model_hash,
            rank=manifest.rank,
            status=ModuleStatus.PUBLISHED if passed else ModuleStatus.REJECTED,
            current=False,
            created_at=manifest.created_at,
            metrics=manifest.metrics,
            kind=manifest.kind,
        )

    def _choose(self, collection: str, module_id: str, versions: list[Module], version: int | None) -> Module:
        published = [module for module in versions if module.status is ModuleStatus.PUBLISHED]
        if version is None:
            current = next((module.version for module in versions if module.current), None)
            found = [module for module in published if current is None or module.version < current]
        else:
            found = [module for module in versions if module.version == version]
        if not found:
            wanted = "version before the current one" if version is None else f"version {version}"
            raise ModuleNotFoundInStoreError(
                f"module {module_id!r} of collection {collection!r} has no {wanted}; expected one of its published "
                f"versions {[module.version for module in published]}. `hybridqa modules` lists them."
            )
        chosen = max(found, key=lambda module: module.version)
        if chosen.status is not ModuleStatus.PUBLISHED:
            raise AdapterError(
                f"module {chosen.name!r} was rejected by its gate; expected one of the published versions "
                f"{[module.version for module in published]}. `hybridqa modules` lists them."
            )
        return chosen

    def _folder(self, collection: str, module_id: str, version: int) -> Path:
        """Where a version lives; names that are no safe file names, or taken, get a hash."""
        name = collection
        if name in RESERVED or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
            name = f"{slug(name)}-{hashlib.sha256(name.encode()).hexdigest()[:12]}".lstrip("-")
        return self._module_dir / name / module_id / f"v{version:04d}"

    def _remove_version(self, folder: Path) -> None:
        """Removes one version's folder, what was left unfinished beside it, and the folders that it leaves empty."""
        if not folder.is_relative_to(self._module_dir) or not folder.parent.is_dir():
            return
        remove_folder(folder)
        remove_unfinished(folder)
        for parent in (folder.parent, folder.parent.parent):
            with suppress(OSError):  # not empty
                parent.rmdir()

    def _remove_folders(self, paths: Sequence[Path]) -> None:
        """Removes versions' folders and forgets those that are gone; the next opening tries the others again."""
        gone = []
        for path in paths:
            problem: OSError | None = None
            try:
                self._remove_version(path)
            except OSError as error:
                problem = error
            if path.is_relative_to(self._module_dir) and (left := leftovers(path)):
                log.warning(
                    "files of a removed module are still in %r as %s (%s); check the permissions there",
                    str(path.parent), left, problem or "they could not be deleted",
                )  # fmt: skip
            else:
                gone.append(path)
        if gone:
            self._catalog.drop_garbage(gone)


def verify_module(module: Module, base_model_hash: str) -> None:
    """`ModuleRegistry.verify` for a reader that needs no registry; `base_model_hash` is of the model in use."""
    _check_base_model(module.name, module.base_model_hash, base_model_hash)
    manifest = read_manifest(module.path)
    _check_base_model(module.name, manifest.base_model_hash, base_model_hash)
    said = (
        manifest.module_id, manifest.version, manifest.collection, manifest.documents, manifest.rank, manifest.kind
    )  # fmt: skip
    known = (
        module.module_id, module.version, module.collection, dict(module.documents), module.rank, module.kind
    )  # fmt: skip
    if said != known:
        raise CorruptModuleError(
            f"module {module.name!r} of collection {module.collection!r} has the manifest of "
            f"'{manifest.module_id}@{manifest.version}' of {manifest.collection!r} or one that disagrees with the "
            "catalog; expected its own. Run `hybridqa refresh --force` for its document, or import it again."
        )
    check_files(module.path, manifest)


def _check_base_model(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise BaseModelMismatchError(
            f"module {name!r} belongs to the base model {found[:12]!r}; expected {expected[:12]!r}, the one in use. "
            "Set `model` in hybridqa.toml back, or make one for this base model (`hybridqa refresh` does, for "
            "documents)."
        )
