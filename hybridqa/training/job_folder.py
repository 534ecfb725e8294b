"""What is done alike with the folders of the trainer's jobs: taking up, taking away, and making a manifest.

Knows nothing about what a job is distilled from but whose it is. Invariant: a folder is taken up only when its job can
be read whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hybridqa.config import Settings
from hybridqa.engine.vllm_args import context_length
from hybridqa.models import ModelFolder
from hybridqa.modules.manifest import Manifest
from hybridqa.provenance import commit, hardware
from hybridqa.training.curricula import CurriculumCache
from hybridqa.training.lesson import BESIDE, CHECKPOINT, Job

RESULT = "result.json"
REFRESH_LOCK, DISTILL_LOCK = ".refresh.lock", ".distill.lock"  # beside the jobs, of the one process that is at work
UNREADABLE = (OSError, ValueError, TypeError, KeyError)  # what a file that was cut off or is of another format raises


def made_with(model: ModelFolder, settings: Settings) -> list[Any]:
    """What decides a job's synthetic data beside its model, document and recipe."""
    room = [settings.context_tokens, context_length(model.path, settings.max_model_len)]
    return [settings.engine, settings.dtype, settings.generator_url, settings.generator_model, *room]


def circumstances(model: ModelFolder, settings: Settings) -> dict[str, Any]:
    """What a job says of where the model is now, and how long a prompt may be."""
    return {
        "model_name": model.name,
        "model_path": str(model.path),
        "context_tokens": settings.context_tokens,
        "max_model_len": context_length(model.path, settings.max_model_len),
    }


def take_up(folder: Path, now: Mapping[str, Any]) -> bool:
    """Whether there is a job in the folder, which then hears its circumstances `now`."""
    if (folder / RESULT).is_file():
        return True
    try:
        job = Job.load(folder)
    except UNREADABLE:
        shutil.rmtree(folder, ignore_errors=True)  # a checkpoint of who knows what data
        return False
    if not (folder / CHECKPOINT).exists():
        (folder / BESIDE).unlink(missing_ok=True)  # it begins anew, beside what is there by then
    told = replace(job, **now)
    if told != job:
        told.save(folder)
    return True


def remove_jobs(folders: Iterable[Path], outdated: Callable[[Job], bool]) -> None:
    """Deletes those jobs that are `outdated`, and those that cannot be read."""
    for folder in folders:
        try:
            gone = outdated(Job.load(folder))
        except UNREADABLE:
            gone = True
        if gone:
            shutil.rmtree(folder, ignore_errors=True)


def forget_document(work_dir: Path, collection: str, doc_id: str) -> None:
    """Deletes what was written to distil a document, and plug-ins' unfinished jobs with words of its collection.

    What a process has under way is left to it: a refresh deletes it at its end, a distillation when it publishes.
    """
    CurriculumCache(work_dir).remove(lambda *owner: owner[:2] == (collection, doc_id))
    holds: dict[str, tuple[str, Callable[[Job], bool]]] = {
        "job-*": (REFRESH_LOCK, lambda job: (job.collection, job.doc_id) == (collection, doc_id)),
        "plugin-*": (DISTILL_LOCK, lambda job: job.collection == collection and bool(job.curriculum.chunks)),
    }
    for pattern, (lock, outdated) in holds.items():
        if folders := list(work_dir.glob(pattern)):
            with suppress(Timeout), FileLock(work_dir / lock, timeout=0):
                remove_jobs(folders, outdated)


def begun(folder: Path) -> bool:
    """Whether a job has been trained, in part or whole, and not been taken away: what was spent on it is kept."""
    return any((folder / name).is_file() for name in (CHECKPOINT, RESULT))


def result_manifest(
    result: Mapping[str, Any], model: ModelFolder, seed: int, metrics: Mapping[str, Any], **about: Any
) -> Manifest:
    """The manifest of a finished job's adapter; `about` says whose it is. Raises `KeyError` for a result cut short."""
    return Manifest(
        base_model=model.name,
        base_model_hash=model.hash,
        rank=result["rank"],
        alpha=result["alpha"],
        targets=result["targets"],
        recipe=result["recipe"],
        seeds={"train": result["recipe"]["seed"], "synthesis": seed},
        hardware=hardware(),
        commit=commit(),
        metrics={**result["metrics"], "recipe": result["recipe"], "reason": result["reason"], **metrics},
        **about,
    )
