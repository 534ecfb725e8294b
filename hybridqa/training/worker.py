"""The trainer's process: takes job folders, leaves an adapter and a result in each, says on stdout how far it is.

Run as `python -m hybridqa.training.worker FOLDER…`; prints one JSON object a line. Knows nothing about catalogs or
registries: it publishes nothing. Invariant: a folder with `result.json` is done, and its adapter is the one judged.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.files import atomic_write_text, fsync_tree
from hybridqa.training.beside import load_beside
from hybridqa.training.closeness import ClosenessReport, judge_behaviour
from hybridqa.training.gate import GateReport
from hybridqa.training.judging import judge_module
from hybridqa.training.kept import Kept
from hybridqa.training.lesson import Job
from hybridqa.training.memory import forget_peak, peak_memory
from hybridqa.training.recipe import Recipe
from hybridqa.training.targets import KeptTargets
from hybridqa.training.teaching import Teaching
from hybridqa.training.trainer import Trainer


def say(**event: Any) -> None:
    """One event for whoever started this process."""
    print(json.dumps(event, ensure_ascii=False), flush=True)


def work(folder: Path, trainer: Trainer, prompts: PromptBuilder) -> None:
    """Does the job in `folder` and writes its result."""
    job = Job.load(folder)
    recipe = Recipe(**job.recipe)
    lesson = job.curriculum
    started = time.perf_counter()
    forget_peak()
    for left in folder.glob("kept-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    trainer.attach(recipe)
    beside = load_beside(trainer, job.companions, job.model_hash, seed=recipe.seed)
    told = 0.0

    def on_step(step: int, total: int, loss: float) -> None:
        nonlocal told
        if time.perf_counter() - told > 0.5 or step == total:
            told = time.perf_counter()
            say(job=folder.name, stage="train", step=step, total=total, loss=round(loss, 4))

    with Kept(recipe.memory_mb * 1_000_000 // 2, folder) as kept:
        teaching = Teaching(folder, job, trainer, prompts, recipe, KeptTargets(kept))
        students = teaching.students()
        if recipe.weights().need_teacher:
            say(job=folder.name, stage="teach", step=0, total=len(teaching.pairs))
        teaching.teach()
        retained = teaching.retained()
        taught = time.perf_counter()
        trained = trainer.fit(
            students,
            teaching.targets,
            recipe,
            distractors=beside.distractors,
            retained=retained,
            more=teaching.more(),
            checkpoint=folder,
            on_step=on_step,
        )
    metrics: dict[str, Any] = {"train": {**trained, "dtype": str(trainer.dtype).removeprefix("torch.")}}
    fitted = time.perf_counter()
    adapter = folder / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    trainer.save(adapter, job.model_name)
    say(job=folder.name, stage="gate", step=0, total=1)
    report: GateReport | ClosenessReport
    if teaching.behaviour:
        report = judge_behaviour(trainer, prompts, lesson, recipe)
    else:
        report = judge_module(trainer, prompts, lesson, beside.judges, seed=recipe.seed)
    metrics["gate"] = report.as_dict()
    if beside.record:
        metrics["beside"] = beside.record
    metrics["synthesis"] = lesson.report() | {"pairs": len(teaching.pairs)} | teaching.second_report()
    metrics["seconds"] = {
        "teacher": taught - started,
        "student": fitted - taught,
        "gate": time.perf_counter() - fitted,
        "total": time.perf_counter() - started,
    }
    metrics["peak_memory_mb"] = peak_memory()
    result = {
        "passed": report.passed,
        "reason": report.reason,
        "metrics": metrics,
        "recipe": asdict(recipe),
        "rank": recipe.rank,
        "alpha": recipe.alpha,
        "targets": trainer.targets,
    }
    fsync_tree(adapter)
    atomic_write_text(folder / "result.json", json.dumps(result))
    trainer.detach()
    say(job=folder.name, stage="done", step=1, total=1, passed=report.passed, reason=report.reason)


def end_with_parent() -> None:
    """Ends this process when the one that holds the other end of stdin has gone, however it went."""

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin: a thread inside its lock makes the interpreter abort as it ends
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main(folders: Sequence[str]) -> int:
    """Works through job folders; one that fails is reported and the next one taken."""
    from hybridqa.models import load_tokenizer

    trainer: Trainer | None = None
    prompts: PromptBuilder | None = None
    failed = 0
    for name in folders:
        folder = Path(name)
        try:
            job = Job.load(folder)
            if trainer is None or prompts is None:
                path = Path(job.model_path)
                trainer = Trainer(path, dtype=Recipe(**job.recipe).dtype)
                prompts = PromptBuilder(
                    load_tokenizer(path), max_model_len=job.max_model_len, context_tokens=job.context_tokens
                )
            work(folder, trainer, prompts)
        except Exception as error:  # noqa: BLE001  # one job's own failure: the next may succeed
            failed += 1
            say(job=folder.name, stage="failed", step=0, total=0, reason=f"{type(error).__name__}: {error}")
            if trainer is not None:
                trainer.detach()
    return 1 if failed else 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))
