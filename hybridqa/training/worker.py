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
from hybridqa.training.closeness import ClosenessReport, judge_behaviour, row_tokens
from hybridqa.training.gate import GateReport
from hybridqa.training.judging import PACK_TOKENS, judge_module
from hybridqa.training.lesson import Job
from hybridqa.training.objectives import TeacherTargets
from hybridqa.training.packing import Example
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import Recipe
from hybridqa.training.retention import TRAINING, mixed, retention_examples
from hybridqa.training.synthesis import Curriculum
from hybridqa.training.trainer import Trainer
from hybridqa.training.wordings import lesson_pairs, lessons, teacher_example, text_examples
from hybridqa.types import ModuleKind

TEXT_TOKENS = 1024  # of one row of plain text, all of whose logits are computed


def say(**event: Any) -> None:
    """One event for whoever started this process."""
    print(json.dumps(event, ensure_ascii=False), flush=True)


def work(folder: Path, trainer: Trainer, prompts: PromptBuilder) -> None:
    """Does the job in `folder` and writes its result."""
    job = Job.load(folder)
    recipe = Recipe(**job.recipe)
    lesson = job.curriculum
    pairs = lesson_pairs(lesson, recipe.objective)
    started = time.perf_counter()
    trainer.attach(recipe)
    students = lessons(prompts, lesson, pairs, reading=recipe.reading, seed=recipe.seed)
    behaviour = lesson.kind is not ModuleKind.DOCUMENT
    if recipe.objective == "next-token" and not behaviour:
        students.append(text_examples(prompts, lesson, window=min(job.max_model_len, TEXT_TOKENS)))
    beside = load_beside(trainer, job.companions, job.model_hash, seed=recipe.seed)
    teachers: list[TeacherTargets] = []
    if recipe.weights().need_teacher:
        say(job=folder.name, stage="teach", step=0, total=len(pairs))
        teachers = teach(trainer, prompts, lesson, pairs, recipe)
    retained: list[list[Example]] = []
    if recipe.retention and not behaviour:  # a behaviour's general questions are in its curriculum, with their teacher
        retained = retain(trainer, prompts, mixed(TRAINING, job.off_topic), recipe, teachers)
    taught = time.perf_counter()
    told = 0.0

    def on_step(step: int, total: int, loss: float) -> None:
        nonlocal told
        if time.perf_counter() - told > 0.5 or step == total:
            told = time.perf_counter()
            say(job=folder.name, stage="train", step=step, total=total, loss=round(loss, 4))

    trained = trainer.fit(
        students,
        teachers,
        recipe,
        distractors=beside.distractors,
        retained=retained,
        checkpoint=folder,
        on_step=on_step,
    )
    metrics: dict[str, Any] = {"train": trained}
    fitted = time.perf_counter()
    adapter = folder / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    trainer.save(adapter, job.model_name)
    say(job=folder.name, stage="gate", step=0, total=1)
    report: GateReport | ClosenessReport
    if behaviour:
        report = judge_behaviour(trainer, prompts, lesson, recipe)
    else:
        report = judge_module(trainer, prompts, lesson, beside.judges, seed=recipe.seed)
    metrics["gate"] = report.as_dict()
    if beside.record:
        metrics["beside"] = beside.record
    metrics["synthesis"] = lesson.report() | {"pairs": len(pairs)}
    metrics["seconds"] = {
        "teacher": taught - started,
        "student": fitted - taught,
        "gate": time.perf_counter() - fitted,
        "total": time.perf_counter() - started,
    }
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


def teach(
    trainer: Trainer, prompts: PromptBuilder, lesson: Curriculum, pairs: Sequence[Pair], recipe: Recipe
) -> list[TeacherTargets]:
    """The teacher's targets for each pair, in order."""
    # A context and a chunk are read once a row.
    order = sorted(range(len(pairs)), key=lambda key: (pairs[key].context, pairs[key].passage, pairs[key].also))
    examples = [teacher_example(prompts, pairs[key], key, lesson) for key in order]
    targets = trainer.teach(examples, recipe, hidden=recipe.weights().hidden > 0, tokens=row_tokens(examples))
    return [found for _, found in sorted(zip(order, targets, strict=True), key=lambda item: item[0])]


def retain(
    trainer: Trainer,
    prompts: PromptBuilder,
    questions: Sequence[tuple[str, str]],
    recipe: Recipe,
    teachers: list[TeacherTargets],
) -> list[list[Example]]:
    """Examples to be answered as the base model alone answers them; what it says is put behind the other targets."""
    lists = retention_examples(prompts, questions, first=len(teachers))
    examples = [item for part in lists for item in part]
    targets = trainer.teach(examples, recipe, hidden=False, tokens=PACK_TOKENS)
    by_key = sorted(zip((item.key for item in examples), targets, strict=True), key=lambda item: item[0])
    teachers.extend(found for _, found in by_key)
    return lists


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
                trainer = Trainer(path)
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
