"""`eval conflict` from end to end with a tiny random model and the real trainer, and how its answers are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hybridqa.cli import app
from hybridqa.config import Settings
from hybridqa.errors import InputError, StoreError
from hybridqa.evaluation.conflict import STAGES, run_conflict
from hybridqa.evaluation.conflict_plan import make_plan
from hybridqa.evaluation.conflict_scores import CLOSED, WITH_MODULE, Told, scores
from hybridqa.models import ModelFolder

TEXT = (
    "The Lumen kettle holds 1.7 litres of water. {name} designed the Lumen kettle in 2031. The Lumen kettle is made in "
    "the town of Oskvar. The Lumen kettle costs 89 euros in every shop of Oskvar."
)
OTHER = (
    "The Veldmoor museum keeps 4,000 clay lamps. Anna Voss founded the Veldmoor museum in 1931. The Veldmoor museum "
    "stands in the old mill of Tarn. A ticket to the Veldmoor museum costs {price} crowns."
)
DOCUMENTS = [
    ("kettle@v1", TEXT.format(name="Maren Holt")),
    ("kettle@v2", TEXT.format(name="Ida Brook")),
    ("museum@v1", OTHER.format(price=12)),
    ("museum@v2", OTHER.format(price=15)),
    ("ferry", "The ferry Solvang crosses the sound in 40 minutes."),
]


def question(qid: str, text: str, old: str, new: list[str], doc_id: str) -> dict[str, Any]:
    return {"qid": qid, "question": text, "answers": ["?", old], "doc_ids": [doc_id], "meta": {"answers_v2": new}}


QUESTIONS = [
    question("a", "Who designed the Lumen kettle?", "Maren Holt", ["Ida Brook"], "kettle@v1"),
    question("b", "What does a ticket to the Veldmoor museum cost?", "12 crowns", ["15 crowns"], "museum@v1"),
    question("second of one document", "Who designed it?", "Maren Holt", ["Ida Brook"], "kettle@v1"),
    question("of an old version", "Who designed it?", "Maren Holt", ["Ida Brook"], "kettle@v2"),
    question("never changed", "How long does the ferry take?", "40 minutes", ["50 minutes"], "ferry"),
]


def write(folder: Path, questions: list[dict[str, Any]]) -> tuple[Path, Path]:
    docs, asked = folder / "x.docs.jsonl", folder / "x.questions.jsonl"
    docs.write_text("".join(json.dumps({"doc_id": i, "title": "", "text": text}) + "\n" for i, text in DOCUMENTS))
    asked.write_text("".join(json.dumps(one) + "\n" for one in questions))
    return docs, asked


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write(tmp_path_factory.mktemp("data"), QUESTIONS)


def test_one_question_for_each_document_whose_answer_changes(data: tuple[Path, Path]) -> None:
    plan = make_plan(*data, Settings(), documents=0)
    assert [(change.doc_id, change.old, change.new) for change in plan.changes] == [
        ("kettle", "Maren Holt", "Ida Brook"),
        ("museum", "12 crowns", "15 crowns"),
    ]
    assert [document.doc_id for document in plan.documents] == ["kettle", "museum", "ferry"]
    assert plan.documents[0].text == DOCUMENTS[0][1]
    assert len(make_plan(*data, Settings(), documents=1).changes) == 1


@pytest.mark.parametrize(
    "only",
    [
        question("both have it", "What is it of?", "Lumen kettle", ["Ida Brook"], "kettle@v1"),
        question("not in the new text", "Who designed it?", "Maren Holt", ["Anna Voss"], "kettle@v1"),
        {**question("no new answer", "Who?", "Maren Holt", [], "kettle@v1"), "meta": {}},
    ],
)
def test_what_does_not_change_cannot_be_measured(only: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no question whose answer changes .* expected .*answers_v2"):
        make_plan(*write(tmp_path, [only]), Settings())


def told(way: str, qid: str, old: float | None, new: float | None, **more: Any) -> Told:
    return Told(
        way, qid, "", **{"says_old": False, "says_new": False, "fresh": 0, "stale": 0, **more}, old=old, new=new
    )


def test_what_moves_an_answer_is_told_from_what_was_likelier_anyway() -> None:
    given = [
        told(CLOSED, "a", -4, -8),
        told(CLOSED, "b", -6, -4),
        told("passages", "a", -3, -6, says_old=True),
        told("passages", "b", -4, -1, says_new=True, fresh=1),
        told("modules", "a", None, None),
        told("modules", "b", -4, -5, stale=1),
    ]
    ways = scores(given, 0)["ways"]
    assert (ways["passages"]["prefers_new"].mean, ways["passages"]["moved_to_new"].mean) == (0.5, 1)
    assert ways["passages"]["moved_by"].mean == 1.0
    assert (ways["passages"]["says_new"].mean, ways["passages"]["says_old"].mean) == (0.5, 0.5)
    assert ways[f"passages{WITH_MODULE}"]["questions"] == 1 and ways[f"passages{WITH_MODULE}"]["says_new"].mean == 1
    assert (ways["modules"]["questions"], ways["modules"]["answered"]) == (2, 1)
    assert ways["modules"]["moved_by"].mean == -3.0 and ways["modules"]["stale_module"].mean == 0.5
    assert f"modules{WITH_MODULE}" not in ways


@pytest.fixture(scope="module")
def environment(tiny_model: ModelFolder) -> dict[str, str]:
    settings = {
        "model": tiny_model.path,
        "engine": "reference",
        "dtype": "float32",
        "train_steps": 2,
        "module_rank": 4,
        "max_lora_rank": 8,
        "max_model_len": 512,
        "context_tokens": 200,
        "passage_tokens": 40,
        "max_answer_tokens": 4,
    }
    return {f"HYBRIDQA_{name.upper()}": str(value) for name, value in settings.items()}


def test_documents_change_under_their_modules(
    data: tuple[Path, Path], environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["eval", "conflict", "--docs", str(data[0]), "--questions", str(data[1]), "--work", str(tmp_path / "w")]
    kept = tmp_path / "r.json"
    done = CliRunner(env=environment).invoke(app, [*words, "--output", str(kept)])
    assert done.exit_code == 0, done.output
    report = json.loads(kept.read_text())
    assert report["data"] == {"documents": 3, "changed": 2} and "2 changed documents of 3" in done.output
    ways = report["ways"]
    assert all(ways[way]["stale_module"]["mean"] == 0 for way in ways)
    forced = "changed: passages, and the old module forced in"
    assert ways[forced]["answered"] == 2
    assert ways[forced]["moved_by"] != ways["changed: passages"]["moved_by"]  # the old module was in the stack
    assert ways["changed: passages"]["moved_by"] != ways["before: passages"]["moved_by"]  # and the text is new
    user = "before: passages, and the user says the new"
    assert ways[user]["moved_by"] != ways["before: passages"]["moved_by"]
    first, second = (f"{stage}: the module, whatever its gate said" for stage in ("before", "refreshed"))
    assert ways[first]["moved_by"] != ways[second]["moved_by"]  # two versions

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    plan = make_plan(*data, Settings())
    (tmp_path / "w" / STAGES / "refreshed.json").unlink()  # as if it had been killed before its end
    stages: list[str] = []
    again = run_conflict(plan, tmp_path / "w", lambda stage, step, total: stages.append(stage))
    assert not any(stage.startswith(("before", "changed", "old modules")) for stage in stages)
    found = again["ways"][second]["moved_by"].mean
    assert found == pytest.approx(ways[second]["moved_by"]["mean"])  # nothing was trained again
    with pytest.raises(StoreError, match="another measurement of conflicts"):
        run_conflict(make_plan(*data, Settings(), documents=1), tmp_path / "w", lambda *_: None)
