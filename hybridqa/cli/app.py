"""The commands, put together; and `main`, the entry point.

Knows nothing of what the commands do. Invariant: importing this is fast, so that `--help` and completion are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybridqa import __version__
from hybridqa.cli import answers, distill, documents, evaluation, extractor, health, keys, modules, output, serve
from hybridqa.cli.context import INTERRUPTED, Options, remember_debug

app = typer.Typer(
    name="hybridqa",
    help="Answers questions from your documents: from passages in an index and from knowledge modules.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.say(f"hybridqa {__version__}")
        raise typer.Exit


@app.callback()
def set_options(
    context: typer.Context,
    store: Annotated[
        Path | None,
        typer.Option("--store", "-s", help="Folder of the store; default: HYBRIDQA_STORE or the working directory."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Which index and modules in the store; default: 'default'.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and what libraries log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keeps the options that stand before the command."""
    remember_debug(debug)
    context.obj = Options(store, name, debug)


app.command("init")(documents.init)
app.command("add")(documents.add)
app.command("rm")(documents.rm)
app.command("ls")(documents.ls)
app.command("ask")(answers.ask)
app.command("chat")(answers.chat)
app.command("serve")(serve.serve)
app.command("refresh")(modules.refresh)
app.command("train-extractor")(extractor.train_extractor)
app.command("distill")(distill.distill)
app.add_typer(modules.app, name="modules")
app.add_typer(keys.app, name="keys")
app.add_typer(evaluation.app, name="eval")
app.command("doctor")(health.doctor)


def main() -> int:
    """Runs the command line; leaves by `SystemExit` with the exit code."""
    from hybridqa.engine.environment import prepare_environment

    prepare_environment()  # before anything loads torch
    try:
        app()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
