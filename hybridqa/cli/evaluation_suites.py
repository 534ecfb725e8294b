"""`eval retrieval`, `routing`, `abstention` and `conflict`: what is measured of finding, not finding, and disagreeing.

Knows nothing about how anything is measured. Invariant: every option is checked before a model is loaded, and the
report on standard output is the one that `--output` keeps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybridqa.cli import output
from hybridqa.cli.context import AsJson, command, options, quieten
from hybridqa.cli.measuring import Draw, check_files, keep_report
from hybridqa.cli.progress_lines import StageLine
from hybridqa.errors import ConfigError

if TYPE_CHECKING:
    from hybridqa.config import Settings

Measure = Callable[[Path, Callable[[str, int, int], None]], dict[str, Any]]  # from a folder and what hears of stages
Docs = Annotated[Path, typer.Option("--docs", help="Documents as JSON lines: doc_id, title, text.")]
Questions = Annotated[
    Path, typer.Option("--questions", help="Questions as JSON lines: qid, question, answers, doc_ids.")
]
Most = Annotated[int, typer.Option("--most", help="At most so many questions, chosen by seed; 0: all.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of what is chosen and drawn; default: the setting.")]
Work = Annotated[
    Path | None, typer.Option("--work", help="Folder to work in and go on from; default: a new temporary one.")
]
Output = Annotated[Path | None, typer.Option("--output", help="Write the JSON report here as well.")]
Extractor = Annotated[
    Path | None, typer.Option("--extractor", help="A task extractor's folder to answer with; default: none.")
]
Plot = Annotated[bool, typer.Option("--plot", help="Draw it as a PNG beside --output.")]


@command
def retrieval(
    context: typer.Context,
    docs: Docs,
    questions: Questions,
    most: Most = 400,
    rerank: Annotated[
        int, typer.Option("--rerank", min=0, help="Also rank so many passages anew by the base model; 0: don't.")
    ] = 0,
    hops: Annotated[
        int, typer.Option("--hops", min=1, help="Also search so many times, each further one for what was found.")
    ] = 1,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="Also have the base model restate follow-ups that cannot stand alone.")
    ] = False,
    seed: Seed = None,
    work: Work = None,
    report_file: Output = None,
    plot: Plot = False,
    as_json: AsJson = False,
) -> None:
    """Search for the documents that questions are about: recall by k beside BM25, vectors alone and fused ranks."""
    from hybridqa.evaluation.plots import draw_recall
    from hybridqa.evaluation.retrieval import make_plan, run_retrieval

    settings = _settings(context, report_file, work, plot)
    chosen = settings.seed if seed is None else seed
    plan = make_plan(docs, questions, settings, most=most, seed=chosen, rerank=rerank, hops=hops, rewrite=rewrite)
    draw = draw_recall if plot else None
    report = _measured(work, report_file, draw, lambda folder, tell: run_retrieval(plan, folder, tell))
    if as_json:
        output.say_json(report)
        return
    from hybridqa.evaluation.report import cell

    output.say(f"{report['data']['questions']} questions, {report['data']['documents']} documents; recall@k")
    ks = list(next(iter(report["recall"].values())))
    output.table(
        ("way", *(f"k={k}" for k in ks)),
        ([name, *(cell(by_k[k]) for k in ks)] for name, by_k in report["recall"].items()),
    )


@command
def routing(
    context: typer.Context,
    docs: Docs,
    questions: Questions,
    far: Annotated[
        Path | None, typer.Option("--far", help="Questions of another collection, which no module should answer.")
    ] = None,
    most: Most = 400,
    seed: Seed = None,
    work: Work = None,
    report_file: Output = None,
    plot: Plot = False,
    as_json: AsJson = False,
) -> None:
    """Find the document of each question, and none for questions about documents that are not there."""
    from hybridqa.evaluation.plots import draw_reliability
    from hybridqa.evaluation.routing import make_plan, run_routing

    settings = _settings(context, report_file, work, plot)
    plan = make_plan(docs, questions, settings, most=most, seed=settings.seed if seed is None else seed, far=far)
    draw = draw_reliability if plot else None
    report = _measured(work, report_file, draw, lambda folder, tell: run_routing(plan, folder, tell))
    if as_json:
        output.say_json(report)
        return
    from hybridqa.evaluation.report import cell

    output.say(f"questions: {', '.join(f'{count} {kind}' for kind, count in report['data']['questions'].items())}")
    rows = [(name.replace("_", " "), cell(report[name])) for name in _ROUTED]
    rows += [(f"stranger plugged in, {kind}", cell(value)) for kind, value in report["stranger_plugged_in"].items()]
    rows += [(name.replace("_", " "), cell(report["calibration"][name])) for name in _CALIBRATED]
    output.table((f"at evidence {report['threshold']}", "share"), rows)


@command
def abstention(
    context: typer.Context,
    docs: Docs,
    questions: Questions,
    most: Annotated[int, typer.Option("--most", help="At most so many questions of each kind; 0: all.")] = 150,
    extractor: Extractor = None,
    seed: Seed = None,
    work: Work = None,
    report_file: Output = None,
    plot: Plot = False,
    as_json: AsJson = False,
) -> None:
    """Answer questions with and without an answer, and see which of them hybridqa is sure about."""
    from hybridqa.evaluation.abstention import make_plan, run_abstention
    from hybridqa.evaluation.plots import draw_risk_coverage

    settings = _settings(context, report_file, work, plot)
    seed = settings.seed if seed is None else seed
    plan = make_plan(docs, questions, settings, most=most, seed=seed, extractor=extractor)
    draw = draw_risk_coverage if plot else None
    report = _measured(work, report_file, draw, lambda folder, tell: run_abstention(plan, folder, tell))
    if as_json:
        output.say_json(report)
        return
    from hybridqa.evaluation.report import cell

    for kind, found in report["answered"].items():
        count = report["data"]["questions"][kind]
        output.say(f"{count} questions, {kind}: right {cell(found['right'])}, withheld {cell(found['withheld'])}")
    output.table(
        ("sure by", "area under risk and coverage", "below cosine", "tells what has an answer"),
        (
            [name, *(cell(way[part]) for part in ("area_under_risk_coverage", "below_plain", "tells_answerable"))]
            for name, way in report["ways"].items()
        ),
    )


@command
def conflict(
    context: typer.Context,
    docs: Docs,
    questions: Questions,
    documents: Annotated[
        int, typer.Option("--documents", help="At most so many documents are changed, chosen by seed; 0: all.")
    ] = 12,
    extractor: Extractor = None,
    seed: Seed = None,
    work: Work = None,
    report_file: Output = None,
    as_json: AsJson = False,
) -> None:
    """Change documents whose modules know the old text, and see whose word is taken: yours, the text's or the module's.

    Trains a module for each of the documents, and another after the change; a minute or two each on a CPU.
    """
    from hybridqa.evaluation.conflict import run_conflict
    from hybridqa.evaluation.conflict_plan import make_plan

    settings = _settings(context, report_file, work, plot=False)
    seed = settings.seed if seed is None else seed
    plan = make_plan(docs, questions, settings, documents=documents, seed=seed, extractor=extractor)
    report = _measured(work, report_file, None, lambda folder, tell: run_conflict(plan, folder, tell))
    if as_json:
        output.say_json(report)
        return
    from hybridqa.evaluation.report import cell

    output.say(f"{report['data']['changed']} changed documents of {report['data']['documents']}")
    output.table(
        ("asked", "questions", *(name.replace("_", " ") for name in _CONFLICT)),
        (
            [way, str(found["questions"]), *(cell(found[name]) if name in found else "-" for name in _CONFLICT)]
            for way, found in report["ways"].items()
        ),
    )


_CONFLICT = ("says_new", "says_old", "prefers_new", "moved_to_new", "moved_by", "fresh_module", "stale_module")
_ROUTED = ("right_document_first", "right_document_first_of_one", "right_plugged_in", "wrong_plugged_in")
_CALIBRATED = ("expected_calibration_error", "brier", "area_under_roc")


def _settings(context: typer.Context, report_file: Path | None, work: Path | None, plot: bool) -> Settings:
    """The store's settings, once what can be checked without a model is in order."""
    from hybridqa.config import Settings
    from hybridqa.evaluation.plots import check_plots

    given = options(context)
    quieten(given.debug)
    check_files(report_file, work)
    if plot:
        if report_file is None:
            raise ConfigError("--plot was given without --output; expected both: the picture is put beside the report.")
        check_plots()
    return Settings.load(given.store, name=given.name)


def _measured(work: Path | None, report_file: Path | None, draw: Draw | None, measure: Measure) -> dict[str, Any]:
    """The report of a suite, kept and drawn where that is wanted."""
    with output.progress() as bar, ExitStack() as folders:
        folder = work or Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="hybridqa-eval-")))
        report = measure(folder, StageLine(bar).show)
    keep_report(report, report_file, draw)
    return report
