"""`eval retrieval` from end to end: a real store, the real embedder, the report and its picture."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hybridqa.cli import app
from hybridqa.config import Settings
from hybridqa.errors import InputError, StoreError
from hybridqa.evaluation.datasets import EvalQuestion
from hybridqa.evaluation.retrieval import make_plan, recall, run_retrieval, scores
from hybridqa.evaluation.stores import store_of
from hybridqa.evaluation.ways import ALONE, OURS, PREPENDED, REWRITTEN, WAYS
from hybridqa.models import ModelFolder

TEXTS = {
    "kettle": "The Lumen kettle holds 1.7 litres of water. Maren Holt designed it in 2031.",
    "museum": "The Veldmoor museum keeps 4,000 clay lamps. Anna Voss founded it in 1931.",
    "ferry@v1": "The ferry Solvang crosses the sound in 40 minutes.",
    "ferry@v2": "The ferry Solvang crosses the sound in 50 minutes.",
}
QUESTIONS: list[dict[str, Any]] = [
    {"question": "Who designed the Lumen kettle?", "answers": ["Maren Holt"], "doc_ids": ["kettle"]},
    {"question": "Where are 4,000 lamps of clay?", "answers": ["museum"], "doc_ids": ["museum"]},
    {"question": "How long does the boat trip take?", "answers": ["40 minutes"], "doc_ids": ["ferry@v1"]},
    {"question": "How long is it now?", "answers": ["50 minutes"], "doc_ids": ["ferry@v2"]},
    {"question": "Who swims there?", "answers": [], "doc_ids": ["ferry@v1"], "unanswerable": True},
    {"question": "Why?", "answers": ["because"], "doc_ids": []},
]


def nothing(stage: str, step: int, total: int) -> None:
    """Tells nobody."""


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    docs, questions = tmp_path / "x.docs.jsonl", tmp_path / "x.questions.jsonl"
    docs.write_text("".join(json.dumps({"doc_id": name, "text": text}) + "\n" for name, text in TEXTS.items()))
    questions.write_text("".join(json.dumps({"qid": str(n), **row}) + "\n" for n, row in enumerate(QUESTIONS)))
    return docs, questions


def test_the_report_counts_what_search_finds(data: tuple[Path, Path], tmp_path: Path) -> None:
    plan = make_plan(*data, Settings(), seed=3)
    assert [document.doc_id for document in plan.documents] == ["kettle", "museum", "ferry@v1"]
    assert plan.left_out == {"unanswerable": 1, "without a document": 1, "of a later version": 1}
    report = run_retrieval(plan, tmp_path / "work", nothing)
    assert list(report["recall"]) == list(WAYS)
    assert report["recall"][OURS]["1"].mean == 1.0
    assert report["recall"]["bm25"]["1"].mean == pytest.approx(
        2 / 3
    )  # no word of the third question is in its document
    assert report["ahead_of"]["bm25"]["1"].mean == pytest.approx(1 / 3)
    assert report["data"]["questions"] == 3 and report["data"]["passages"] == 3
    assert report["seed"] == 3 and report["embedder"] and report["documents"]["file"] == "x.docs.jsonl"
    assert all(spent["p50"] > 0 for spent in report["seconds"].values())


def test_more_hops_are_a_further_way(tmp_path: Path) -> None:
    rows = {
        "Tolmere": "Tolmere is a harbour town. Several works were made there, among them Iron Tide.",
        "Iron Tide": "Iron Tide is a tale of the sea by Pavla Renn. Its cast came from Oskvar.",
        **{
            f"Cinema of {town}": f"The cinema of {town} shows a film every day."
            for town in ("Arden", "Brusk", "Corvin")
        },
    }
    docs, questions = tmp_path / "x.docs.jsonl", tmp_path / "x.questions.jsonl"
    docs.write_text(
        "".join(json.dumps({"doc_id": name, "title": name, "text": text}) + "\n" for name, text in rows.items())
    )
    asked = {"question": "Who directed the film that was shot in Tolmere?", "answers": ["Pavla Renn"]}
    questions.write_text(json.dumps({"qid": "q", **asked, "doc_ids": ["Tolmere", "Iron Tide"]}) + "\n")
    report = run_retrieval(make_plan(docs, questions, Settings(), hops=2), tmp_path / "work", nothing)
    assert list(report["recall"]) == [*WAYS, "hybridqa, 2 hops"] and report["data"]["hops"] == 2
    assert report["recall"]["hybridqa, 2 hops"]["2"].mean == 1.0 and report["recall"][OURS]["2"].mean == 0.5
    assert report["complete"]["hybridqa, 2 hops"]["2"].mean == 1.0 and report["complete"][OURS]["2"].mean == 0.0
    assert report["ahead_of"]["hybridqa, 2 hops"]["2"].mean == -0.5


def test_rewritten_follow_ups_are_a_further_way(
    data: tuple[Path, Path], tmp_path: Path, tiny_model: ModelFolder
) -> None:
    """By a model of random weights, whose rewrites the gate refuses: what is left is what was found without."""
    settings = Settings(model=str(tiny_model.path), engine="reference", dtype="float32", max_model_len=512)
    with pytest.raises(InputError, match=r"'history'; expected some that do, or no --rewrite"):
        make_plan(*data, settings, rewrite=True)
    history = [{"role": "user", "text": "Who designed the Lumen kettle?"}, {"role": "agent", "text": "Maren Holt."}]
    rows = [
        {"qid": "leans", "question": "How much does it hold?", "doc_ids": ["kettle"], "history": history},
        {"qid": "stands", "question": "Who founded the Veldmoor museum?", "doc_ids": ["museum"], "history": history},
        {"qid": "alone", "question": "How much does it hold?", "doc_ids": ["kettle"]},
    ]
    data[1].write_text("".join(json.dumps({"answers": ["x"], **row}) + "\n" for row in rows))
    report = run_retrieval(make_plan(*data, settings, rewrite=True), tmp_path / "work", nothing)
    assert list(report["recall"]) == [*WAYS, ALONE, PREPENDED, REWRITTEN]
    assert report["recall"][REWRITTEN] == report["recall"][OURS]
    assert report["data"]["rewritten"] == {"asked_for": 1, "accepted": 0}
    assert REWRITTEN in report["conversations"]["leans on the conversation"]


def test_a_store_that_is_there_is_gone_on_with_and_holds_what_was_given(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    plan = make_plan(*data, Settings())
    with store_of(plan.documents, tmp_path / "work", nothing) as store:
        before = {found.doc_id: found.updated_at for found in store.documents()}
        with pytest.raises(StoreError, match="another run"), store_of(plan.documents, tmp_path / "work", nothing):
            pass
    with store_of(plan.documents[:2], tmp_path / "work", nothing) as store:
        after = {found.doc_id: found.updated_at for found in store.documents()}
    assert after == {name: before[name] for name in ("kettle", "museum")}


def test_a_store_that_other_settings_made_is_not_measured(data: tuple[Path, Path], tmp_path: Path) -> None:
    documents = make_plan(*data, Settings()).documents
    long = " ".join(document.text for document in documents)
    documents = [replace(documents[0], text=f"{long} {long} {long}")]
    counts = []
    for tokens in (200, 16, 200):
        with store_of(documents, tmp_path / "work", nothing, passage_tokens=tokens) as store:
            counts.append(store.documents()[0].passages)
    assert counts[1] > counts[0] == counts[2]


def test_recall_is_of_as_many_as_could_be_there() -> None:
    assert recall(["a", "b", "c"], ["b"], 1) == 0
    assert recall(["a", "b", "c"], ["b"], 2) == 1
    assert recall(["a", "b", "c"], ["a", "c", "x"], 2) == 0.5
    assert recall([], ["a"], 4) == 0


def test_ours_is_compared_with_the_better_of_words_and_vectors() -> None:
    questions = [EvalQuestion(str(n), "?", ("x",), (f"d{n}",)) for n in range(4)]
    right, wrong = [[f"d{n}"] for n in range(4)], [["no"]] * 4
    ranked = {"bm25": wrong[:3] + right[3:], "dense": right[:2] + wrong[2:], "rrf": wrong, OURS: right[:3] + wrong[3:]}
    found = scores(ranked, questions, seed=0)["ahead_of"]["better of bm25 and dense"]["1"]
    assert found["way"] == "dense" and found["mean"] == pytest.approx(0.25)
    assert found["low"] <= found["mean"] <= found["high"] and not math.isnan(found["low"])


def test_questions_about_nothing_that_is_there_are_refused(data: tuple[Path, Path], tmp_path: Path) -> None:
    only = tmp_path / "only.jsonl"
    only.write_text(json.dumps({"qid": "q", **QUESTIONS[4]}) + "\n")
    with pytest.raises(InputError, match="no answerable question"):
        make_plan(data[0], only, Settings())


def test_the_command_writes_its_report_and_draws_it(data: tuple[Path, Path], tmp_path: Path) -> None:
    kept = tmp_path / "r.json"
    words = ["eval", "retrieval", "--docs", str(data[0]), "--questions", str(data[1]), "--most", "2"]
    done = CliRunner().invoke(app, [*words, "--output", str(kept), "--plot", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads(kept.read_text())
    assert report["data"]["questions"] == 2 and report["suite"] == "retrieval"
    picture = (tmp_path / "r.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--plot"], "--plot was given without --output"),
        (["--output", "nowhere/r.json"], "--output is 'nowhere/r.json'"),
        (["--most", "-1"], "-1 questions"),
        (["--hops", "0"], "Invalid value for '--hops': Input should be greater"),
        (["--rewrite"], "expected some that do, or no --rewrite"),
    ],
)
def test_bad_options_are_named(data: tuple[Path, Path], options: list[str], said: str) -> None:
    words = ["eval", "retrieval", "--docs", str(data[0]), "--questions", str(data[1])]
    done = CliRunner().invoke(app, [*words, *options])
    assert done.exit_code != 0
    assert said in " ".join(done.stderr.split())
