"""What explored restatements find beside the plain search, told on a small store; a whole run with a tiny model."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hybridqa.evaluation.datasets import EvalDocument, EvalQuestion
from hybridqa.evaluation.stores import store_of
from hybridqa.models import ModelFolder
from hybridqa.types import Message

EVAL = Path(__file__).parent.parent.parent / "eval"
TEXTS = {
    "kettle": "The Lumen kettle was designed by Maren Holt. It costs 89 euros.",
    "museum": "The Veldmoor museum was founded by Anna Voss. A ticket costs 12 crowns.",
    "ferry": "The ferry Solvang crosses the sound in 40 minutes. A bicycle costs 3 crowns.",
}


def about(thing: str, question: str, doc_id: str) -> EvalQuestion:
    return EvalQuestion(
        doc_id,
        question,
        ("?",),
        (doc_id,),
        history=(Message("user", f"Is the {thing} open?"), Message("assistant", "Yes.")),
    )


@pytest.fixture
def explored(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EVAL))
    module = importlib.import_module("explored_rewrites")
    monkeypatch.setattr(module, "K", 1)
    return module


def test_the_best_counts_and_what_chance_alone_finds_is_told(explored: Any, tmp_path: Path) -> None:
    documents = [EvalDocument(doc_id, "", text) for doc_id, text in TEXTS.items()]
    # the talk is about one thing and the gold document another: what was said before misleads
    questions = [about("ferry", "And what does it cost?", "kettle"), about("ferry", "And how long is it?", "ferry")]
    written = [
        ["What does the Lumen kettle of Maren Holt cost?", "How long does the ferry Solvang take?"],
        ["How long does the ferry Solvang take?"] * 2,
    ]
    with store_of(documents, tmp_path, lambda *_: None) as store:
        found = explored.judged(store, questions, written, 0)
    assert found["questions"] == 2 and found["plain"].mean == 0.5
    assert found["best_less_plain"].mean == 0.5 and found["questions_gained"] == 1
    assert found["one_restatement_less_plain"].mean == 0.25
    assert found["best_of_another_conversation_less_plain"].mean == 0.0  # both ask about the ferry
    assert found["best_less_best_of_another_conversation"].mean == 0.5
    assert found["questions_with_a_pair"] == 1
    assert found["past_the_gate"] == 0 and found["best_past_the_gate_less_plain"].mean == 0  # nobody said "Lumen"


def test_a_whole_run(explored: Any, tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"model": str(tiny_model.path), "engine": "reference", "dtype": "float32"}.items():
        monkeypatch.setenv(f"HYBRIDQA_{name.upper()}", value)
    rows = [{"doc_id": doc_id, "text": text} for doc_id, text in TEXTS.items()]
    talk = [{"role": "user", "text": "Is the kettle open?"}, {"role": "assistant", "text": "Yes."}]
    asked = [
        {
            "qid": "a",
            "question": "And what does it cost?",
            "answers": ["89 euros"],
            "doc_ids": ["kettle"],
            "history": talk,
        },
        {"qid": "b", "question": "Who founded the Veldmoor museum?", "answers": ["Anna Voss"], "doc_ids": ["museum"]},
    ]
    for kind, lines in (("docs", rows), ("questions", asked)):
        (tmp_path / f"x.{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--data", str(tmp_path), "--sets", "x", "--tries", "2", "--output", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["explored_rewrites.py", *words])
    explored.main()
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["sets"]["x"]["questions"] == 1  # the other stands alone
    assert {"command", "commit", "hardware", "seed", "temperature", "seconds"} <= set(record)
    assert str(tmp_path) not in json.dumps(record)
