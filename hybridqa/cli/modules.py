"""`refresh` and `modules`: modules made, shown, imported, rolled back and removed.

Knows nothing about training. Invariant: `refresh` ends with one line, or one JSON object, for each document.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from hybridqa.cli import output
from hybridqa.cli.context import PARTIAL, AnyCollection, AsJson, Collection, command, open_store
from hybridqa.cli.module_report import gate_rows, loose_lines, weight_rows
from hybridqa.cli.progress_lines import ProgressLines
from hybridqa.errors import ConfigError
from hybridqa.types import DEFAULT_COLLECTION, Module, ModuleKind, ModuleStatus

if TYPE_CHECKING:
    from hybridqa.pipeline import HybridQA

app = typer.Typer(help="List, show, import, roll back and remove modules.", invoke_without_command=True)
ModuleId = Annotated[str, typer.Argument(help="The module's id, as `hybridqa modules` shows it.")]


@command
def refresh(
    context: typer.Context,
    doc_ids: Annotated[
        list[str] | None, typer.Argument(help="Documents to refresh; default: all that need it.")
    ] = None,
    collection: AnyCollection = None,
    force: Annotated[bool, typer.Option("--force", help="Train again even what has a fresh module.")] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Instead make all vectors anew with the embedder in force.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Distil, gate and publish a module for every new or changed document. Takes minutes a document on a CPU."""
    if embeddings and (doc_ids or collection is not None or force):
        raise ConfigError(
            "--embeddings was given with documents, --collection or --force; expected it alone: it makes all vectors "
            "anew, and no modules. Leave the others out, or run `hybridqa refresh` twice."
        )
    with open_store(context) as store, output.progress() as bar:
        if embeddings:
            _reembed(store, bar, as_json)
            return
        lines = ProgressLines(bar)
        report = store.refresh(collection=collection, doc_ids=doc_ids or None, force=force, on_event=lines.show)
    if as_json:
        output.say_json(report)
    else:
        for outcome in report.outcomes:
            output.say(f"{outcome.state:<9} {outcome.doc_id}  {outcome.reason}")
        output.note(f"{len(report.outcomes)} documents in {report.seconds:.0f} s", style="dim")
    if report.failed:
        raise typer.Exit(PARTIAL)


def _reembed(store: HybridQA, bar: Progress, as_json: bool) -> None:
    from hybridqa.retrieval.reembedding import reembed

    task = bar.add_task("embedding passages", total=None)

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    passages = reembed(store.catalog, store.embedder, show)
    if as_json:
        output.say_json({"passages": passages, "embedder": store.embedder.fingerprint})
    else:
        output.say(f"embedded  {passages} passages with {store.settings.embedder}")


@app.callback()
@command
def list_by_default(context: typer.Context, collection: AnyCollection = None, as_json: AsJson = False) -> None:
    """List, show, import, roll back and remove modules; lists them when no command is given."""
    if context.invoked_subcommand is None:
        _list(context, collection, as_json)
        return
    given: dict[str, Any] = {"as_json": as_json}
    if collection is not None:
        given["collection"] = collection
    context.default_map = {context.invoked_subcommand: given}  # the options may stand before the command


@app.command("list")
@command
def list_modules(context: typer.Context, collection: AnyCollection = None, as_json: AsJson = False) -> None:
    """List every version of every module."""
    _list(context, collection, as_json)


def _list(context: typer.Context, collection: str | None, as_json: bool) -> None:
    with open_store(context) as store:
        if collection is not None:
            store.catalog.require_collection(collection)
        modules = store.modules(collection)
        rows = [_module_json(store, module) for module in modules]
    if as_json:
        output.say_json({"modules": rows})
        return
    if not rows:
        output.note("The store holds no modules yet: `hybridqa refresh` makes one of each document.")
    output.table(
        ("module", "version", "kind", "collection", "state", "rank", "documents", "created"),
        (
            [
                row["module_id"],
                row["version"],
                row["kind"],
                row["collection"],
                row["state"],
                row["rank"],
                ", ".join(row["documents"]),
                row["created_at"],
            ]
            for row in rows
        ),
    )


