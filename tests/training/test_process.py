"""The trainer's process as its parent sees it: what it imports, and how its end is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hybridqa
from hybridqa.errors import TrainingError
from hybridqa.training.process import KERNELS_KEPT, environment, train

PACKAGE = Path(hybridqa.__file__).parent


def test_the_working_folder_is_not_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "torch", "hybridqa"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working folder')")
    monkeypatch.chdir(tmp_path)
    (event,) = train([tmp_path / "job"])  # there is none: the job fails, the process does its work
    assert event["stage"] == "failed" and event["reason"].startswith("FileNotFoundError")


def test_it_imports_the_package_of_its_parent(tmp_path: Path) -> None:
    """Importable from the working folder only, and marked, so that an installed one cannot stand in for it."""
    shutil.copytree(PACKAGE, tmp_path / "hybridqa", ignore=shutil.ignore_patterns("__pycache__"))
    worker = tmp_path / "hybridqa" / "training" / "worker.py"
    mark = 'def main(folders):\n    print(json.dumps({"job": folders[0], "stage": "done", "from": __file__}))\n'
    begin, end = worker.read_text().split("def main(", 1)[0], 'if __name__ == "__main__":\n    main(sys.argv[1:])\n'
    worker.write_text(f"{begin}{mark}\n{end}")
    code = (
        "import json, pathlib; from hybridqa.training.process import train; "
        "print(json.dumps(list(train([pathlib.Path('j')]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (event,) = json.loads(done.stdout)
    assert event["from"] == str(worker)


def test_a_process_that_cannot_work_is_an_error_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, sys; sys.stderr.write('no luck\\n'); os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TrainingError, match=r"ended with 3 after 0 of 1 documents: no luck\. Run `hybridqa refresh`"):
        list(train([tmp_path / "job"]))


def test_how_many_kernels_are_kept_is_the_users_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KERNELS_KEPT.items():
        monkeypatch.delenv(name, raising=False)
        assert environment()[name] == value
        monkeypatch.setenv(name, "7")
        assert environment()[name] == "7"


def test_its_threads_wait_for_each_other_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # an engine's
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert environment()["GOMP_SPINCOUNT"] == "20000" and "OMP_WAIT_POLICY" not in environment()
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment()["GOMP_SPINCOUNT"] == "7"


def test_kernels_are_not_kept_for_every_length_of_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 each costs half a megabyte: a process that is told nothing grows with every new length."""
    for name in KERNELS_KEPT:
        monkeypatch.delenv(name, raising=False)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("bfloat16 has other kernels on this machine")
    told = environment()
    plain = {name: value for name, value in told.items() if name not in KERNELS_KEPT}
    assert kernels(told) < 60 < kernels(plain)


def kernels(started_with: dict[str, str]) -> float:
    """MB that a process holds more after 300 lengths of rows."""
    code = """
import torch
from hybridqa.training.memory import forget_peak, give_back, peak_memory
def held():
    give_back(); forget_peak(); return peak_memory()
weight = torch.ones(256, 128, dtype=torch.bfloat16)
def run(length): torch.nn.functional.linear(torch.ones(1, length, 128, dtype=torch.bfloat16), weight)
run(100); before = held()
for length in range(101, 401): run(length)
print(held() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], env=started_with, capture_output=True, text=True, check=True)
    return float(done.stdout)
