"""What every command that measures does with its files: the report, its picture, and the folder to work in.

Knows nothing about what is measured. Invariant: a file or folder that cannot be used is named before anything is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hybridqa.cli import output
from hybridqa.errors import ConfigError

Draw = Callable[[Mapping[str, Any], Path], None]


def check_files(report_file: Path | None, work: Path | None) -> None:
    """Raises `ConfigError` for an --output or a --work that cannot be one."""
    if report_file is not None and (report_file.is_dir() or not report_file.absolute().parent.is_dir()):
        raise ConfigError(f"--output is {str(report_file)!r}; expected a file in a folder that is there.")
    if work is not None and work.exists() and not work.is_dir():
        raise ConfigError(f"--work is {str(work)!r}, which is no folder; expected a folder, there or to be made.")


def keep_report(report: dict[str, Any], path: Path | None, draw: Draw | None = None) -> None:
    """Writes the report where it is wanted, and with `draw` a picture of it beside it."""
    from hybridqa.files import atomic_write_text

    if path is None:
        return
    atomic_write_text(path, json.dumps(output.plain(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if draw is not None:
        draw(report, path.with_suffix(".png"))
