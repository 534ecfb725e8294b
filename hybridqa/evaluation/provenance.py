"""Where an evaluation's numbers come from: command, commit, machine, data. Knows nothing about what was measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hybridqa.evaluation.report import without_folders
from hybridqa.files import sha256_file
from hybridqa.provenance import commit, hardware


def provenance(docs: Path, questions: Path, seed: int) -> dict[str, Any]:
    """What makes a result repeatable, without the names of the machine's folders."""
    program = Path(sys.argv[0]).name
    found: dict[str, Any] = without_folders(
        {
            "command": " ".join(["hybridqa" if program in ("__main__.py", "-c") else program, *sys.argv[1:]]),
            "commit": commit(),
            "hardware": hardware(),
            "seed": seed,
            "documents": {"file": docs, "sha256": sha256_file(docs)},
            "questions": {"file": questions, "sha256": sha256_file(questions)},
        }
    )
    return found
