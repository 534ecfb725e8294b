"""`train-extractor`: a LoRA for the task itself, which knows how to use passages and modules.

Knows nothing about training. Invariant: it ends with one verdict and what was measured, or one JSON object.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybridqa.cli import output
from hybridqa.cli.context import AsJson, Collection, command, open_store
from hybridqa.cli.module_report import gate_rows
from hybridqa.cli.progress_lines import ProgressLines
from hybridqa.errors import ConfigError
from hybridqa.types import DEFAULT_COLLECTION


@command
def train_extractor(
    context: typer.Context,
    docs: Annotated[Path, typer.Option("--docs", help="Documents to learn from, as JSON lines: doc_id, title, text.")],
    questions: Annotated[
        Path, typer.Option("--questions", help="Questions about them, as JSON lines: qid, question, answers, doc_ids.")
    ],
    collection: Collection = DEFAULT_COLLECTION,
    work: Annotated[
        Path | None, typer.Option("--work", help="Folder for the store of those documents; default: in this store.")
    ] = None,
    documents: Annotated[int | None, typer.Option("--documents", help="Use at most so many; default: all.")] = None,
    questions_per_document: Annotated[
        int, typer.Option("--questions-per-document", min=0, help="Of each document, at most; 0: all.")
    ] = 50,
    steps: Annotated[int, typer.Option("--steps", min=0, help="Training steps; 0: once over the exercises.")] = 0,
    no_modules: Annotated[
        bool, typer.Option("--no-modules", help="Train it on passages alone: the fair comparison.")
    ] = False,
    module_documents: Annotated[
        int | None,
        typer.Option("--module-documents", help="Make modules for so many of them, the shortest; default: for all."),
    ] = None,
    no_publish: Annotated[
        bool, typer.Option("--no-publish", help="Leave the registry as it is; the extractor goes to --output.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--output", help="A new folder that the extractor is written to as well.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train an extractor on other documents, with their modules. Takes hours on a CPU; goes on where it was killed."""
    if no_modules and module_documents is not None:
        raise ConfigError(
            f"--module-documents {module_documents} was given with --no-modules; expected one of them. Leave one out."
        )
    with open_store(context) as store, output.progress() as bar:
        outcome = store.train_extractor(
            docs,
            questions,
            collection=collection,
            work=work,
            documents=documents,
            questions_per_document=questions_per_document,
            steps=steps,
            modules=not no_modules,
            module_documents=module_documents,
            publish=not no_publish,
            output=folder,
            on_event=ProgressLines(bar).show,
        )
    if as_json:
        output.say_json(outcome)
    else:
        output.say(f"{outcome.state:<9} {outcome.module or outcome.output or ''}  {outcome.reason}")
        output.table(("check", "value", "95% interval", "verdict"), gate_rows(outcome.metrics.get("gate")))
        output.note(f"{outcome.seconds:.0f} s; its documents are in {outcome.work}", style="dim")
