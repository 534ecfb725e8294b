"""`eval routing` from end to end: a real store, questions whose documents are there, left out, or of elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hybridqa.cli import app
from hybridqa.config import Settings
from hybridqa.errors import InputError
from hybridqa.evaluation.routing import FAR, NEAR, ON, Routed, make_plan, run_routing, scores

THINGS = ("kettle", "museum", "ferry", "orchard", "lighthouse", "foundry", "theatre", "quarry")
MAKERS = ("Maren Holt", "Anna Voss", "Ida Brook", "Per Lund", "Nils Aker", "Tove Ek", "Olaf Rye", "Siv Dahl")


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path, Path]:
    docs, questions, far = (tmp_path / f"x.{kind}.jsonl" for kind in ("docs", "questions", "far"))
    rows: list[dict[str, Any]] = []
    with docs.open("w") as file:
        for place, (thing, maker) in enumerate(zip(THINGS, MAKERS, strict=True)):
            text = f"The {thing} of Tarn was built by {maker} in {1900 + place}. The {thing} is open to all on Sundays."
            file.write(json.dumps({"doc_id": thing, "title": f"The {thing} of Tarn", "text": text}) + "\n")
            rows.append({"question": f"Who built the {thing} of Tarn?", "answers": [maker], "doc_ids": [thing]})
    questions.write_text("".join(json.dumps({"qid": str(n), **row}) + "\n" for n, row in enumerate(rows)))
    strange = {
        "qid": "f",
        "question": "What does a protein of the cell wall bind to?",
        "answers": ["x"],
        "doc_ids": ["z"],
    }
    far.write_text(json.dumps(strange) + "\n")
    return docs, questions, far


def test_the_right_documents_are_found_and_strangers_kept_out(data: tuple[Path, Path, Path], tmp_path: Path) -> None:
    docs, questions, far = data
    plan = make_plan(docs, questions, Settings(), far=far)
    assert len(plan.documents) == 6 and plan.left_out == 2
    assert [kind for kind, _ in plan.asked] == [ON] * 6 + [NEAR] * 2 + [FAR]
    report = run_routing(plan, tmp_path / "work", lambda *_: None)
    assert report["data"]["questions"] == {ON: 6, NEAR: 2, FAR: 1}
    assert report["right_document_first"].mean == 1.0 == report["right_document_first_of_one"].mean
    assert report["right_plugged_in"].mean == 1.0 and report["wrong_plugged_in"].mean == 0.0
    assert report["stranger_plugged_in"][FAR].mean == 0.0
    assert sum(one["count"] for one in report["calibration"]["reliability"]) == 9
    assert 0 <= report["calibration"]["brier"].mean < 0.3
    assert report["seconds"]["p50"] > 0


def test_shares_are_of_their_own_kind_of_question() -> None:
    routed = [
        Routed(ON, 0.9, True, 0.9, True, 0.001),
        Routed(ON, 0.6, False, 0.1, True, 0.001),
        Routed(ON, 0.2, True, 0.2, False, 0.001),
        Routed(NEAR, 0.7, False, 0.0, True, 0.001),
        Routed(NEAR, 0.1, False, 0.0, True, 0.001),
    ]
    found = scores(routed, list("abcde"), 0.5, 0)
    assert found["right_document_first"].mean == pytest.approx(2 / 3)
    assert found["right_document_first_of_one"].mean == 0.5
    assert found["right_plugged_in"].mean == found["wrong_plugged_in"].mean == pytest.approx(1 / 3)
    assert found["stranger_plugged_in"][NEAR].mean == 0.5 and found["stranger_plugged_in"][FAR] is None
    withheld = found["withheld_below"]["0.2"]
    assert (withheld[ON].mean, withheld[NEAR].mean, withheld[FAR]) == (0, 0.5, None)
    assert withheld["right document first"].mean == 0
    assert found["by_threshold"]["0.65"] == {"right": pytest.approx(1 / 3), "wrong": 0.0, "strangers": 0.5}


def test_questions_about_what_was_left_out_alone_are_refused(data: tuple[Path, Path, Path], tmp_path: Path) -> None:
    docs, questions, _ = data
    out = set(THINGS) - {document.doc_id for document in make_plan(docs, questions, Settings()).documents}
    only = tmp_path / "only.jsonl"
    only.write_text(
        "".join(line + "\n" for line in questions.read_text().splitlines() if json.loads(line)["doc_ids"][0] in out)
    )
    with pytest.raises(InputError, match="three quarters"):
        make_plan(docs, only, Settings())


def test_the_command_writes_its_report_and_draws_it(data: tuple[Path, Path, Path], tmp_path: Path) -> None:
    docs, questions, far = data
    kept = tmp_path / "r.json"
    words = ["eval", "routing", "--docs", str(docs), "--questions", str(questions), "--far", str(far)]
    done = CliRunner().invoke(app, [*words, "--output", str(kept), "--plot"])
    assert done.exit_code == 0, done.output
    assert "right document first" in done.stdout
    report = json.loads(kept.read_text())
    assert report["suite"] == "routing" and report["threshold"] == 0.35
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
