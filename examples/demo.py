"""The main job, start to end: add documents, answer at once, distil modules, answer again with both, compare."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from hybridqa import HybridQA, Mode
from hybridqa.engine.environment import prepare_environment
from hybridqa.evaluation.metrics import contains, token_f1
from hybridqa.evaluation.statistics import mean_interval
from hybridqa.provenance import commit, hardware
from hybridqa.types import Answer

HERE = Path(__file__).resolve().parent
STORE = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "demo-store"
MODES = (Mode.CLOSED, Mode.RETRIEVAL, Mode.MODULES, Mode.HYBRID)
ASKED_AT_ONCE = 3
SMALL = {"passage_tokens": 100, "passages": 2, "max_answer_tokens": 32}  # two cores read and write slowly
prepare_environment()  # before anything loads torch
console = Console(width=min(shutil.get_terminal_size((100, 24)).columns, 110))


def progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def share(values: list[float]) -> dict[str, float]:
    """The mean with its 95% interval, by bootstrap over questions."""
    return asdict(mean_interval(values))


def show(question: str, answer: Answer) -> None:
    console.print(f"  [bold]{question}[/bold]")
    console.print(f"  {answer.text}", markup=False)
    for citation in answer.citations:
        quote = " ".join(citation.quote.split())
        console.print(
            f"    [{citation.number}] {citation.doc_id} {citation.start}-{citation.end}: “{quote}”", markup=False
        )
    for choice in answer.modules:
        console.print(f"    module {choice.module.name}", style="dim", markup=False)


def main() -> None:
    started = time.perf_counter()
    spent: dict[str, float] = {}

    def lap(name: str, since: float) -> float:
        now = time.perf_counter()
        spent[name] = spent.get(name, 0.0) + now - since
        return now

    questions = [json.loads(line) for line in (HERE / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    with HybridQA.open(STORE, create=True, **SMALL) as qa:
        clock = time.perf_counter()
        console.rule("1 · documents")
        for result in qa.add(HERE / "corpus"):
            console.print(f"  {result.doc_id}: {result.result}, {result.passages} passages", markup=False)
        clock = lap("add documents", clock)

        console.rule("2 · answers at once, from passages alone")
        with console.status("starting the engine…"):
            qa.warm_up()
        clock = lap("start the engine", clock)
        sample = questions[:: max(1, len(questions) // ASKED_AT_ONCE)][:ASKED_AT_ONCE]
        for item in sample:
            show(item["question"], qa.ask(item["question"], mode=Mode.RETRIEVAL))
        clock = lap("first answers", clock)

        console.rule("3 · a module for each document")
        with progress() as bars:
            tasks: dict[str, TaskID] = {}

            def on_event(event) -> None:  # type: ignore[no-untyped-def]
                if event.doc_id not in tasks:
                    tasks[event.doc_id] = bars.add_task(event.doc_id, total=1)
                task = tasks[event.doc_id]
                bars.update(
                    task,
                    description=f"{event.doc_id[:28]:28} {event.stage:10}",
                    completed=event.step,
                    total=max(event.total, 1),
                )
                if event.stage in ("skip", "publish", "failed"):
                    bars.update(task, completed=1, total=1)

            report = qa.refresh(on_event=on_event)
        for outcome in report.outcomes:
            console.print(f"  {outcome.doc_id}: {outcome.state}, {outcome.reason}", markup=False)
        clock = lap("distil modules", clock)

        console.rule("4 · the same questions, four ways")
        table = Table("mode", "gold answer in text (95%)", "token F1 (95%)", "prompt tokens", "seconds")
        scores: dict[str, Any] = {}
        with progress() as bars:
            for mode in MODES:
                task = bars.add_task(mode.value, total=len(questions))
                began = time.perf_counter()
                answers = qa.ask_many(
                    [item["question"] for item in questions],
                    mode=mode,
                    on_answer=lambda *_, task=task: bars.advance(task),
                )
                scored = list(zip(answers, questions, strict=True))
                held = [contains(answer.text, item["answers"]) for answer, item in scored]
                overlap = [token_f1(answer.text, item["answers"]) for answer, item in scored]
                row = {
                    "contains": share(held),
                    "token_f1": share(overlap),
                    "prompt_tokens": sum(answer.usage.prompt_tokens for answer in answers) / len(answers),
                    "seconds": time.perf_counter() - began,
                }
                scores[mode.value] = row
                table.add_row(
                    mode.value,
                    f"{sum(held):.0f} of {len(held)}  ({row['contains']['low']:.2f}-{row['contains']['high']:.2f})",
                    f"{row['token_f1']['mean']:.2f}  ({row['token_f1']['low']:.2f}-{row['token_f1']['high']:.2f})",
                    f"{row['prompt_tokens']:.0f}",
                    f"{row['seconds']:.0f}",
                )
        console.print(table)
        for item in sample:
            show(item["question"], qa.ask(item["question"]))
        lap("answer four ways", clock)
        record = {
            "command": "make demo",
            "commit": commit(),
            "hardware": hardware(),
            "model": {"name": qa.model.name, "hash": qa.model.hash},
            "seeds": {"all": qa.settings.seed},
            "settings": SMALL,
            "questions": len(questions),
            "scores": scores,
            "modules": {outcome.doc_id: outcome.metrics for outcome in report.outcomes},
            "timings": spent,
        }
        (STORE / "demo-result.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    console.rule("where time went")
    for name, seconds in spent.items():
        console.print(f"  {seconds:6.1f} s  {name}")
    console.print(f"  {time.perf_counter() - started:6.1f} s  in all")
    console.rule("try next")
    where = STORE.name if STORE.parent == Path.cwd() else STORE
    console.print(f'  .venv/bin/hybridqa --store {where} ask "How heavy is a grown marbled tammerel?"', markup=False)
    console.print(f"  .venv/bin/hybridqa --store {where} add examples/updates/travel-policy.md", markup=False)
    console.print(f"  .venv/bin/hybridqa --store {where} refresh", markup=False)


if __name__ == "__main__":
    main()
