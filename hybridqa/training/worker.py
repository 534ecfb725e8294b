"""The trainer's process: takes job folders, leaves an adapter and a result in each, says on stdout how far it is.

Run as `python -m hybridqa.training.worker [--together N] FOLDER…`; prints one JSON object a line. Knows nothing about
catalogs or registries. Invariant: what ends one job, or a kill, leaves the others as they were, and each job ends once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.training.assignment import Assignment
from hybridqa.training.lesson import Job
from hybridqa.training.memory import forget_peak, give_back
from hybridqa.training.pace import step_back
from hybridqa.training.recipe import Recipe
from hybridqa.training.together import Together
from hybridqa.training.trainer import Trainer

TOGETHER_ON_GPU = 8  # jobs at a time, where the number is left to the worker; on a CPU one


def say(**event: Any) -> None:
    """One event for whoever started this process."""
    print(json.dumps(event, ensure_ascii=False), flush=True)


class Worker:
    """Works through jobs, some of them together."""

    def __init__(self, together: int) -> None:
        """`together`: how many jobs of one recipe train at a time; 0: as many as suit the device."""
        self._together = together
        self._trainer: Trainer | None = None
        self._prompts: PromptBuilder | None = None
        self._ended: set[Path] = set()
        self.failed = 0

    def run(self, folders: Sequence[Path]) -> None:
        """Does the jobs, in order but for those that are taken along by one of the same recipe."""
        waiting = list(folders)
        while waiting:
            first = waiting.pop(0)
            with self._apart(first):
                batch, recipe = self._batch(first, waiting)
                waiting = [folder for folder in waiting if folder not in batch]
                self._work(batch, recipe)

    def _batch(self, first: Path, waiting: Sequence[Path]) -> tuple[list[Path], Recipe]:
        """The jobs to begin with, and their recipe; what else they hold is not kept."""
        job = Job.load(first)
        self._open(job)
        return [first, *self._alike(job, waiting)], Recipe(**job.recipe)

    @contextmanager
    def _apart(self, folder: Path, *, alone: bool = True) -> Iterator[None]:
        """Inside, whatever goes wrong is reported as this job's own failure: the next may succeed.

        But for a lack of the GPU's memory where the job is not `alone` there.
        """
        try:
            yield
        except Exception as error:
            if not alone and isinstance(error, torch.OutOfMemoryError):
                raise
            self.failed += 1
            self._ended.add(folder)
            say(job=folder.name, stage="failed", step=0, total=0, reason=f"{type(error).__name__}: {error}")

    def _open(self, job: Job) -> None:
        """Loads the base model of the first job; all are of the same."""
        from hybridqa.models import load_tokenizer

        if self._trainer is None:
            path = Path(job.model_path)
            self._trainer = Trainer(path, dtype=Recipe(**job.recipe).dtype)
            self._prompts = PromptBuilder(
                load_tokenizer(path), max_model_len=job.max_model_len, context_tokens=job.context_tokens
            )
            self._together = self._together or (TOGETHER_ON_GPU if self._trainer.device.type == "cuda" else 1)

    def _alike(self, job: Job, folders: Sequence[Path]) -> list[Path]:
        """Jobs that may train in one row with this one."""
        found: list[Path] = []
        for folder in folders:
            if len(found) + 1 >= self._together:
                break
            try:
                other = Job.load(folder)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # its own turn says what is wrong
            if (other.model_path, other.recipe) == (job.model_path, job.recipe):
                found.append(folder)
        return found

    def _work(self, folders: Sequence[Path], recipe: Recipe) -> None:
        """Trains the jobs together; what they cannot do so, such as for want of memory, each does alone."""
        try:
            self._train(folders, recipe)
            return
        except Exception as error:
            if len(folders) == 1:
                raise
            why = f"{type(error).__name__}: {error}"
        # Only here is the error gone, and with it what the steps held of the GPU's memory.
        print(f"{len(folders)} jobs cannot train together, each goes on alone: {why}", file=sys.stderr, flush=True)
        give_back()
        for folder in folders:
            if folder not in self._ended:
                with self._apart(folder):  # it goes on from its checkpoint
                    self._train([folder], recipe)

    def _train(self, folders: Sequence[Path], recipe: Recipe) -> None:
        """Trains the jobs' adapters, each in its turn or all in one row, and judges them."""
        assert self._trainer is not None and self._prompts is not None
        alone = len(folders) == 1
        give_back()  # of the jobs before
        forget_peak()
        begun: dict[int, Assignment] = {}
        with Together(self._trainer, recipe, len(folders)) as adapters:
            try:
                for place, folder in enumerate(folders):
                    adapters.use(place)
                    with self._apart(folder, alone=alone):
                        begun[place] = Assignment(folder, self._trainer, self._prompts, say, share=1 / len(folders))
                failures = adapters.fit({place: work.fit for place, work in begun.items()})
                for place, work in begun.items():
                    adapters.use(place)
                    with self._apart(work.folder, alone=alone):
                        if place in failures:
                            raise failures[place]
                        work.finish(len(begun))
                        self._ended.add(work.folder)
            finally:
                for work in begun.values():
                    work.close()


def end_with_parent() -> None:
    """Ends this process when the one that holds the other end of stdin has gone, however it went."""

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin: a thread inside its lock makes the interpreter abort as it ends
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main(arguments: Sequence[str]) -> int:
    """Works through job folders; one that fails is reported and the next one taken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--together", type=int, default=0)
    parser.add_argument("folders", nargs="*", type=Path)
    given = parser.parse_args(list(arguments))
    worker = Worker(given.together)
    worker.run(given.folders)
    return 1 if worker.failed else 0


if __name__ == "__main__":
    end_with_parent()
    step_back()
    sys.exit(main(sys.argv[1:]))
