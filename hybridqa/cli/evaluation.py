"""`eval`: measures on documents and questions with gold answers.

Knows nothing about arms or metrics. Invariant: every option is checked before a model is loaded, and the report on
standard output is the one that `--output` keeps.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybridqa.cli import evaluation_suites, output
from hybridqa.cli.context import AsJson, command, options, quieten
from hybridqa.cli.measuring import check_files, keep_report
from hybridqa.cli.progress_lines import StageLine
from hybridqa.errors import ConfigError

if TYPE_CHECKING:
    from hybridqa.evaluation.options import Plan

app = typer.Typer(help="Measure on documents and questions with gold answers.", no_args_is_help=True)


@app.callback()
def measure() -> None:
    """Measure on documents and questions with gold answers."""


@app.command("grid")
@command
def grid(
    context: typer.Context,
    docs: Annotated[Path, typer.Option("--docs", help="Documents as JSON lines: doc_id, title, text.")],
    questions: Annotated[
        Path, typer.Option("--questions", help="Questions as JSON lines: qid, question, answers, doc_ids.")
    ],
    arms: Annotated[
        str | None, typer.Option("--arms", help="Which arms, by name with commas; default: all that can be had.")
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            "--objectives",
            help="What modules are trained by, the main one first; default: dcd,prompt-distillation,next-token.",
        ),
    ] = None,
    extractor: Annotated[
        Path | None,
        typer.Option("--extractor", help="Folder of a task extractor, for the arms with KE; default: the model's own."),
    ] = None,
    extractor_rag: Annotated[
        Path | None, typer.Option("--extractor-rag", help="One trained without modules, for RAG+KE.")
    ] = None,
    no_extractor: Annotated[bool, typer.Option("--no-extractor", help="Leave the arms with KE out.")] = False,
    route: Annotated[
        str, typer.Option("--route", help="Whose module: the gold document's ('gold'), or the 'router''s choice.")
    ] = "gold",
    passages: Annotated[
        str | None,
        typer.Option(
            "--passages", help="Retrieved passages in a prompt, or several numbers such as 1,2,4; default: the setting."
        ),
    ] = None,
    compose: Annotated[
        str | None, typer.Option("--compose", help="Sizes of stacks with one right module, such as 1,2,4,8.")
    ] = None,
    documents: Annotated[
        int, typer.Option("--documents", help="Ask about so many documents, chosen by seed; 0: all.")
    ] = 0,
    max_words: Annotated[
        int, typer.Option("--max-words", help="Ask about documents of at most so many words alone; 0: any length.")
    ] = 0,
    questions_per_document: Annotated[
        int, typer.Option("--questions-per-document", help="At most so many of each, chosen by seed; 0: all.")
    ] = 20,
    max_answer_tokens: Annotated[int, typer.Option("--max-answer-tokens", help="Longest answer.")] = 32,
    seed: Annotated[int | None, typer.Option("--seed", help="Of choices and training; default: the setting.")] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="Folder to work in and go on from; default: a new temporary one.")
    ] = None,
    report_file: Annotated[Path | None, typer.Option("--output", help="Write the JSON report here as well.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask questions with and without passages, modules and an extractor, and compare the answers.

    Trains a module for each document and objective: minutes each on a CPU. A run that was stopped goes on where it was
    when it is given the same --work.
    """
    quieten(options(context).debug)
    from hybridqa.config import Settings
    from hybridqa.evaluation.grid import run_grid
    from hybridqa.evaluation.options import GridOptions, make_plan
    from hybridqa.evaluation.report import make_report

    given = options(context)
    wanted = GridOptions(
        docs=docs,
        questions=questions,
        arms=_names(arms),
        objectives=_names(objectives),
        extractor=extractor,
        extractor_rag=extractor_rag,
        no_extractor=no_extractor,
        route=route,
        passages=_numbers("--passages", passages),
        compose=_numbers("--compose", compose),
        documents=documents,
        max_words=max_words,
        questions_per_document=questions_per_document,
        max_answer_tokens=max_answer_tokens,
        seed=seed,
    )
    plan = make_plan(wanted, Settings.load(given.store, name=given.name))
    check_files(report_file, work)
    folder = work or Path(tempfile.mkdtemp(prefix="hybridqa-grid-"))
    output.note(_scale(plan), style="dim")
    output.note(f"working in {folder}; --work {folder} goes on from there", style="dim")
    with output.progress() as bar:
        report = make_report(run_grid(plan, folder, StageLine(bar).show))
    keep_report(report, report_file)
    if as_json:
        output.say_json(report)
    else:
        _show(report)


def _scale(plan: Plan) -> str:
    """How much there is to do, and how to begin with less of it."""
    asked = set(plan.doc_ids)
    words = sum(len(document.text.split()) for document in plan.documents if document.doc_id in asked)
    modules, answers = len(plan.doc_ids) * len(plan.trained), len(plan.questions) * len(plan.arms)
    return (
        f"{modules} modules to train, of {len(plan.doc_ids)} documents of {words:,} words together, and {answers:,} "
        "answers; with --documents 2 or --max-words there is less, and the same --work adds to it later"
    )


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str | None) -> list[int]:
    try:
        return [int(name) for name in _names(text) or []]
    except ValueError as error:
        raise ConfigError(f"{option} is {text!r}; expected whole numbers with commas, such as 1,2,4.") from error


def _show(report: dict[str, Any]) -> None:
    from hybridqa.evaluation.report import MEASURES, cell

    data = report["data"]
    output.say(
        f"{data['questions']['asked']} questions about {data['documents_asked_about']} of "
        f"{data['documents']['count']} documents, {report['model']['name']}, seed {report['seed']}; "
        "95% intervals by bootstrap over documents"
    )
    output.table(
        ("arm", *MEASURES, "prompt tokens"),
        (
            [name, *(cell(arm[measure]) for measure in MEASURES), f"{arm['prompt_tokens']:.0f}"]
            for name, arm in report["arms"].items()
        ),
    )
    for title in ("differences", "recovered"):
        rows = _differences(report) if title == "differences" else _recovered(report)
        if rows:
            output.say("")
            output.table((title, *MEASURES), rows)
    for objective, modules in report["modules"].items():
        output.say(
            f"modules by {objective}: {modules['passed']} of {modules['documents']} passed their gate"
            + (f", {modules['seconds'].mean:.0f} s and {modules['mb'].mean:.1f} MB each" if modules["trained"] else "")
        )
    for name, reason in report["absent"].items():
        output.note(f"{name} is not there: {reason}")


def _differences(report: dict[str, Any]) -> list[list[str]]:
    from hybridqa.evaluation.report import MEASURES, cell

    return [[name, *(cell(row[measure]) for measure in MEASURES)] for name, row in report["differences"].items()]


def _recovered(report: dict[str, Any]) -> list[list[str]]:
    from hybridqa.evaluation.report import MEASURES, cell

    return [
        [f"{name} {kind}", *(cell(shares.get(measure)) for measure in MEASURES)]
        for name, kinds in report["recovered"].items()
        for kind, shares in kinds.items()
    ]


app.command("retrieval")(evaluation_suites.retrieval)
app.command("routing")(evaluation_suites.routing)
app.command("abstention")(evaluation_suites.abstention)
app.command("conflict")(evaluation_suites.conflict)
