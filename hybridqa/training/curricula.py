"""Curricula kept on disk, so that what an engine took minutes to write is written once for all recipes.

Knows nothing about how they are made. Invariant: a file says which document version it was made from, so that it goes
when the document does; one that cannot be read, or is of another format, counts as not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybridqa.files import atomic_write_text
from hybridqa.training.lesson import JOB_FORMAT
from hybridqa.training.synthesis import Curriculum

CURRICULA = "curricula"  # the folder beside the jobs
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


class CurriculumCache:
    """The curricula in one work folder."""

    def __init__(self, work_dir: Path) -> None:
        self._folder = work_dir / CURRICULA

    def name(self, decided: Sequence[Any]) -> str:
        """The name of the curriculum that `decided`, as JSON, decides."""
        text = json.dumps([JOB_FORMAT, *decided], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def load(self, name: str) -> Curriculum | None:
        """The kept curriculum; None when there is none."""
        try:
            return Curriculum.from_dict(self._read(self._path(name))["curriculum"])
        except _UNREADABLE:
            return None

    def keep(self, name: str, curriculum: Curriculum, collection: str, doc_id: str, content_hash: str) -> None:
        """Writes a curriculum, with the document version that it was made from."""
        self._folder.mkdir(parents=True, exist_ok=True)
        owner = [collection, doc_id, content_hash]
        data = {"format": JOB_FORMAT, "document": owner, "curriculum": asdict(curriculum)}
        atomic_write_text(self._path(name), json.dumps(data, ensure_ascii=False))

    def remove(self, outdated: Callable[[str, str, str], bool]) -> None:
        """Deletes those whose (collection, doc_id, content hash) is `outdated`, and what cannot be read."""
        for path in self._folder.glob("curriculum-*.json"):
            try:
                gone = outdated(*self._read(path)["document"])
            except _UNREADABLE:
                gone = True
            if gone:
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"curriculum-{name}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != JOB_FORMAT:
            raise ValueError(f"{str(path)!r} is no curriculum of format {JOB_FORMAT}.")
        return data
