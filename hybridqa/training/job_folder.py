"""What is done alike with the folder of every job of the trainer's: taking it up again, and making its manifest.

Knows nothing about documents or contexts. Invariant: a folder is taken up only when its job can be read whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybridqa.config import Settings
from hybridqa.engine.vllm_args import context_length
from hybridqa.models import ModelFolder
from hybridqa.modules.manifest import Manifest
from hybridqa.provenance import commit, hardware
from hybridqa.training.lesson import BESIDE, CHECKPOINT, Job

RESULT = "result.json"
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