@app.command("show")
@command
def show(
    context: typer.Context,
    module_id: ModuleId,
    version: Annotated[int | None, typer.Option("--version", help="Which version; default: the current one.")] = None,
    collection: Collection = DEFAULT_COLLECTION,
    as_json: AsJson = False,
) -> None:
    """Show a module: what it covers, how it was made, what its gate measured."""
    with open_store(context) as store:
        module = _find(store, collection, module_id, version)
        found = {**_module_json(store, module), "path": module.path, "metrics": output.plain(module.metrics)}
        if module.kind is ModuleKind.EXTRACTOR:
            found |= _extractor_json(module)
    if as_json:
        output.say_json(found)
        return
    weights, metrics = found.pop("module_weights", None), found.pop("metrics")
    for key, value in found.items():
        output.say(f"{key:<16} {value}")
    if weights:
        output.say("\nweights of documents' modules beside it: layer, min, mean, max")
        output.table(("layer", "min", "mean", "max"), weight_rows(weights))
    if rows := gate_rows(metrics.get("gate")):
        output.say("\ngate")
        output.table(("check", "value", "95% interval", "verdict"), rows)
    if lines := loose_lines(metrics):
        output.say("")
        for line in lines:
            output.say(line)


def _extractor_json(module: Module) -> dict[str, Any]:
    """What an extractor's manifest says of the stacks that it is for; nothing when it cannot be read."""
    from hybridqa.errors import CorruptModuleError
    from hybridqa.modules.manifest import read_manifest

    try:
        manifest = read_manifest(module.path)
    except CorruptModuleError as error:
        output.note(f"note: {error}")
        return {}
    return {"serves": manifest.serves, "module_weights": manifest.module_weights}


@app.command("import")
@command
def import_module(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="A PEFT LoRA folder, with hybridqa's manifest or as peft has saved it.")
    ],
    module_id: Annotated[
        str | None, typer.Option("--id", help="The module's id; default: its manifest's, or the folder's name.")
    ] = None,
    kind: Annotated[ModuleKind | None, typer.Option("--kind", help="What it is, where no manifest says so.")] = None,
    collection: Collection = DEFAULT_COLLECTION,
    as_json: AsJson = False,
) -> None:
    """Take a LoRA adapter in as a module: a plug-in, an extractor, or the module of a document that is here."""
    with open_store(context) as store:
        module = store.import_module(folder, module_id=module_id, kind=kind, collection=collection)
        found = _module_json(store, module)
    if as_json:
        output.say_json(found)
    else:
        output.say(f"imported  {module.name}  ({module.kind}, {found['state']})")


@app.command("rm")
@command
def rm(
    context: typer.Context, module_id: ModuleId, collection: Collection = DEFAULT_COLLECTION, as_json: AsJson = False
) -> None:
    """Remove every version of a plug-in or an extractor. A document's module goes with its document."""
    with open_store(context) as store:
        store.catalog.require_collection(collection)
        removed = store.remove_module(module_id, collection=collection)
    if as_json:
        output.say_json({"removed": [module.name for module in removed]})
    else:
        for module in removed:
            output.say(f"removed   {module.name}")


@app.command("rollback")
@command
def rollback(
    context: typer.Context,
    module_id: ModuleId,
    version: Annotated[int | None, typer.Option("--version", help="Which version; default: the one before.")] = None,
    collection: Collection = DEFAULT_COLLECTION,
    as_json: AsJson = False,
) -> None:
    """Put an older published version of a module back into service."""
    with open_store(context) as store:
        module = store.rollback(module_id, version, collection=collection)
        found = _module_json(store, module)
    if as_json:
        output.say_json(found)
    else:
        output.say(f"current   {module.name}")
        if found["state"] == "stale":
            output.note("Its document has changed since: it is not plugged in until they agree again.")


def _find(store: HybridQA, collection: str, module_id: str, version: int | None) -> Module:
    """One version; without a number the current one, or else the newest."""
    store.catalog.require_collection(collection)
    versions = [module for module in store.modules(collection) if module.module_id == module_id]
    if version is None and versions and not any(module.current for module in versions):
        version = max(module.version for module in versions)
    return store.catalog.get_module(collection, module_id, version)


def _module_json(store: HybridQA, module: Module) -> dict[str, Any]:
    hashes = store.catalog.document_hashes(module.collection, list(module.documents))
    state = str(module.status)
    if module.status is ModuleStatus.PUBLISHED:
        state = "current" if module.current else "older"
        if module.current and module.kind is ModuleKind.DOCUMENT and hashes != dict(module.documents):
            state = "stale"
    return {
        "module_id": module.module_id,
        "version": module.version,
        "kind": module.kind,
        "collection": module.collection,
        "state": state,
        "current": module.current,
        "rank": module.rank,
        "documents": dict(module.documents),
        "base_model_hash": module.base_model_hash,
        "created_at": module.created_at,
    }
