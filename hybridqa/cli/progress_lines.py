"""How far long work is, on standard error: a line for each module under work, or one for all of it.

Knows nothing about what makes the events. Invariant: where standard error is no terminal, each stage is one plain line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import Progress, TaskID

from hybridqa.cli import output

if TYPE_CHECKING:
    from hybridqa.training.outcome import RefreshEvent

SKIPPED = ("skip", "failed")


class ProgressLines:
    """A line for each document or plug-in under work; plain lines where standard error is no terminal."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._stages: dict[tuple[str, str], str] = {}

    def show(self, event: RefreshEvent) -> None:
        """Draws one event."""
        key = (event.collection, event.doc_id)
        if not self._bar.console.is_terminal:
            if self._stages.get(key) != event.stage:
                self._stages[key] = event.stage
                output.note(f"{event.stage:<10} {event.doc_id}  {event.message}".rstrip())
            return
        if event.stage in SKIPPED or (event.stage == "publish" and key in self._tasks):
            if key in self._tasks:
                self._bar.remove_task(self._tasks.pop(key))
            return
        if key not in self._tasks:
            self._tasks[key] = self._bar.add_task("", total=None)
        description = f"{event.stage:<10} {event.doc_id} {event.message}"
        self._bar.update(self._tasks[key], description=description, completed=event.step, total=event.total or None)


class StageLine:
    """One line of progress; a plain line for each new stage where standard error is no terminal."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._stage = ""

    def show(self, stage: str, step: int, total: int) -> None:
        """Draws how far the work is."""
        if not self._bar.console.is_terminal:
            if stage != self._stage:
                output.note(stage)
        elif self._task is None:
            self._task = self._bar.add_task(stage, completed=step, total=total or None)
        else:
            self._bar.update(self._task, description=stage, completed=step, total=total or None)
        self._stage = stage
