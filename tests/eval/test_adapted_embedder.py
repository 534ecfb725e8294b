"""What adapts an embedder's questions to passages, on vectors made for it; then whole runs on a small set."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

EVAL = Path(__file__).parent.parent.parent / "eval"
FACTS = (
    "kettle litres 1822 Holt|museum lamps 1931 Voss|ferry cars 1999 Brook|mill sacks 2003 Tarn|bridge arches 1950 Ode"
)


@pytest.fixture
def adapted(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EVAL))
    return importlib.import_module("adapted_embedder")


@pytest.fixture
def passages_N_D() -> torch.Tensor:
    return normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), dim=1)


def lessons_for(adapted: Any, passages_N_D: torch.Tensor) -> Any:
    """Questions that stand where their passages do, but for a turn that is the same for all."""
    turn_D_D, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
    own_Q = torch.arange(12)
    return adapted.Lessons([str(place) for place in range(12)], passages_N_D @ turn_D_D, own_Q)


def test_a_map_turns_questions_to_their_passages(
    adapted: Any, passages_N_D: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons = lessons_for(adapted, passages_N_D)
    assert sum(adapted.first(lessons.vectors_Q_D, lessons.own_Q, passages_N_D)) < 6
    found_Q_D = adapted.mapped(lessons.vectors_Q_D, adapted.learned_map(lessons, passages_N_D))
    assert sum(adapted.first(found_Q_D, lessons.own_Q, passages_N_D)) == 12
    monkeypatch.setattr(adapted, "STRENGTH", 1000.0)
    pulled_Q_D = adapted.mapped(lessons.vectors_Q_D, adapted.learned_map(lessons, passages_N_D))
    assert float((pulled_Q_D * lessons.vectors_Q_D).sum(dim=1).min()) > 0.99


def test_margins_follow_the_teacher_where_there_is_one(adapted: Any, passages_N_D: torch.Tensor) -> None:
    lessons = lessons_for(adapted, passages_N_D)
    lessons.others_Q_K = (lessons.own_Q[:, None] + torch.tensor([1, 5, 7])) % 12
    wanted_Q_K = adapted.margins_of(passages_N_D, lessons, passages_N_D)
    lessons.margins_Q_K = 3 * wanted_Q_K
    lessons.margins_Q_K[:, 2] = torch.nan
    scale = adapted.scale_of(lessons, passages_N_D)
    found_Q_K = adapted.margins_of(lessons.vectors_Q_D, lessons, passages_N_D)[:, :2]
    assert (scale * lessons.margins_Q_K[:, :2]).norm() == pytest.approx(float(found_Q_K.norm()))
    before = adapted.loss_of(lessons.vectors_Q_D, lessons, passages_N_D, scale)
    found_Q_D = adapted.mapped(lessons.vectors_Q_D, adapted.learned_map(lessons, passages_N_D))
    assert float(adapted.loss_of(found_Q_D, lessons, passages_N_D, scale)) < 0.2 * float(before)


def test_some_of_the_lessons_keep_what_belongs_together(adapted: Any, passages_N_D: torch.Tensor) -> None:
    lessons = lessons_for(adapted, passages_N_D)
    lessons.others_Q_K, lessons.margins_Q_K = lessons.own_Q[:, None] + 1, lessons.own_Q[:, None] / 2
    some = lessons.some([7, 2])
    assert some.texts == ["7", "2"]
    assert some.own_Q.tolist() == [7, 2]
    assert some.vectors_Q_D.equal(lessons.vectors_Q_D[[7, 2]])
    assert (some.others_Q_K.tolist(), some.margins_Q_K.tolist()) == ([[8], [3]], [[3.5], [1.0]])


@pytest.mark.parametrize("student", ["map", "encoder"])
def test_a_set_is_searched_before_and_after(
    adapted: Any, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, questions = [], []
    for line in FACTS.split("|"):
        thing, parts, year, name = line.split()
        text = f"The {thing} of {name} holds 60 {parts} in all. {name} has made the {thing} famous since {year}."
        docs.append({"doc_id": thing, "text": text})
        questions.append(
            {"qid": thing, "question": f"When did the {thing} rise?", "answers": [year], "doc_ids": [thing]}
        )
    for kind, rows in (("docs", docs), ("questions", questions)):
        (tmp_path / f"things.{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "found.json"
    words = ["adapted_embedder.py", "--data", str(tmp_path), "--output", str(output), "--sets", "things"]
    monkeypatch.setattr(sys, "argv", [*words, "--student", student])
    monkeypatch.setattr(adapted, "STEPS", 2)
    adapted.main()
    record = json.loads(output.read_text())
    assert f"--student {student}" in record["command"]
    assert {"commit", "hardware", "seed", "settings", "seconds"} <= set(record)
    assert str(tmp_path) not in output.read_text()
    told = record["sets"]["things"]
    assert 0 < told["learned_from"] < told["made"]
    assert told["made_of_documents_held_out"]["questions"] == told["made"] - told["learned_from"]
    for way in ("dense", "search"):
        parts = told[way]
        assert [parts[part]["1"]["questions"] for part in sorted(parts)] == [5, 1, 4]
        whole = parts["all"]["1"]
        assert whole["ahead"]["mean"] == pytest.approx(whole["after"]["mean"] - whole["before"]["mean"])
