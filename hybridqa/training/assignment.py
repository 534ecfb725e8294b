"""One job of the trainer's process: what it teaches before the steps, and the adapter, gate and result after them.

Knows nothing about catalogs or registries: it publishes nothing. Invariant: a folder with `result.json` is done, and
its adapter is the one judged.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.files import atomic_write_text, fsync_tree
from hybridqa.training.beside import begin_beside, load_beside
from hybridqa.training.closeness import ClosenessReport, judge_behaviour
from hybridqa.training.fitting import Fit
from hybridqa.training.gate import GateReport
from hybridqa.training.judging import judge_module
from hybridqa.training.kept import Kept
from hybridqa.training.lesson import Job
from hybridqa.training.memory import peak_gpu_memory, peak_memory
from hybridqa.training.recipe import Recipe
from hybridqa.training.targets import KeptTargets
from hybridqa.training.teaching import Teaching
from hybridqa.training.trainer import Trainer

Say = Callable[..., None]  # one event for whoever started the process
SAY_EVERY = 0.5  # seconds


class Assignment:
    """A job on a trainer whose adapter is attached, and has to be whenever this is called."""

    def __init__(self, folder: Path, trainer: Trainer, prompts: PromptBuilder, say: Say, *, share: float = 1.0) -> None:
        """`share` of the recipe's memory is this job's."""
        self.folder = folder
        self.job = Job.load(folder)
        self.recipe = Recipe(**self.job.recipe)
        self._trainer, self._prompts, self._say, self._share = trainer, prompts, say, share
        self._told = 0.0
        for left in folder.glob("kept-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        started = time.perf_counter()
        self._kept = Kept(int(self.recipe.memory_mb * 1_000_000 * share) // 2, folder)
        try:
            self._run = self._begin()
        except BaseException:
            self._kept.close()
            raise
        self._teacher_seconds = time.perf_counter() - started

    def _begin(self) -> Fit:
        """Everything that comes before the first step."""
        trainer, recipe = self._trainer, self.recipe
        self._beside = load_beside(trainer, begin_beside(self.folder, self.job), self.job.model_hash, seed=recipe.seed)
        self._teaching = Teaching(self.folder, self.job, trainer, self._prompts, recipe, KeptTargets(self._kept))
        students = self._teaching.students()
        if recipe.weights().need_teacher:
            self._say(job=self.folder.name, stage="teach", step=0, total=len(self._teaching.pairs))
        self._teaching.teach()
        return Fit(
            trainer,
            students,
            self._teaching.targets,
            recipe,
            distractors=self._beside.distractors,
            retained=self._teaching.retained(),
            more=self._teaching.more(),
            checkpoint=self.folder,
            on_step=self._on_step,
            share=self._share,
        )

    @property
    def fit(self) -> Fit:
        """The steps to take."""
        return self._run

    def close(self) -> None:
        """Lets go of what was kept between steps."""
        self._run.__exit__(None, None, None)
        self._kept.close()

    def _on_step(self, step: int, total: int, loss: float) -> None:
        if time.perf_counter() - self._told > SAY_EVERY or step == total:
            self._told = time.perf_counter()
            self._say(job=self.folder.name, stage="train", step=step, total=total, loss=round(loss, 4))

    def finish(self, together: int = 1) -> None:
        """Saves and judges the adapter, whose steps are taken, and writes the result; so many jobs shared the steps."""
        folder, trainer, recipe, lesson = self.folder, self._trainer, self.recipe, self.job.curriculum
        self.close()
        began = time.perf_counter()
        adapter = folder / "adapter"
        shutil.rmtree(adapter, ignore_errors=True)
        trainer.save(adapter, self.job.model_name)
        self._say(job=folder.name, stage="gate", step=0, total=1)
        report: GateReport | ClosenessReport
        if self._teaching.behaviour:
            report = judge_behaviour(trainer, self._prompts, lesson, recipe)
        else:
            report = judge_module(trainer, self._prompts, lesson, self._beside.judges, seed=recipe.seed)
        dtype = str(trainer.dtype).removeprefix("torch.")
        train = self._run.report()  # of all legs, where it was killed and taken up again
        metrics: dict[str, Any] = {"train": {**train, "dtype": dtype, "together": together}}
        metrics["gate"] = report.as_dict()
        if self._beside.record:
            metrics["beside"] = self._beside.record
        pairs = len(self._teaching.pairs)
        metrics["synthesis"] = lesson.report() | {"pairs": pairs} | self._teaching.second_report()
        seconds = {"teacher": self._teacher_seconds, "student": train["seconds"], "gate": time.perf_counter() - began}
        metrics["seconds"] = {**seconds, "total": sum(seconds.values())}
        metrics["peak_memory_mb"] = peak_memory()
        if (on_gpu := peak_gpu_memory()) is not None:
            metrics["peak_gpu_memory_mb"] = on_gpu
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
        self._say(
            job=folder.name,
            stage="done",
            step=1,
            total=1,
            passed=report.passed,
            reason=report.reason,
            together=together,
        )
