"""The measurement of stacks: every way trains modules of its own, and each way of weighing is another stack."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hybridqa.models import ModelFolder

EVAL = Path(__file__).parent.parent.parent / "eval"
TEXTS = {
    "kettle": "The Lumen kettle holds 1.7 litres of water. Maren Holt designed the Lumen kettle in 2031. "
    "The Lumen kettle is made in the town of Oskvar.",
    "museum": "The Veldmoor museum keeps 4,000 clay lamps. Anna Voss founded the Veldmoor museum in 1931. "
    "The Veldmoor museum stands in the old mill of Tarn.",
    "ferry": "The ferry Solvang crosses the sound in 40 minutes. Ida Brook has steered the ferry since 1999. "
    "The ferry Solvang carries 60 cars.",
}
ASKED = {"kettle": ("Who designed it?", "Maren Holt"), "museum": ("Who founded it?", "Anna Voss")}


@pytest.fixture
def composition(monkeypatch: pytest.MonkeyPatch, tiny_model: ModelFolder) -> Any:
    monkeypatch.syspath_prepend(str(EVAL))
    settings = {"model": tiny_model.path, "engine": "reference", "dtype": "float32", "train_steps": 2}
    settings |= {"module_rank": 4, "max_lora_rank": 8, "max_model_len": 512, "context_tokens": 200}
    for name, value in settings.items():
        monkeypatch.setenv(f"HYBRIDQA_{name.upper()}", str(value))
    return importlib.import_module("composition")


@pytest.mark.slow
def test_every_way_is_trained_and_stacked_in_every_way(
    composition: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, questions, output = (tmp_path / name for name in ("docs.jsonl", "questions.jsonl", "found.json"))
    docs.write_text("".join(json.dumps({"doc_id": name, "text": text}) + "\n" for name, text in TEXTS.items()))
    lines = [
        {"qid": name, "question": question, "answers": [answer], "doc_ids": [name]}
        for name, (question, answer) in ASKED.items()
    ]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [
        "composition.py",
        "--docs",
        docs,
        "--questions",
        questions,
        "--work",
        tmp_path / "work",
        "--output",
        output,
    ]
    words += ["--compose", 1, 2, "--ways", "alone", "beside itself"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    composition.main()
    record = json.loads(output.read_text())
    assert {"command", "commit", "hardware", "model", "seed", "data", "ways"} <= set(record)
    assert str(tmp_path) not in output.read_text()
    alone, itself = record["ways"]["alone"], record["ways"]["beside itself"]
    assert alone["recipe"] == {"steps": 2, "rank": 4, "distracted": 0.0, "echoed": 0.0}
    assert itself["recipe"] == {"steps": 2, "rank": 4, "distracted": 0.0}
    assert alone["modules"]["documents"] == 2
    for way in (alone, itself):
        scores = {
            weight: {name: arm["answer_logprob"]["mean"] for name, arm in way[weight]["arms"].items()}
            for weight in ("by evidence", "evenly", "whole")
        }
        for name in ("closed", "KM:dcd", "KM×1"):
            assert scores["whole"][name] == scores["evenly"][name] == scores["by evidence"][name]
        assert len({found["KM×2"] for found in scores.values()}) == 3
        assert "KM×2 - KM×1" in way["by evidence"]["differences"]
