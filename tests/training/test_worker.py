"""The trainer's process: how it ends, and what one job's failure leaves to the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybridqa.models import ModelFolder
from hybridqa.training.lesson import Job
from hybridqa.training.synthesis import Curriculum
from hybridqa.training.worker import main

END_WITH_PARENT = "import time; from hybridqa.training.worker import end_with_parent; end_with_parent(); "


def test_a_process_that_fails_says_why_while_its_parent_lives() -> None:
    code = END_WITH_PARENT + "time.sleep(0.3); raise SystemExit('the real error')"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None and process.stderr is not None
    with process.stdin, process.stderr:
        assert process.wait(timeout=60) == 1
        assert process.stderr.read().decode().strip() == "the real error"


def test_a_process_ends_with_its_parent() -> None:
    code = END_WITH_PARENT + "time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 1


def test_whatever_ends_one_job_the_next_is_taken(
    tiny_model: ModelFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = Job(
        collection="default",
        doc_id="kettle",
        content_hash="x",
        module_id="kettle",
        model_name="tiny",
        model_path=str(tiny_model.path),
        model_hash=tiny_model.hash,
        context_tokens=256,
        max_model_len=512,
        recipe={"rank": 2},
        curriculum=Curriculum("", (), (), (), {}),
    )
    for name in ("first", "second"):
        job.save(tmp_path / name)
    (tmp_path / "first" / "job.json").write_text("{}")  # KeyError
    assert main([str(tmp_path / name) for name in ("first", "second")]) == 1
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    ends = {event["job"]: event["reason"] for event in events if event["stage"] == "failed"}
    assert ends["first"].startswith("KeyError") and "nothing to learn" in ends["second"]
