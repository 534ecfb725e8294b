"""The trainer's process gives way: every thread of it, and its session beside others'."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hybridqa.training.pace import NICE, step_back
from hybridqa.training.process import environment, train

needs_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="of Linux")
REPORT = """
import json, os, sys, threading, time
from pathlib import Path
from hybridqa.training.pace import step_back
gate = threading.Event()
before = threading.Thread(target=gate.wait, daemon=True)
before.start()
step_back()
threading.Thread(target=gate.wait, daemon=True).start()
tasks = [int(entry.name) for entry in Path("/proc/self/task").iterdir()]
print(json.dumps([os.getpriority(os.PRIO_PROCESS, task) for task in tasks]))
print(Path("/proc/self/autogroup").read_text().strip() if Path("/proc/self/autogroup").exists() else "nice 10")
"""


@needs_linux
def test_every_thread_steps_back_and_what_it_starts() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPORT],
        capture_output=True,
        text=True,
        env=environment(),
        start_new_session=True,
        check=True,
    )
    threads, group = done.stdout.splitlines()
    assert threads == str([NICE] * 3)
    assert group.endswith(f"nice {NICE}")


@needs_linux
def test_the_trainers_process_does_in_a_session_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from within it, at its end: a job that does not exist fails, and the process says what it was."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, pathlib\n"
        f"told = pathlib.Path({str(tmp_path / 'told')!r})\n"
        "about = lambda: f'{os.getpriority(os.PRIO_PROCESS, 0)} {os.getsid(0)} {os.getpid()}'\n"
        "atexit.register(lambda: told.write_text(about()))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (event,) = train([tmp_path / "job"])
    assert event["stage"] == "failed"
    nice, session, process = map(int, (tmp_path / "told").read_text().split())
    assert nice >= NICE and session == process != os.getsid(0)
    assert os.getpriority(os.PRIO_PROCESS, 0) < NICE  # not its parent


def test_a_system_that_knows_none_of_it_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "setpriority", _refuse)
    monkeypatch.setattr(Path, "write_text", _refuse)
    monkeypatch.setattr(Path, "iterdir", _refuse)
    step_back()
    assert threading.active_count()


def _refuse(*_: object, **__: object) -> None:
    raise PermissionError
