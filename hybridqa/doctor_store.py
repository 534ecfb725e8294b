"""Looks at one store: its folders, its catalog, its dense index, its modules.

Knows nothing about what is installed. Invariant: it changes nothing, and a broken part hides no other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridqa.config import Settings
from hybridqa.errors import HybridQAError
from hybridqa.files import TEMP_SUFFIX
from hybridqa.types import Module

if TYPE_CHECKING:
    from hybridqa.catalog import Catalog
    from hybridqa.doctor import Report

FULL_MB, TIGHT_MB = 200, 2000  # below: nothing can be trained; below: soon
OWN_FOLDERS = ("stacks", "work")  # beside the collections' folders of modules


def check_store(report: Report, settings: Settings, model_hash: str | None, embedder: str | None) -> None:
    """Adds what there is to say of the store; hashes are None where the model is not on this machine."""
    command = f"hybridqa --store {settings.store}"
    _check_disk(report, settings)
    if not settings.catalog_path.is_file():
        report.facts["store"] = {"path": str(settings.store.resolve()), "name": settings.name, "there": False}
        text = f"there is no store {settings.name!r} at {str(settings.store.resolve())!r}"
        report.add("problem", "store", text, f"{command} init, or name another with --store")
        return
    try:
        from hybridqa.catalog import Catalog

        catalog = Catalog.open(settings.catalog_path, module_dir=settings.module_dir)
    except (HybridQAError, OSError, ImportError) as error:
        report.facts["store"] = {"path": str(settings.store.resolve()), "name": settings.name, "there": True}
        report.add(
            "problem",
            "catalog",
            str(error),
            f"restore {settings.catalog_path} from a backup, or move it away and run `{command} init` and `add` again",
        )
        return
    with catalog:
        try:
            _check_contents(report, settings, catalog, model_hash, embedder, command)
        except (HybridQAError, OSError) as error:
            report.add(
                "problem",
                "catalog",
                str(error),
                f"restore {settings.catalog_path} from a backup, or move it away and add the documents again",
            )


def _check_disk(report: Report, settings: Settings) -> None:
    for folder in (settings.index_dir, settings.module_dir):
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
            report.add("problem", "disk", f"{str(there)!r} cannot be written", f"chmod u+rwx {there}")
    there = next(path for path in (settings.store.absolute(), *settings.store.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free / 1e6
    report.facts["disk_free_mb"] = round(free)
    text = f"{free / 1000:.1f} GB free at {there}"
    if free < FULL_MB:
        report.add("problem", "disk", text, "free some space: documents and modules can no longer be written")
    elif free < TIGHT_MB:
        report.add("note", "disk", text, "free some space before training modules")
    else:
        report.add("ok", "disk", text)


def _check_contents(
    report: Report,
    settings: Settings,
    catalog: Catalog,
    model_hash: str | None,
    embedder: str | None,
    command: str,
) -> None:
    problems = catalog.check()
    for problem in problems:
        report.add("problem", "catalog", problem, f"restore {settings.catalog_path} from a backup")
    documents, modules = catalog.list_documents(None), catalog.list_modules(None)
    vectors = int(catalog.vector_ids().size)
    report.facts["store"] = {
        "path": str(settings.store.resolve()),
        "name": settings.name,
        "there": True,
        "collections": catalog.list_collections(),
        "documents": len(documents),
        "passages": vectors,
        "modules": len(modules),
        "modules_current": sum(module.current for module in modules),
    }
    if not problems:
        report.add("ok", "catalog", f"whole: {len(documents)} documents, {vectors} passages, {len(modules)} modules")
    _check_embedder(report, catalog, settings, embedder, command)
    _check_dense(report, catalog, settings)
    for module in modules:
        _check_module(report, module, model_hash, command)
    hashes = {(document.collection, document.doc_id): document.content_hash for document in documents}
    fresh = set()
    for module in modules:
        for doc_id, content_hash in module.documents.items():
            usable = module.current and model_hash in (None, module.base_model_hash)
            if usable and hashes.get((module.collection, doc_id)) == content_hash:
                fresh.add((module.collection, doc_id))
            elif module.current and usable:
                text = f"module {module.name!r} is of an older version of {doc_id!r}; it is not plugged in for it"
                report.add("note", "modules", text, f"{command} refresh")
    if without := len(hashes) - len(fresh):
        text = f"{without} of {len(hashes)} documents have no fresh module; they answer from passages"
        report.add("note", "modules", text, f"{command} refresh")
    _check_folders(report, catalog, settings, modules)


def _check_embedder(report: Report, catalog: Catalog, settings: Settings, embedder: str | None, command: str) -> None:
    known = catalog.embedder_fingerprint()
    if known is not None and embedder is not None and known != embedder:
        report.add(
            "problem",
            "embedder",
            f"the store's vectors are of another embedder ({known[:12]}) than {settings.embedder!r} ({embedder[:12]})",
            f"set `embedder` back, or run `{command} refresh --embeddings`",
        )


def _check_dense(report: Report, catalog: Catalog, settings: Settings) -> None:
    """The dense files are copies: what is wrong with one is mended by the next question, and only worth a note."""
    try:
        from hybridqa.retrieval.dense import FOLDER
        from hybridqa.retrieval.dense_file import DenseFile
    except ImportError:
        return  # faiss is missing, which has been said
    directory = settings.index_dir / FOLDER
    states: dict[str, str] = {}
    for collection in catalog.list_collections():
        if not catalog.vector_ids(collection).size:
            continue
        file = DenseFile(directory, collection)
        states[collection] = _dense_state(file.about_path, file.index_path, catalog)
    report.facts["dense_index"] = states
    for collection, state in states.items():
        if state not in ("saved", "unsaved"):
            text = f"the dense index of collection {collection!r} is {state}"
            report.add("note", "index", text, "nothing to do: the next question rebuilds it from the catalog")
    if states and set(states.values()) <= {"saved", "unsaved"}:
        report.add(
            "ok",
            "index",
            f"{len(states)} dense index{'es' if len(states) > 1 else ''}: {', '.join(sorted(set(states.values())))}",
        )


def _dense_state(about_path: Path, index_path: Path, catalog: Catalog) -> str:
    if not about_path.exists() and not index_path.exists():
        return "unsaved"
    try:
        about: Any = json.loads(about_path.read_text(encoding="utf-8"))
        whole = hashlib.sha256(index_path.read_bytes()).hexdigest() == about["sha256"]
        if not whole:
            return "damaged"
        return "of another embedder" if about["embedder"] != catalog.embedder_fingerprint() else "saved"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged"


def _check_module(report: Report, module: Module, model_hash: str | None, command: str) -> None:
    """One version's files against its manifest; only a current one is a problem."""
    from hybridqa.modules.manifest import check_files, read_manifest

    doc_ids = " ".join(module.documents)
    try:
        manifest = read_manifest(module.path)
        check_files(module.path, manifest)
    except (HybridQAError, OSError) as error:
        mend = f"{command} refresh --force --collection {module.collection} {doc_ids}"
        report.add("problem" if module.current else "note", "modules", str(error), mend if module.current else "")
        return
    if module.current and model_hash is not None and module.base_model_hash != model_hash:
        text = f"module {module.name!r} belongs to another base model ({module.base_model_hash[:12]}); it is left out"
        report.add("note", "modules", text, f"set `model` back, or run `{command} refresh`")


def _check_folders(report: Report, catalog: Catalog, settings: Settings, modules: list[Module]) -> None:
    """Folders of versions that no row points at, and what killed writers left."""
    if not settings.module_dir.is_dir():
        return
    known = {module.path.resolve() for module in modules} | {path.resolve() for path in catalog.list_garbage()}
    for path in sorted(settings.module_dir.glob("*/*/v*")):
        if path.relative_to(settings.module_dir).parts[0] in OWN_FOLDERS or path.resolve() in known:
            continue
        report.add("note", "modules", f"{str(path)!r} belongs to no module of the catalog", f"rm -r '{path}'")
    left = [path for path in settings.module_dir.glob(f"*/*/.*{TEMP_SUFFIX}") if path.is_dir()]
    if left:
        text = f"{len(left)} unfinished folders under {str(settings.module_dir)!r}, left by a process that was killed"
        report.add("note", "modules", text, "rm -r " + " ".join(f"'{path}'" for path in left))
