"""Where an evaluation's numbers come from: command, commit, machine, data. Knows nothing about what was measured."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from hybridqa.files import sha256_file
from hybridqa.provenance import commit, hardware

_FOLDERS = re.compile(r"(?<![^\s=])/(?:[^\s/]+/)+")  # what stands before the last name of an absolute path


def provenance(docs: Path, questions: Path, seed: int) -> dict[str, Any]:
    """What makes a result repeatable, without the names of the machine's folders."""
    found: dict[str, Any] = without_folders(
        {
            "command": command_line(),
            "commit": commit(),
            "hardware": hardware(),
            "seed": seed,
            "documents": {"file": docs, "sha256": sha256_file(docs)},
            "questions": {"file": questions, "sha256": sha256_file(questions)},
        }
    )
    return found


def command_line() -> str:
    """The words that this process was started with."""
    program = Path(sys.argv[0]).name
    return " ".join(["hybridqa" if program in ("__main__.py", "-c") else program, *sys.argv[1:]])


def without_folders(found: Any) -> Any:
    """The same without the folders of absolute paths, whole or as words of a text: a report may be shown to anybody."""
    if isinstance(found, dict):
        return {name: without_folders(value) for name, value in found.items()}
    if isinstance(found, Path):
        return found.name if found.is_absolute() else str(found)
    if isinstance(found, str):
        return _FOLDERS.sub("", found)
    return found
