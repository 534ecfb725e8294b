"""Where the command line writes: answers to standard output, everything else to standard error.

Knows nothing about commands. Invariant: once `claim_stdout` has been called, nothing but this file's functions reaches
the process's standard output, not even a native library's print.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

_claimed: TextIO | None = None


def claim_stdout() -> None:
    """Keeps the real standard output for this file; what others print from now on goes to standard error."""
    global _claimed
    if _claimed is not None:
        return
    try:
        descriptor = sys.stdout.fileno()
        errors = sys.stderr.fileno()
    except (io.UnsupportedOperation, AttributeError, ValueError):
        return  # a captured stream, as in tests: there is no file to guard
    if descriptor != 1:
        return
    sys.stdout.flush()
    _claimed = os.fdopen(os.dup(descriptor), "w", encoding=sys.stdout.encoding or "utf-8", errors="replace")
    os.dup2(errors, descriptor)


def stdout() -> TextIO:
    """The stream that answers go to."""
    return _claimed or sys.stdout


def out() -> Console:
    """A console on standard output; plain text when it is no terminal."""
    return Console(file=stdout(), highlight=False, soft_wrap=True)


def err() -> Console:
    """A console on standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """A line of the answer; brackets in it are text, not markup."""
    out().print(Text(text, style=style))


def say_beside(bar: Progress, text: str) -> None:
    """A line of the answer while a progress display is up."""
    if stdout().isatty() and bar.console.is_terminal:
        bar.console.print(Text(text))  # the same screen: the display must know of the line
    else:
        say(text)


def note(text: str, style: str = "") -> None:
    """A line for people, on standard error."""
    err().print(Text(text, style=style))


def write(text: str) -> None:
    """A piece of the answer as it comes."""
    stream = stdout()
    stream.write(text)
    stream.flush()


def say_json(value: Any) -> None:
    """One JSON document; indented on a terminal, else on one line."""
    stream = stdout()
    indent = 2 if stream.isatty() else None
    stream.write(json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")
    stream.flush()


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A table on standard output; lines of tab-separated values when that is no terminal."""
    stream = stdout()
    if not stream.isatty():
        for row in rows:
            stream.write("\t".join(" ".join(str(cell).split()) for cell in row) + "\n")
        stream.flush()
        return
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    Console(file=stream, highlight=False).print(drawn)


def progress() -> Progress:
    """A progress display on standard error; it draws nothing where that is no terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def plain(value: Any) -> Any:
    """A value as JSON knows it: dataclasses as objects, paths as texts, numbers that JSON has not as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)
