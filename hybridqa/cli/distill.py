"""`distill`: a style guide, examples or scratchpads made into a plug-in.

Knows nothing about training. Invariant: it ends with one line, or one JSON object, that says what became of the file.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hybridqa.cli import output
from hybridqa.cli.context import AsJson, Collection, command, open_store
from hybridqa.cli.progress_lines import ProgressLines
from hybridqa.errors import InputError
from hybridqa.types import DEFAULT_COLLECTION


class Objective(StrEnum):
    """The trainer's objectives; named here so that `--help` need not load the trainer."""

    DCD = "dcd"
    PROMPT_DISTILLATION = "prompt-distillation"
    NEXT_TOKEN = "next-token"
    SFT = "sft"


@command
def distill(
    context: typer.Context,
    instructions: Annotated[
        Path | None, typer.Option("--instructions", help="A text, such as a system prompt or style guide.")
    ] = None,
    examples: Annotated[
        Path | None, typer.Option("--examples", help="JSON lines of question and answer, or of chat messages.")
    ] = None,
    scratchpad: Annotated[
        Path | None,
        typer.Option("--scratchpad", help="JSON lines of question, reasoning and answer, or of questions alone."),
    ] = None,
    module_id: Annotated[
        str | None, typer.Option("--id", help="The plug-in's id; default: the file's name, made safe.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", help="What to learn on: a question a line, or JSON lines.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Answers to learn from; default: 96.")] = None,
    collection: Collection = DEFAULT_COLLECTION,
    objective: Annotated[
        Objective | None, typer.Option("--objective", help="What to train by; default: the setting.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Train again although the content is the same.")] = False,
    as_json: AsJson = False,
) -> None:
    """Distil instructions, examples or scratchpads into a plug-in, for `ask --plugin`. Takes minutes on a CPU."""
    if sum(path is not None for path in (instructions, examples, scratchpad)) != 1:
        raise InputError("what is to be distilled? Give one of --instructions, --examples and --scratchpad.")
    with open_store(context) as store, output.progress() as bar:
        outcome = store.distill(
            instructions=instructions,
            examples=examples,
            scratchpad=scratchpad,
            module_id=module_id,
            questions=questions,
            count=count,
            collection=collection,
            objective=None if objective is None else str(objective),
            force=force,
            on_event=ProgressLines(bar).show,
        )
    if as_json:
        output.say_json(outcome)
        return
    output.say(f"{outcome.state:<9} {outcome.module or outcome.module_id}  {outcome.reason}")
    if outcome.state == "published":
        output.note(f'Use it with `hybridqa ask "…" --plugin {outcome.module_id}`.', style="dim")
