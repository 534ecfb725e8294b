"""The trainer's process: how it ends, and what one job's failure leaves to the others."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hybridqa.models import ModelFolder
from hybridqa.training.lesson import Job
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import OBJECTIVES, Recipe
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


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_job_is_done_by_each_objective(
    tiny_model: ModelFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str], objective: str
) -> None:
    pairs = tuple(
        Pair(f"What does shelf {number} of the store hold?", f"{number} kettles", "ask", number % 2, number)
        for number in range(4)
    )
    text = "Shelf 1 of the store holds 1 kettle and much dust. " * 40  # more than the model's window
    job = Job(
        collection="default",
        doc_id="store",
        content_hash="x",
        module_id="store",
        model_name="tiny",
        model_path=str(tiny_model.path),
        model_hash=tiny_model.hash,
        context_tokens=100,
        max_model_len=512,
        recipe=asdict(Recipe(objective=objective, rank=2, steps=2)),
        curriculum=Curriculum("The store", ("Shelf 0 holds nothing.", text[:200]), pairs, pairs[:2], {}),
    )
    if objective == "next-token":  # as long a text has no teacher's prompt; this objective needs none
        job = replace(job, recipe={**job.recipe, "reading": 0.0}, max_model_len=256)
        job = replace(job, curriculum=replace(job.curriculum, chunks=(text, text), held_out=()))
    job.save(tmp_path / "job")
    assert main([str(tmp_path / "job")]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    stages = list(dict.fromkeys(event["stage"] for event in events))
    taught = objective in ("dcd", "prompt-distillation")
    assert stages == [*(["teach"] if taught else []), "train", "gate", "done"]
    result = json.loads((tmp_path / "job" / "result.json").read_text())
    assert result["recipe"]["objective"] == objective
    assert (tmp_path / "job" / "adapter" / "adapter_model.safetensors").is_file()
