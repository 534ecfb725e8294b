"""What is made of passages to be found by, and the signals that come of it; then a whole run on two small sets."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybridqa.types import Passage

EVAL = Path(__file__).parent.parent.parent / "eval"
SETS = {
    "things": {
        "kettle": ("The Lumen kettle holds 1.7 litres of water. Maren Holt designed it in 2031.", "Who designed it?"),
        "museum": ("The Veldmoor museum keeps 4,000 clay lamps. Anna Voss founded it in 1931.", "Who founded it?"),
        "ferry": (
            "The ferry Solvang crosses the sound in 40 minutes. It carries 60 cars.",
            "How long is the crossing?",
        ),
    },
    "places": {
        "tarn": ("Tarn has 900 houses and one mill. The mill was built in 1822.", "How old is the mill?"),
        "oskvar": ("Oskvar lies on the river Line. Its bridge was opened by Ida Brook.", "Who opened the bridge?"),
    },
}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EVAL))
    return importlib.import_module("question_memory")


def write_sets(folder: Path) -> None:
    for name, documents in SETS.items():
        for kind in ("docs", "questions"):
            rows = [
                {"doc_id": doc_id, "text": text}
                if kind == "docs"
                else {"qid": doc_id, "question": question, "answers": ["?"], "doc_ids": [doc_id]}
                for doc_id, (text, question) in documents.items()
            ]
            (folder / f"{name}.{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def passage(passage_id: int, doc_id: str, text: str) -> Passage:
    return Passage(passage_id, doc_id, "default", 0, 0, len(text), text)


def test_a_passage_is_asked_about_by_its_own_facts(memory: Any) -> None:
    texts = [text for text, _ in SETS["things"].values()]
    passages = [passage(3, "a", texts[0]), passage(5, "a", texts[1]), passage(8, "b", texts[2])]
    found = memory.by_rule(passages, 0)
    assert set(found) == {3, 5, 8}
    assert any("litres" in question for question in found[3])
    assert any("lamps" in question for question in found[5])
    assert not any("kettle" in question for place in (5, 8) for question in found[place])
    assert all(question.endswith("?") for questions in found.values() for question in questions)


def test_what_is_drawn_of_a_passage_is_its_own_affair(memory: Any) -> None:
    items = [str(number % 9) for number in range(30)]
    drawn = memory.drawn(items, 4, 0, 7)
    assert len(set(drawn)) == 4
    assert drawn == memory.drawn(items, 4, 0, 7)
    assert any(drawn != memory.drawn(items, 4, 0, place) for place in range(5))
    assert sorted(memory.drawn(["a", "b", "a"], 9, 0, 1)) == ["a", "b"]


def test_the_greatest_cosine_of_a_passages_texts_counts(memory: Any) -> None:
    found = memory.greatest(np.array([0.2, 0.9, -0.5, 0.4]), np.array([4, 4, 6, 7]), [7, 4, 6, 9])
    assert found.tolist() == [0.4, 0.9, 0.0, 0.0]


def test_each_kind_of_memory_is_measured_on_sets_that_its_weights_have_not_seen(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sets(tmp_path)
    output = tmp_path / "found.json"
    monkeypatch.setattr(
        sys, "argv", ["question_memory.py", "--data", str(tmp_path), "--output", str(output), "--sets", *SETS]
    )
    memory.main()
    record = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == record
    assert {"command", "commit", "hardware", "seed", "each", "seconds"} <= set(record)
    assert str(tmp_path) not in output.read_text()
    for name, documents in SETS.items():
        told = record["sets"][name]
        assert told["questions"] == len(documents)
        assert min(told["made"]["by rule"], told["made"]["sentences"]) >= len(documents)
        for kind in ("by rule", "sentences"):
            assert len(told[kind]["weights"]) == 7
            gained = told[kind]["recall"]["1"]["mean"] - told["without"]["1"]["mean"]
            assert told[kind]["ahead_of_without"]["1"]["mean"] == pytest.approx(gained)
        assert told["by rule"]["weights"] != told["sentences"]["weights"]
