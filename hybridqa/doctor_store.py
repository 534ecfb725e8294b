"""Looks at one store: its folders, its catalog, its dense index, its modules.

Knows nothing about what is installed. Invariant: a broken part hides no other, and nothing is changed but the full-text
indexes, which hold nothing of their own, when `mend` asks for that, and an older catalog's schema, which every opening
brings up to date.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridqa.catalog_schema import restoring
from hybridqa.config import Settings
from hybridqa.errors import CorruptStoreError, HybridQAError, StoreError
from hybridqa.files import TEMP_SUFFIX, sha256_file
from hybridqa.types import Module, ModuleKind

if TYPE_CHECKING:
    from hybridqa.catalog import Catalog
    from hybridqa.doctor import Report

FULL_MB, TIGHT_MB = 200, 2000  # below: nothing can be trained; below: soon
OWN_FOLDERS = ("stacks", "work")  # beside the collections' folders of modules


def check_store(
    report: Report, settings: Settings, model_hash: str | None, embedder: str | None, *, mend: bool = False
) -> None:
    """Adds what there is to say of the store; hashes are None where the model is not on this machine."""
    command = f"hybridqa --store {shlex.quote(str(settings.store))}"
    command += "" if settings.name == "default" else f" --name {settings.name}"
    _check_disk(report, settings)
    try:
        there = settings.catalog_path.is_file()
    except OSError as error:
        report.add("problem", "store", str(error), _mend(error, settings, command))
        return
    if not there:
        report.facts["store"] = {"path": str(settings.store.resolve()), "name": settings.name, "there": False}
        text = f"there is no store {settings.name!r} at {str(settings.store.resolve())!r}"
        report.add("problem", "store", text, f"{command} init, or name another with --store")
        return
    try:
        from hybridqa.catalog import Catalog

        catalog = Catalog.open(settings.catalog_path, module_dir=settings.module_dir)
    except (HybridQAError, OSError, ImportError) as error:
        report.facts["store"] = {"path": str(settings.store.resolve()), "name": settings.name, "there": True}
        report.add("problem", "catalog", str(error), _mend(error, settings, command))
        return
    with catalog:
        try:
            _check_contents(report, settings, catalog, model_hash, embedder, command, mend)
        except (HybridQAError, OSError) as error:
            report.add("problem", "catalog", str(error), _mend(error, settings, command))


def _mend(error: Exception, settings: Settings, command: str) -> str:
    """What to do about a catalog that refuses: only a damaged one is to be replaced."""
    if isinstance(error, CorruptStoreError):
        return restoring(settings.catalog_path)
    code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"wait for the other process to end, then run `{command} doctor` again"
    if code or isinstance(error, OSError):
        return f"check the permissions of {settings.index_dir} and its disk, then run `{command} doctor` again"
    return f"do what it says, then run `{command} doctor` again"


def _check_disk(report: Report, settings: Settings) -> None:
    for folder in (settings.index_dir, settings.module_dir):
        there = _nearest(folder)
        if not os.access(there, os.W_OK | os.X_OK):
            mend = f"chmod u+rwx {shlex.quote(str(there))}"
            report.add("problem", "disk", f"{str(there)!r} cannot be written", mend)
    there = _nearest(settings.store)
    free = shutil.disk_usage(there).free / 1e6
    report.facts["disk_free_mb"] = round(free)
    text = f"{free / 1000:.1f} GB free at {there}"
    if free < FULL_MB:
        report.add("problem", "disk", text, "free some space: documents and modules can no longer be written")
    elif free < TIGHT_MB:
        report.add("note", "disk", text, "free some space before training modules")
    else:
        report.add("ok", "disk", text)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that can be seen."""
    above = (folder.absolute(), *folder.absolute().parents)
    return next(path for path in above if os.path.isdir(path))  # noqa: PTH112 (never raises)


def _check_contents(
    report: Report,
    settings: Settings,
    catalog: Catalog,
    model_hash: str | None,
    embedder: str | None,
    command: str,
    mend: bool,
) -> None:
    problems = catalog.check_rows()
    for problem in problems:
        report.add("problem", "catalog", problem, restoring(settings.catalog_path))
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
    _check_full_text(report, settings, catalog, command, mend)
    _check_embedder(report, catalog, settings, embedder, command)
    _check_dense(report, catalog, settings)
    for module in modules:
        _check_module(report, module, model_hash, command)
    hashes = {(document.collection, document.doc_id): document.content_hash for document in documents}
    fresh = set()
    for module in modules:
        if module.kind is not ModuleKind.DOCUMENT:
            continue
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
    _check_folders(report, catalog, settings)


