"""`init`, `add`, `rm` and `ls`: the store and the documents in it.

Knows nothing about how a file is read or kept. Invariant: `add` names every file that it could not take and goes on
with the others; what it reports as added is in the store.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybridqa.cli import output
from hybridqa.cli.context import PARTIAL, AnyCollection, AsJson, Collection, command, fail, open_store
from hybridqa.cli.filters import metadata_of
from hybridqa.errors import HybridQAError, InputError, NotFoundError, StoreError
from hybridqa.types import DEFAULT_COLLECTION

if TYPE_CHECKING:
    from hybridqa.ingest.library import AddResult
    from hybridqa.pipeline import HybridQA

STDIN = Path("-")


@command
def init(context: typer.Context, as_json: AsJson = False) -> None:
    """Make a store in the folder of --store; one that is there already is left as it is."""
    with open_store(context, create=True) as store:
        settings = store.settings
        if as_json:
            output.say_json(
                {"store": settings.store.resolve(), "name": settings.name, "catalog": settings.catalog_path}
            )
        else:
            output.say(f"Store {settings.name!r} is at {settings.store.resolve()}")


@command
def add(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="Files and folders; '-' reads a text from standard input.")],
    collection: Collection = DEFAULT_COLLECTION,
    doc_id: Annotated[
        str | None, typer.Option("--id", help="The document's id, for one file; default: its name.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="The document's title, for one file.")] = None,
    meta: Annotated[
        list[str] | None,
        typer.Option(
            "--meta", metavar="KEY=VALUE", help="Metadata of every file added, for `ask --where`; may be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add documents, or their new versions: text, Markdown, HTML, PDF and DOCX. The same again changes nothing."""
    from hybridqa.ingest.readers import is_folder

    if (doc_id is not None or title is not None) and (len(paths) > 1 or is_folder(paths[0])):
        raise InputError(f"--id and --title are for one file, not for {len(paths)} paths or a folder; leave them out.")
    if STDIN in paths and doc_id is None:
        raise InputError("a text from standard input has no name: give it one with --id.")
    metadata = metadata_of(meta)
    results: list[AddResult] = []
    failed: list[dict[str, str]] = []
    stop: HybridQAError | None = None
    with open_store(context) as store, output.progress() as bar:
        files = list(_files(paths, doc_id, failed))
        taken = Counter(file_id for _, file_id in files)
        task = bar.add_task("adding", total=len(files))
        for path, file_id in files:
            bar.update(task, description=f"adding {file_id}")
            try:
                if taken[file_id] > 1:
                    raise InputError(
                        f"{str(path)!r} would have the id {file_id!r}, and so would another of these files; add the "
                        "folder that holds both, or each alone with --id."
                    )
                result = _add_one(store, path, file_id, collection, title, metadata)
            except InputError as error:
                failed.append({"path": str(path), "error": _line(error)})
            except HybridQAError as error:  # a full disk, or a broken store or model, would stop the next file as well
                failed.append({"path": str(path), "error": _line(error)})
                stop = error
                break
            except OSError as error:
                failed.append({"path": str(path), "error": _line(error)})
            else:
                results.append(result)
                if not as_json:
                    output.say_beside(bar, f"{result.result:<9} {result.doc_id}  ({result.passages} passages)")
            bar.advance(task)
    if as_json:
        output.say_json({"results": results, "failed": failed})
    if stop is not None:
        raise stop
    if failed:
        output.note(f"{len(failed)} of {len(failed) + len(results)} could not be added:", style="red")
        for entry in failed:
            output.note(f"  {entry['path']}: {entry['error']}")
        raise typer.Exit(PARTIAL)


def _files(paths: Sequence[Path], doc_id: str | None, failed: list[dict[str, str]]) -> Iterator[tuple[Path, str]]:
    """Each file with its id: the path below the folder that was given, or a single file's name."""
    from hybridqa.ingest.readers import is_folder, walk

    for path in dict.fromkeys(paths):

        def note(error: Exception, path: Path = path) -> None:
            failed.append({"path": str(path), "error": _line(error)})

        try:
            if is_folder(path):
                yield from ((file, file.relative_to(path).as_posix()) for file in walk(path, note))
            else:
                yield path, doc_id or path.name
        except (InputError, OSError) as error:
            note(error)


def _add_one(
    store: HybridQA, path: Path, doc_id: str, collection: str, title: str | None, metadata: dict[str, Any] | None
) -> AddResult:
    if path == STDIN:
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
        return store.add_text(doc_id, text, title=title or "", collection=collection, metadata=metadata)
    [result] = store.add(path, doc_id=doc_id, collection=collection, title=title, metadata=metadata)
    return result


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


@command
def rm(
    context: typer.Context,
    doc_ids: Annotated[list[str], typer.Argument(help="Ids of documents, as `hybridqa ls` shows them.")],
    collection: Collection = DEFAULT_COLLECTION,
    as_json: AsJson = False,
) -> None:
    """Remove documents with their passages and modules."""
    removed: list[str] = []
    failed: list[dict[str, str]] = []
    with open_store(context) as store:
        for doc_id in dict.fromkeys(doc_ids):
            try:
                store.remove(doc_id, collection=collection)
            except NotFoundError as error:
                failed.append({"doc_id": doc_id, "error": _line(error)})
                fail(error)
            else:
                removed.append(doc_id)
                if not as_json:
                    output.say(f"removed   {doc_id}")
        if removed:
            try:
                store.compact()
            except StoreError as error:  # the documents are gone all the same
                output.note(f"note: the documents are removed; making the store smaller failed: {_line(error)}")
    if as_json:
        output.say_json({"removed": removed, "failed": failed})
    if failed:
        raise typer.Exit(PARTIAL)


@command
def ls(context: typer.Context, collection: AnyCollection = None, as_json: AsJson = False) -> None:
    """List the documents, and whether each has a module that is up to date."""
    from hybridqa.training.outcome import module_states, state_of

    with open_store(context) as store:
        if collection is not None:
            store.catalog.require_collection(collection)
        documents = store.documents(collection)
        collections = [collection] if collection is not None else store.catalog.list_collections()
        states = module_states(store.catalog, collection)
    rows = [{**output.plain(document), "module": state_of(states, document)} for document in documents]
    if as_json:
        output.say_json({"collections": collections, "documents": rows})
        return
    if not rows:
        output.note("The store holds no documents yet: `hybridqa add PATH` adds some.")
    shown = ("doc_id", "collection", "title", "passages", "module", "updated_at")
    output.table(shown, ([row[column] for column in shown] for row in rows))
