"""`eval abstention` from end to end with a tiny random model, and what counts as right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hybridqa.cli import app
from hybridqa.config import Settings
from hybridqa.errors import InputError
from hybridqa.evaluation.abstention import ANSWERABLE, REMOVED, UNANSWERABLE, Given, is_right, make_plan, scores
from hybridqa.evaluation.datasets import EvalQuestion
from hybridqa.models import ModelFolder

THINGS = ("kettle", "museum", "ferry", "orchard", "lighthouse", "foundry", "theatre", "quarry")


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    docs, questions = tmp_path / "x.docs.jsonl", tmp_path / "x.questions.jsonl"
    rows: list[dict[str, Any]] = []
    with docs.open("w") as file:
        for place, thing in enumerate(THINGS):
            text = f"The {thing} of Tarn was built by Anna Voss in {1900 + place}. It is open to all on Sundays."
            file.write(json.dumps({"doc_id": thing, "title": f"The {thing}", "text": text}) + "\n")
            rows.append(
                {"question": f"When was the {thing} built?", "answers": [str(1900 + place)], "doc_ids": [thing]}
            )
            rows.append({"question": f"How high is the {thing}?", "doc_ids": [thing], "unanswerable": True})
    questions.write_text("".join(json.dumps({"qid": str(n), **row}) + "\n" for n, row in enumerate(rows)))
    return docs, questions


def test_each_kind_of_question_is_asked(data: tuple[Path, Path]) -> None:
    plan = make_plan(*data, Settings(), most=4)
    assert [kind for kind, _ in plan.asked] == [ANSWERABLE] * 4 + [UNANSWERABLE] * 4 + [REMOVED] * 2
    there = {document.doc_id for document in plan.documents}
    assert len(there) == 6
    for kind, question in plan.asked:
        assert (question.doc_ids[0] in there) == (kind != REMOVED)


def test_questions_that_all_have_an_answer_say_nothing(data: tuple[Path, Path], tmp_path: Path) -> None:
    docs, only = tmp_path / "d.jsonl", tmp_path / "q.jsonl"
    docs.write_text("".join(line + "\n" for line in data[0].read_text().splitlines()[:3]))  # too few to leave one out
    only.write_text("".join(line + "\n" for line in data[1].read_text().splitlines()[:6:2]))
    with pytest.raises(InputError, match=r"3 questions with an answer .* 0 without one, and 0 about"):
        make_plan(docs, only, Settings())


def test_right_is_what_holds_or_shares_the_answer_and_of_options_the_nearest() -> None:
    free = EvalQuestion("q", "Who?", ("Anna Voss of Tarn",), ("a",))
    assert is_right("It was Anna Voss of Tarn, in 1931.", free) and is_right("Anna Voss", free)
    assert not is_right("Maren Holt designed it for the town in the end.", free)
    options = ("a red kettle", "a blue lamp", "not enough information")
    choice = EvalQuestion("q", "What?", ("a red kettle",), ("a",), options=options)
    assert is_right("She bought the kettle, a red one.", choice)
    assert not is_right("She bought a lamp.", choice) and not is_right("Nothing at all.", choice)


def test_what_is_sure_of_right_answers_alone_has_the_smallest_area() -> None:
    rows = [(ANSWERABLE, True, 0.9), (ANSWERABLE, False, 0.4), (UNANSWERABLE, False, 0.3), (REMOVED, False, 0.2)]
    given = [
        Given(kind, right, sure < 0.25, {"cosine": 1 - sure, "evidence": sure})
        for kind, right, sure in rows
        for _ in "ab"
    ]
    found = scores(given, [str(n) for n in range(8)], 0)
    good, bad = (found["ways"][name] for name in ("evidence", "cosine"))
    assert good["area_under_risk_coverage"].mean < bad["area_under_risk_coverage"].mean
    assert good["area_under_risk_coverage"].mean == pytest.approx(found["best_possible"])
    assert good["below_plain"].mean > 0 and bad["below_plain"].mean == 0
    assert good["tells_answerable"].mean == 1 and bad["tells_answerable"].mean == 0
    assert found["answered"][REMOVED]["withheld"].mean == 1
    assert good["curve"]["risk"][-1] == 0.75 and good["curve"]["coverage"][-1] == 1


def test_the_command_asks_a_real_engine(data: tuple[Path, Path], tmp_path: Path, tiny_model: ModelFolder) -> None:
    settings = {"HYBRIDQA_MODEL": str(tiny_model.path), "HYBRIDQA_ENGINE": "reference", "HYBRIDQA_DTYPE": "float32"}
    limits = {"HYBRIDQA_MAX_MODEL_LEN": "512", "HYBRIDQA_MAX_ANSWER_TOKENS": "8"}
    words = ["eval", "abstention", "--docs", str(data[0]), "--questions", str(data[1]), "--most", "3"]
    kept = tmp_path / "r.json"
    done = CliRunner(env={**settings, **limits}).invoke(app, [*words, "--output", str(kept), "--plot"])
    assert done.exit_code == 0, done.output
    report = json.loads(kept.read_text())
    assert report["data"]["questions"] == {ANSWERABLE: 3, UNANSWERABLE: 3, REMOVED: 2}
    assert set(report["ways"]) >= {"cosine", "evidence", "probability", "evidence and probability", "confidence"}
    assert "area under risk and coverage" in done.stdout or "evidence" in done.stdout
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