def _check_full_text(report: Report, settings: Settings, catalog: Catalog, command: str, mend: bool) -> None:
    """The one check that takes the store's write lock."""
    try:
        problems = catalog.check_full_text()
        if problems and mend:
            catalog.rebuild_full_text()
            if not (problems := catalog.check_full_text()):
                report.add("ok", "full text", "the full-text indexes were damaged and have been made anew")
    except CorruptStoreError as error:
        report.add("problem", "full text", str(error), _mend(error, settings, command))
        return
    except StoreError as error:
        text = f"the full-text indexes could not be checked: {error}"
        report.add("note", "full text", text, _mend(error, settings, command))
        return
    for problem in problems:
        again = restoring(settings.catalog_path) if mend else f"{command} doctor --mend (nothing is lost by it)"
        report.add("problem", "full text", problem, again)


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
    searches: dict[str, str] = {}
    for collection in catalog.list_collections():
        if not catalog.vector_ids(collection).size:
            continue
        file = DenseFile(directory, collection)
        states[collection] = _dense_state(file.about_path, file.index_path, catalog)
        if states[collection] == "saved":
            searches[collection] = _dense_search(file.about_path)
    report.facts["dense_index"] = states
    report.facts["dense_search"] = searches
    for collection, state in states.items():
        if state not in ("saved", "unsaved"):
            text = f"the dense index of collection {collection!r} is {state}"
            report.add("note", "index", text, "nothing to do: the next question rebuilds it from the catalog")
    if states and set(states.values()) <= {"saved", "unsaved"}:
        kinds = ", ".join(sorted({*states.values(), *searches.values()} - {"exact"}))
        report.add("ok", "index", f"{len(states)} dense index{'es' if len(states) > 1 else ''}: {kinds}")


def _dense_state(about_path: Path, index_path: Path, catalog: Catalog) -> str:
    if not about_path.exists() and not index_path.exists():
        return "unsaved"
    try:
        about: Any = json.loads(about_path.read_text(encoding="utf-8"))
        if sha256_file(index_path) != about["sha256"]:
            return "damaged"
        return "of another embedder" if about["embedder"] != catalog.embedder_fingerprint() else "saved"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged"


def _dense_search(about_path: Path) -> str:
    """How the index searches, and what of the nearest it was measured to find."""
    about: Any = json.loads(about_path.read_text(encoding="utf-8"))
    if about.get("kind", "flat") == "flat":
        return "exact"
    made = about["training"]
    return f"{made['nprobe']} of {made['nlist']} lists searched (recall@10 {made['recall']:.3f})"


def _check_module(report: Report, module: Module, model_hash: str | None, command: str) -> None:
    """One version's files against its manifest; only a current one is a problem."""
    from hybridqa.modules.manifest import check_files, read_manifest

    try:
        manifest = read_manifest(module.path)
        check_files(module.path, manifest)
    except (HybridQAError, OSError) as error:
        where = f"--collection {shlex.quote(module.collection)}"
        mend = f"{command} refresh --force {where} {' '.join(map(shlex.quote, module.documents))}"
        if module.kind is not ModuleKind.DOCUMENT:
            mend = f"{command} modules rollback {where} {module.module_id}, or import it again"
        report.add("problem" if module.current else "note", "modules", str(error), mend if module.current else "")
        return
    if module.current and model_hash is not None and module.base_model_hash != model_hash:
        text = f"module {module.name!r} belongs to another base model ({module.base_model_hash[:12]}); it is left out"
        again = f"run `{command} refresh`" if module.kind is ModuleKind.DOCUMENT else "import one for this base model"
        report.add("note", "modules", text, f"set `model` back, or {again}")


def _check_folders(report: Report, catalog: Catalog, settings: Settings) -> None:
    """Folders of versions that no row points at, and what killed writers left; what a living one makes is its own.

    The folders are listed first and the rows read last: what was published meanwhile then has its row.
    """
    versions = sorted(settings.module_dir.glob("*/*/v*"))
    left = sorted(settings.module_dir.glob(f"*/*/.*{TEMP_SUFFIX}"))
    publishing = _publishing(settings.module_dir)
    known = {module.path for module in catalog.list_modules(None)} | set(catalog.list_garbage())
    known = {path.resolve() for path in known} | publishing
    for path in versions:
        own = path.relative_to(settings.module_dir).parts[0] in OWN_FOLDERS
        if not own and path.resolve() not in known and path.is_dir():
            text = f"{str(path)!r} belongs to no module of the catalog"
            report.add("note", "modules", text, f"rm -r {shlex.quote(str(path))}")
    left = [path for path in left if path.is_dir()]
    if left and not _at_work(settings.module_dir):
        text = f"{len(left)} unfinished folders under {str(settings.module_dir)!r}, left by a process that was killed"
        report.add("note", "modules", text, shlex.join(["rm", "-r", *map(str, left)]))


def _publishing(module_dir: Path) -> set[Path]:
    """The version that is under way, by the registry's journal."""
    from hybridqa.modules.registry import JOURNAL

    try:
        entry = json.loads((module_dir / JOURNAL).read_text(encoding="utf-8"))
        return {(module_dir / str(entry["folder"])).resolve()}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _at_work(module_dir: Path) -> bool:
    """Whether a process publishes or removes modules now; its lock is looked at, and never made."""
    from hybridqa.modules.registry import LOCK

    try:
        with (module_dir / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
