"""An extractor's training on disk: its exercises as text, the modules that stand beside it, the recipe.

Knows nothing about torch. Invariant: a job's name is a hash of everything that decides its result, so a finished job is
found again after a kill and one of other data never is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridqa.files import atomic_write_text
from hybridqa.training.exercises import Exercise

JOB_FORMAT = 1


@dataclass(frozen=True, slots=True)
class ExtractorJob:
    """One extractor to train."""

    model_name: str  # as its user calls it
    model_path: str
    model_hash: str
    prompt: str  # `PromptBuilder.fingerprint`
    context_tokens: int
    max_model_len: int
    recipe: dict[str, Any]
    exercises: tuple[Exercise, ...]
    held_out: tuple[Exercise, ...]
    modules: dict[str, str]  # document → sha256 of its module's weights
    folders: dict[str, str]  # document → its module's folder

    @property
    def name(self) -> str:
        """What the job's folder is called."""
        decides = {key: value for key, value in asdict(self).items() if key not in _CIRCUMSTANCES}
        text = json.dumps([JOB_FORMAT, decides], sort_keys=True, ensure_ascii=False)
        return f"extractor-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def save(self, folder: Path) -> None:
        """Writes the job into its folder."""
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(folder / "job.json", json.dumps({"format": JOB_FORMAT, **asdict(self)}, ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path) -> ExtractorJob:
        """Reads a job from its folder."""
        data = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        data.pop("format")
        for name in ("exercises", "held_out"):
            data[name] = tuple(Exercise(**{**item, "sources": tuple(item["sources"])}) for item in data[name])
        return cls(**data)


_CIRCUMSTANCES = ("model_name", "model_path", "context_tokens", "max_model_len", "folders")  # they decide no result
