"""The curves: every point trains modules of its own, from the default recipe with one number changed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hybridqa.models import ModelFolder

EVAL = Path(__file__).parent.parent.parent / "eval"
TEXT = (
    "The Lumen kettle holds 1.7 litres of water. Maren Holt designed the Lumen kettle in 2031. "
    "The Lumen kettle is made in the town of Oskvar."
)


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EVAL))
    return importlib.import_module("curves")


def test_each_point_changes_one_number_of_the_default(curves: Any) -> None:
    assert curves.changes(["steps=50,100", "retention=0.2"]) == [{}, {"steps": 50}, {"steps": 100}, {"retention": 0.2}]
    assert curves.ranks({"rank": 4}) == {"module_rank": 4, "module_alpha": 8}
    assert curves.ranks({"steps": 50}) == {}


@pytest.mark.parametrize("curve", ["stepz=50", "steps", "steps=many", "objective=dcd"])
def test_what_cannot_be_varied_is_named(curves: Any, curve: str) -> None:
    with pytest.raises(SystemExit, match=f"{curve!r}: expected NAME=VALUES.*steps"):
        curves.changes([curve])


def test_points_are_trained_and_asked(
    curves: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: ModelFolder
) -> None:
    settings = {"model": tiny_model.path, "engine": "reference", "dtype": "float32", "max_model_len": 512}
    for name, value in {**settings, "context_tokens": 200, "train_steps": 3}.items():
        monkeypatch.setenv(f"HYBRIDQA_{name.upper()}", str(value))
    docs, questions, output = (tmp_path / name for name in ("docs.jsonl", "questions.jsonl", "found.json"))
    docs.write_text(json.dumps({"doc_id": "kettle", "text": TEXT}) + "\n")
    question = {"qid": "a", "question": "Who designed it?", "answers": ["Maren Holt"], "doc_ids": ["kettle"]}
    questions.write_text(json.dumps(question) + "\n")
    words = ["curves.py", "--docs", docs, "--questions", questions, "--work", tmp_path / "work", "--output", output]
    words += ["--vary", "steps=2", "rank=4", "--objectives", "dcd"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    curves.main()
    record = json.loads(output.read_text())
    assert set(curves.RECORDED) <= set(record)
    assert str(tmp_path) not in output.read_text()
    default, steps, rank = record["points"]
    assert [point["changed"] for point in record["points"]] == [{}, {"steps": 2}, {"rank": 4}]
    assert [point["modules"]["dcd"]["steps"] for point in record["points"]] == [[3], [2], [3]]
    assert rank["modules"]["dcd"]["mb"]["mean"] < default["modules"]["dcd"]["mb"]["mean"] / 2
    known = {
        name: point["scores"]["KM:dcd"]["answer_logprob"]["mean"]
        for name, point in zip("dsr", record["points"], strict=True)
    }
    assert len(set(known.values())) == 3
    assert default["scores"]["closed"] == steps["scores"]["closed"]
