"""Other modules, loaded to stand beside the one under training: in some of its steps, and when it is judged.

Knows nothing about catalogs or losses. Invariant: a folder that is not what its manifest says, or is of another base
model, is left out with a note, and stops nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridqa.errors import HybridQAError
from hybridqa.files import atomic_write_text
from hybridqa.modules.adapter import WEIGHTS_FILE
from hybridqa.modules.manifest import check_files, read_manifest
from hybridqa.training.lesson import BESIDE, CHECKPOINT, Job
from hybridqa.training.lora import Companion
from hybridqa.training.others import JUDGES
from hybridqa.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Beside:
    """Other modules, loaded: those to train beside, alone and summed, and those that the gate judges beside."""

    distractors: tuple[Companion, ...] = ()
    judges: tuple[Companion, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)  # names with their weights' hashes, and what was left out


def load_beside(trainer: Trainer, folders: Sequence[str], model_hash: str, *, seed: int = 0) -> Beside:
    """The modules in `folders` as companions of the adapter that is attached.

    With three and more, the last two are the gate's alone: what it judges beside was not there in training. The record
    says how many of the first were there, in order.
    """
    loaded: list[Path] = []
    singles: list[Companion] = []
    names: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for folder in map(Path, folders):
        label = f"{folder.parent.name}/{folder.name}"  # the whole path would tell of this machine
        try:
            manifest = read_manifest(folder)
            label = f"{manifest.module_id}@{manifest.version}"
            if manifest.base_model_hash != model_hash:
                skipped[label] = "of another base model"
                continue
            check_files(folder, manifest)
            singles.append(trainer.companion([folder]))
        except HybridQAError as error:
            skipped[label] = type(error).__name__
            continue
        loaded.append(folder)
        names[label] = manifest.files[WEIGHTS_FILE]
    judging = len(singles) - JUDGES if len(singles) > JUDGES else 0  # where the gate's begin
    trained = judging or len(singles)
    rng = random.Random(seed)
    sums = [
        trainer.companion([loaded[place] for place in sorted(rng.sample(range(trained), count))])
        for count in (2, 3)
        if count <= trained
    ]
    record = {"trained_beside": trained, "modules": names, "skipped": skipped} if folders else {}
    return Beside((*singles[:trained], *sums), tuple(singles[judging:][:JUDGES]), record)


def begin_beside(folder: Path, job: Job) -> tuple[str, ...]:
    """The companions that a job trains beside from now on: it is told of no others, and has them again after a kill."""
    path = folder / BESIDE
    if (folder / CHECKPOINT).exists() and path.is_file():
        with suppress(ValueError):
            return tuple(json.loads(path.read_text(encoding="utf-8")))
    atomic_write_text(path, json.dumps(job.companions))
    return job.companions
