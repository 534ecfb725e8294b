"""The trainer's process: takes job folders, leaves an adapter and a result in each, says on stdout how far it is.

Run as `python -m hybridqa.training.worker FOLDER…`; prints one JSON object a line. Knows nothing about catalogs or
registries: it publishes nothing. Invariant: a folder with `result.json` is done, and its adapter is the one judged.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.files import atomic_write_text, fsync_tree
from hybridqa.training.gate import GateReport, Scores, judge
from hybridqa.training.lesson import Job
from hybridqa.training.objectives import TeacherTargets
from hybridqa.training.packing import Example
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import Recipe
from hybridqa.training.synthesis import Curriculum
from hybridqa.training.trainer import Trainer
from hybridqa.training.wordings import (
    closed_example,
    contrasts,
    lesson_pairs,
    lessons,
    sourced_example,
    text_examples,
)

READ_QUESTIONS = 8  # of the held-out ones, at most, are also asked with their chunk
TEXT_TOKENS = 1024  # of one row of plain text, all of whose logits are computed
TEACHER_TOKENS = 1024  # of one packed row while the teacher reads: attention grows with the square


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
    if recipe.objective == "next-token":
        students.append(text_examples(prompts, lesson, window=min(job.max_model_len, TEXT_TOKENS)))
    teachers: list[TeacherTargets] = []
    if recipe.weights().need_teacher:
        say(job=folder.name, stage="teach", step=0, total=len(pairs))
        teachers = teach(trainer, prompts, lesson, pairs, recipe)
    taught = time.perf_counter()
    told = 0.0

    def on_step(step: int, total: int, loss: float) -> None:
        nonlocal told
        if time.perf_counter() - told > 0.5 or step == total:
            told = time.perf_counter()
            say(job=folder.name, stage="train", step=step, total=total, loss=round(loss, 4))

    metrics: dict[str, Any] = {"train": trainer.fit(students, teachers, recipe, checkpoint=folder, on_step=on_step)}
    fitted = time.perf_counter()
    adapter = folder / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    trainer.save(adapter, job.model_name)
    say(job=folder.name, stage="gate", step=0, total=1)
    report = judge_module(trainer, prompts, lesson.held_out, job)
    metrics["gate"] = report.as_dict()
    metrics["synthesis"] = {"pairs": len(pairs), "held_out": len(lesson.held_out), "dropped": lesson.dropped}
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
    order = sorted(range(len(pairs)), key=lambda key: pairs[key].passage)  # a chunk is read once a row
    targets = trainer.teach(
        [sourced_example(prompts, pairs[key], key, lesson) for key in order],
        recipe,
        hidden=recipe.weights().hidden > 0,
        tokens=TEACHER_TOKENS,
    )
    return [found for _, found in sorted(zip(order, targets, strict=True), key=lambda item: item[0])]


def judge_module(trainer: Trainer, prompts: PromptBuilder, held_out: Sequence[Pair], job: Job) -> GateReport:
    """The gate's report on the attached adapter."""
    wrong = contrasts(held_out, seed=job.recipe["seed"])
    read = range(0, len(held_out), max(1, math.ceil(len(held_out) / READ_QUESTIONS)))

    def scores(places: Sequence[int], ask: Callable[[Pair, int], Example]) -> tuple[Scores, Scores]:
        examples = [
            ask(replace(held_out[place], question=question), place)
            for place in places
            for question in (held_out[place].question, *wrong[place])
        ]
        sizes = [1 + len(wrong[place]) for place in places]
        without, adapted = trainer.compare(examples, tokens=TEACHER_TOKENS)
        return _by_question(without, sizes), _by_question(adapted, sizes)

    def closed(pair: Pair, key: int) -> Example:
        return closed_example(prompts, pair, key, 0)

    def sourced(pair: Pair, key: int) -> Example:
        return sourced_example(prompts, pair, key, job.curriculum)

    return judge(
        *scores(range(len(held_out)), closed),
        *scores(read, sourced),
        seed=job.recipe["seed"],
    )


def _by_question(values: Sequence[float], sizes: Sequence[int]) -> Scores:
    """Scores laid out question by question, the right one first."""
    rest = iter(values)
    groups = [tuple(itertools.islice(rest, size)) for size in sizes]
    return Scores(tuple(group[0] for group in groups), tuple(group[1:] for group in groups))


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
