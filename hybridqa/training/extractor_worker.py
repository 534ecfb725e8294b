"""The process that trains an extractor: takes job folders, leaves an adapter and a result in each.

Run as `python -m hybridqa.training.extractor_worker FOLDER…`; says what `worker` says, in the same way. Knows nothing
about catalogs or registries. Invariant: a folder with `result.json` is done, and its adapter is the one judged.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybridqa.answering.prompt import PromptBuilder, messages_for
from hybridqa.files import atomic_write_text, fsync_tree
from hybridqa.training.exercises import Exercise
from hybridqa.training.extractor_gate import ExtractorReport, judge_extractor
from hybridqa.training.extractor_job import ExtractorJob
from hybridqa.training.lazy_companions import LazyCompanions
from hybridqa.training.pace import step_back
from hybridqa.training.packing import Example
from hybridqa.training.recipe import Recipe
from hybridqa.training.trainer import Trainer
from hybridqa.training.worker import end_with_parent, say

CLOSED_AT_ONCE = 2  # short prompts in one pack: by tokens there would be dozens, and each would count for little

Lists = list[tuple[str | None, list[Example]]]  # the document whose module is plugged in, and examples that begin alike


def work(folder: Path, trainer: Trainer, prompts: PromptBuilder) -> None:
    """Does the job in `folder` and writes its result."""
    job = ExtractorJob.load(folder)
    recipe = Recipe(**job.recipe)
    trainer.attach(recipe, learn_weights=True)
    assert trainer.maps is not None
    students = lists(prompts, job.exercises, closed_at_once=CLOSED_AT_ONCE)
    companions = _companions(trainer, job, students, recipe)
    told = 0.0

    def on_step(step: int, total: int, loss: float) -> None:
        nonlocal told
        if time.perf_counter() - told > 0.5 or step == total:
            told = time.perf_counter()
            say(job=folder.name, stage="train", step=step, total=total, loss=round(loss, 4))

    examples = [examples for _, examples in students]
    train = trainer.fit(examples, [], recipe, companions=companions, checkpoint=folder, on_step=on_step)
    fitted = time.perf_counter()
    adapter = folder / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    trainer.save(adapter, job.model_name)
    say(job=folder.name, stage="gate", step=0, total=1)
    report = judge_on(trainer, prompts, job, recipe)
    weights = trainer.maps.companion_weights() if any(exercise.module for exercise in job.exercises) else {}
    seconds = {"train": train["seconds"], "gate": time.perf_counter() - fitted}  # of all legs, of the last
    result = {
        "passed": report.passed,
        "reason": report.reason,
        "metrics": {
            "train": train,
            "gate": report.as_dict(),
            "seconds": {**seconds, "total": sum(seconds.values())},
        },
        "recipe": asdict(recipe),
        "rank": recipe.rank,
        "alpha": recipe.alpha,
        "targets": trainer.targets,
        "module_weights": weights,
    }
    fsync_tree(adapter)
    atomic_write_text(folder / "result.json", json.dumps(result))
    trainer.detach()
    say(job=folder.name, stage="done", step=1, total=1, passed=report.passed, reason=report.reason)


def lists(prompts: PromptBuilder, exercises: Sequence[Exercise], *, closed_at_once: int | None = None) -> Lists:
    """The exercises as examples, keyed by their place, in lists of one module and one instruction each.

    Closed prompts are in lists of `closed_at_once`, where that is given.
    """
    groups: dict[tuple[str | None, bool], list[Example]] = {}
    for place, exercise in enumerate(exercises):
        prompt = prompts.encode(messages_for(exercise.question, exercise.sources))
        example = Example(prompt, prompts.encode_answer(exercise.target), place)
        groups.setdefault((exercise.module, bool(exercise.sources)), []).append(example)
    found: Lists = []
    for (module, sourced), examples in groups.items():
        size = len(examples) if sourced or closed_at_once is None else closed_at_once
        found.extend((module, examples[first : first + size]) for first in range(0, len(examples), size))
    return found


def judge_on(trainer: Trainer, prompts: PromptBuilder, job: ExtractorJob, recipe: Recipe) -> ExtractorReport:
    """The report on the attached adapter; without it, modules count as they do where there is no extractor."""
    groups = lists(prompts, job.held_out)
    companions = _companions(trainer, job, groups, recipe)
    scores: dict[bool, dict[int, float]] = {False: {}, True: {}}
    for (_, examples), companion in zip(groups, companions, strict=True):
        for adapter, found in scores.items():
            values = trainer.score(examples, adapter=adapter, companion=companion, tokens=recipe.pack_tokens)
            found.update(zip((example.key for example in examples), values, strict=True))
    places = range(len(job.held_out))
    without, adapted = ([scores[adapter][place] for place in places] for adapter in (False, True))
    return judge_extractor(job.held_out, without, adapted, seed=recipe.seed)


def _companions(trainer: Trainer, job: ExtractorJob, groups: Lists, recipe: Recipe) -> LazyCompanions:
    folders = [None if module is None else Path(job.folders[module]) for module, _ in groups]
    return LazyCompanions(folders, trainer.companion, recipe.memory_mb * 1_000_000 // 2)


def main(folders: Sequence[str]) -> int:
    """Works through job folders; one that fails is reported and the next one taken."""
    from hybridqa.models import load_tokenizer

    failed = 0
    for name in folders:
        folder = Path(name)
        try:
            job = ExtractorJob.load(folder)
            path = Path(job.model_path)
            prompts = PromptBuilder(
                load_tokenizer(path), max_model_len=job.max_model_len, context_tokens=job.context_tokens
            )
            work(folder, Trainer(path, dtype="auto"), prompts)
        except Exception as error:  # noqa: BLE001  # one job's own failure: the next may succeed
            failed += 1
            reason: dict[str, Any] = {"reason": f"{type(error).__name__}: {error}"}
            say(job=folder.name, stage="failed", step=0, total=0, **reason)
    return 1 if failed else 0


if __name__ == "__main__":
    end_with_parent()
    step_back()
    sys.exit(main(sys.argv[1:]))
