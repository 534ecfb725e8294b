"""The grid from end to end on invented documents, with a tiny random model and the real trainer's process."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hybridqa.cli import app
from hybridqa.cli.output import plain
from hybridqa.config import Settings
from hybridqa.errors import BaseModelMismatchError
from hybridqa.evaluation import modules as grid_modules
from hybridqa.evaluation.answers import AnswerBook
from hybridqa.evaluation.grid import GridResult, run_grid
from hybridqa.evaluation.metrics import METRICS
from hybridqa.evaluation.options import GridOptions, make_plan
from hybridqa.evaluation.report import MEASURES, make_report
from hybridqa.models import ModelFolder
from hybridqa.training.lesson import Job

TEXTS = {
    "kettle": "The Lumen kettle holds 1.7 litres of water. Maren Holt designed the Lumen kettle in 2031. "
    "The Lumen kettle is made in the town of Oskvar. The Lumen kettle costs 89 euros in every shop of Oskvar.",
    "museum": "The Veldmoor museum keeps 4,000 clay lamps. Anna Voss founded the Veldmoor museum in 1931. "
    "The Veldmoor museum stands in the old mill of Tarn. A ticket to the Veldmoor museum costs 12 crowns.",
    "ferry": "The ferry Solvang crosses the sound in 40 minutes. Captain Ida Brook has steered the ferry since 1999. "
    "The ferry Solvang carries 60 cars. The ferry Solvang was built in the yard of Pellworth.",
}
QUESTIONS = [
    ("kettle", "Who designed the Lumen kettle?", ["Maren Holt", "Holt", "M. Holt", "Maren"]),
    ("kettle", "How much does the Lumen kettle cost?", ["89 euros"]),
    ("museum", "Who founded the Veldmoor museum?", ["Anna Voss"]),
    ("museum", "Where does the Veldmoor museum stand?", ["the old mill of Tarn"]),
    ("ferry", "How many cars does the ferry Solvang carry?", ["60"]),
    ("ferry", "Who steers the ferry Solvang?", ["Ida Brook"]),
]


@pytest.fixture(scope="module")
def settings(tiny_model: ModelFolder) -> Settings:
    return Settings(
        model=str(tiny_model.path),
        engine="reference",
        dtype="float32",
        train_steps=2,
        module_rank=4,
        max_lora_rank=8,
        max_model_len=512,
        context_tokens=200,
        passage_tokens=40,
    )


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, make_adapter: Any, tiny_model: ModelFolder) -> GridOptions:
    folder = tmp_path_factory.mktemp("data")
    documents = [{"doc_id": name, "title": name.title(), "text": text} for name, text in TEXTS.items()]
    questions = [
        {"qid": f"q{place}", "question": question, "answers": answers, "doc_ids": [doc_id]}
        for place, (doc_id, question, answers) in enumerate(QUESTIONS)
    ]
    questions.append({"qid": "none", "question": "Why?", "doc_ids": ["ferry"], "unanswerable": True})
    for name, lines in (("d", documents), ("q", questions)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    extractor = make_adapter(folder / "extractor", tiny_model, rank=4, strength=0.5)
    from hybridqa.modules.adapter import read_adapter

    weights = dict.fromkeys(read_adapter(extractor).targets, 0.5)
    (extractor / "manifest.json").write_text(json.dumps({"kind": "extractor", "module_weights": weights}))
    return GridOptions(
        folder / "d",
        folder / "q",
        objectives=("dcd", "next-token"),
        extractor=extractor,
        compose=(1, 2),
        max_answer_tokens=4,
    )


def run(options: GridOptions, settings: Settings, work: Path) -> GridResult:
    return run_grid(make_plan(options, settings), work, lambda stage, step, total: None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def result(options: GridOptions, settings: Settings, work: Path) -> GridResult:
    return run(options, settings, work)


def given(result: GridResult, arm: str) -> list[str]:
    (found,) = [answers for answers in result.answers if answers.arm.name == arm]
    return [f"{answer.text} {answer.answer_logprob:.6f}" for answer in found.given]


def adapters(result: GridResult, arm: str) -> list[str | None]:
    (found,) = [answers for answers in result.answers if answers.arm.name == arm]
    return [asked.adapter.name if asked.adapter else None for asked in found.asked]


def ranks(result: GridResult, arm: str) -> set[int]:
    (found,) = [answers for answers in result.answers if answers.arm.name == arm]
    return {asked.adapter.rank for asked in found.asked if asked.adapter}


def test_every_arm_is_asked_what_it_says(result: GridResult) -> None:
    names = [answers.arm.name for answers in result.answers]
    assert names == [
        "closed", "KM:dcd", "KM:next-token", "KM×1", "KM×2", "RAG", "RAG+KM", "KE", "KM+KE", "RAG+KE", "RAG+KM+KE",
        "gold", "gold+KM",
    ]  # fmt: skip
    assert given(result, "KM×1") == given(result, "KM:dcd")
    for arm in ("closed", "RAG", "gold"):
        assert adapters(result, arm) == [None] * 6
    assert len(set(adapters(result, "KE"))) == 1  # one extractor for all
    for arm in ("KM:dcd", "KM:next-token", "KM+KE"):
        assert len(set(adapters(result, arm))) == 3  # a stack for each document
    assert ranks(result, "KM:dcd") == ranks(result, "KE") == {4}
    assert ranks(result, "KM×2") == ranks(result, "KM+KE") == {8}
    assert adapters(result, "RAG+KM") == adapters(result, "gold+KM") == adapters(result, "KM:dcd")
    assert adapters(result, "RAG+KM+KE") == adapters(result, "KM+KE")
    prompts = {answers.arm.name: [asked.prompt_ids for asked in answers.asked] for answers in result.answers}
    assert prompts["closed"] == prompts["KM:dcd"] == prompts["KM×2"] == prompts["KE"] == prompts["KM+KE"]
    assert prompts["RAG"] == prompts["RAG+KM"] == prompts["RAG+KE"] != prompts["gold"] == prompts["gold+KM"]
    outcomes = {tuple(given(result, name)) for name in names}
    assert len(outcomes) == len(names) - 1  # KM×1 alone is another's equal


def test_objectives_share_a_curriculum_and_nothing_else(result: GridResult, work: Path) -> None:
    jobs = [Job.load(path.parent) for path in work.glob("store-*/modules/default/*/job-*/job.json")]
    by_document: dict[str, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: str(job.recipe["objective"])):
        by_document.setdefault(job.doc_id, []).append(job)
    assert set(by_document) == set(TEXTS)
    for first, second in by_document.values():
        assert (first.recipe["objective"], second.recipe["objective"]) == ("dcd", "next-token")
        assert {**first.recipe, "objective": ""} == {**second.recipe, "objective": ""}
        assert first.curriculum == second.curriculum and first.curriculum.pairs
    assert not set(adapters(result, "KM:dcd")) & set(adapters(result, "KM:next-token"))


def test_modules_are_trained_beside_those_of_the_documents_before(result: GridResult, work: Path) -> None:
    paths = [path.parent for path in work.glob("store-*/modules/default/*/job-*/job.json")]
    jobs = {(job.doc_id, str(job.recipe["objective"])): (job, path) for path in paths for job in [Job.load(path)]}
    first, second, third = list(dict.fromkeys(doc_id for doc_id, _ in result.modules))
    for objective in ("dcd", "next-token"):
        before = jobs[first, objective][1].absolute() / "adapter"
        assert jobs[third, objective][0].companions == (str(before),)
        assert jobs[first, objective][0].companions == jobs[second, objective][0].companions == ()
        for doc_id in TEXTS:
            asked = " ".join(question + answer for question, answer in jobs[doc_id, objective][0].off_topic)
            assert [name for name in TEXTS if name in asked] == [name for name in TEXTS if name != doc_id]
        beside = result.modules[third, objective].report["metrics"]["beside"]
        assert list(beside["modules"]) == [f"{jobs[first, objective][0].module_id}@0"] and not beside["skipped"]


def test_the_prompts_hold_what_they_should(result: GridResult, tokenizer: Any) -> None:
    asked = {answers.arm.name: answers.asked for answers in result.answers}
    for place, (doc_id, question, answers) in enumerate(QUESTIONS):
        texts = {name: tokenizer.decode(found[place].prompt_ids) for name, found in asked.items()}
        assert all(question in text for text in texts.values())
        assert answers[0] in texts["gold"] and answers[0] not in texts["closed"]
        assert f"[1] {doc_id.title()}" in texts["gold"]
        targets = [tokenizer.decode(target, skip_special_tokens=True) for target in asked["RAG"][place].targets]
        assert targets == answers[:3]


def test_the_report_has_every_number_with_its_interval(result: GridResult, options: GridOptions) -> None:
    report = plain(make_report(result))
    json.dumps(report, allow_nan=False)
    for arm in report["arms"].values():
        assert arm["n"] == 6
        for measure in MEASURES:
            assert arm[measure]["low"] <= arm[measure]["mean"] <= arm[measure]["high"]
        assert arm["answer_logprob"]["mean"] < 0
    pairs = report["differences"]
    assert {"KM:dcd - closed", "RAG+KM - RAG", "RAG+KM+KE - RAG+KE", "KM×2 - KM×1", "gold+KM - gold"} <= set(pairs)
    gain = pairs["KM:dcd - closed"]["answer_logprob"]["mean"]
    means = {name: arm["answer_logprob"]["mean"] for name, arm in report["arms"].items()}
    assert gain == pytest.approx(means["KM:dcd"] - means["closed"])
    recovered = report["recovered"]["KM:dcd"]
    assert set(recovered["of_score"]) == set(METRICS)
    whole = means["gold"] - means["closed"]  # of a random model the passage may well gain nothing
    assert recovered["of_gain"]["answer_logprob"]["mean"] == (pytest.approx(gain / whole) if whole > 0 else None)
    modules = report["modules"]["dcd"]
    assert modules["documents"] == modules["trained"] == 3 and set(modules["each"]) == set(TEXTS)
    for module in modules["each"].values():
        assert module["seconds"] > 0 and module["mb"] > 0 and isinstance(module["passed"], bool) and module["reason"]
    data = report["data"]
    assert data["documents"]["count"] == 3 and data["questions"]["asked"] == 6
    assert data["questions"]["unanswerable_left_out"] == 1 and len(data["questions"]["sha256"]) == 64
    assert {"command", "commit", "hardware", "model", "seed", "settings", "work"} <= set(report)


def test_a_second_run_trains_and_asks_nothing(
    result: GridResult, options: GridOptions, settings: Settings, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("nothing was left to do")

    monkeypatch.setattr(grid_modules, "train", refuse)
    monkeypatch.setattr("hybridqa.engine.reference.ReferenceEngine.start", refuse)
    again = run(options, settings, work)
    assert [answers.known for answers in again.answers] == [6] * 13
    assert (
        plain(make_report(again))["arms"]["KM+KE"]["token_f1"]
        == plain(make_report(result))["arms"]["KM+KE"]["token_f1"]
    )
    for arm in ("closed", "KM:dcd", "RAG+KM+KE"):
        assert given(again, arm) == given(result, arm)


def test_answers_that_a_kill_cut_off_are_given_again(
    result: GridResult, options: GridOptions, settings: Settings, work: Path
) -> None:
    (path,) = (work / "answers").glob("*-closed.jsonl")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    again = run(replace(options, arms=("closed",)), settings, work)
    assert again.answers[0].known == 3
    assert given(again, "closed") == given(result, "closed")
    kept = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert len({entry["key"] for entry in kept}) == 6
    longer = run(replace(options, arms=("closed",), max_answer_tokens=5), settings, work)
    assert longer.answers[0].known == 0  # another length is another answer


def test_the_router_chooses_modules_when_asked_to(
    result: GridResult, options: GridOptions, settings: Settings, work: Path
) -> None:
    routed = run(replace(options, arms=("KM", "RAG+KM", "gold+KM"), route="router"), settings, work)
    known = set(adapters(result, "KM:dcd"))
    for arm in ("KM:dcd", "RAG+KM"):
        assert set(adapters(routed, arm)) <= known | {None}
        assert set(adapters(routed, arm)) & known
    assert adapters(routed, "gold+KM") == adapters(result, "gold+KM")


def test_one_document_has_no_interval(options: GridOptions, settings: Settings, work: Path) -> None:
    alone = run(replace(options, arms=("closed",), compose=(), documents=1, extractor=None), settings, work)
    (arm,) = make_report(alone)["arms"].values()
    assert arm["n"] == 2 and math.isnan(arm["token_f1"].low)
    json.dumps(plain(make_report(alone)), allow_nan=False)


def test_an_extractor_of_another_base_model_is_refused(
    options: GridOptions, settings: Settings, tmp_path: Path
) -> None:
    import shutil

    assert options.extractor is not None
    folder = shutil.copytree(options.extractor, tmp_path / "extractor")
    manifest = {**json.loads((folder / "manifest.json").read_text()), "base_model_hash": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BaseModelMismatchError):
        run(replace(options, extractor=folder, arms=("KE",), compose=()), settings, tmp_path / "work")


def test_a_book_of_answers_forgets_no_circumstance(tmp_path: Path) -> None:
    from hybridqa.engine.protocol import Adapter, Sampling
    from hybridqa.evaluation.answers import Asked

    asked = Asked("q", (1, 2), ((3,),), None)
    book = AnswerBook(tmp_path, ["model"])
    keys = {
        book.key(asked, Sampling(max_tokens=4)),
        book.key(asked, Sampling(max_tokens=5)),
        book.key(replace(asked, prompt_ids=(1,)), Sampling(max_tokens=4)),
        book.key(replace(asked, targets=((3,), (4,))), Sampling(max_tokens=4)),
        book.key(replace(asked, adapter=Adapter("a", tmp_path, 4)), Sampling(max_tokens=4)),
        AnswerBook(tmp_path, ["other"]).key(asked, Sampling(max_tokens=4)),
    }
    assert len(keys) == 6
    moved = replace(asked, qid="r", adapter=None)
    assert book.key(moved, Sampling(max_tokens=4)) in keys  # the same question under another id is the same


def test_the_command_prints_one_report(
    result: GridResult,
    options: GridOptions,
    settings: Settings,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in settings.model_fields_set:
        monkeypatch.setenv(f"HYBRIDQA_{name.upper()}", str(getattr(settings, name)))
    words = ["eval", "grid", "--docs", str(options.docs), "--questions", str(options.questions), "--work", str(work)]
    words += ["--objectives", "dcd,next-token", "--max-answer-tokens", "4"]
    done = CliRunner().invoke(app, [*words, "--arms", "closed,KM,gold", "--output", str(tmp_path / "r"), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "r").read_text())
    assert list(report["arms"]) == ["closed", "KM:dcd", "gold"]
    assert all(arm["known_before"] == 6 for arm in report["arms"].values())
    shown = CliRunner().invoke(app, [*words, "--arms", "closed,KM,gold,KE"])
    assert shown.exit_code == 0, shown.output
    assert "KM:dcd - closed" in shown.stdout and "modules by dcd" in shown.stdout
    assert "KE is not there: it needs an extractor" in shown.stderr
    for wrong in (
        ["--arms", "magic"],
        ["--compose", "two"],
        ["--output", "/no/such/folder/r"],
        ["--work", str(options.docs)],
    ):
        refused = CliRunner().invoke(app, [*words, *wrong])
        assert refused.exit_code == 2 and refused.stderr.startswith("error: ") and wrong[1] in refused.stderr


def test_fewer_passages_make_shorter_prompts_with_the_same_modules(
    options: GridOptions, settings: Settings, work: Path, result: GridResult
) -> None:
    fewer = replace(options, passages=(1, 3), arms=("RAG", "RAG+KM"), compose=(), objectives=("dcd",))
    found = run(fewer, settings, work)
    assert [one.arm.name for one in found.answers] == ["RAG@1", "RAG@3", "RAG+KM@1", "RAG+KM@3"]
    lengths = {one.arm.name: [len(asked.prompt_ids) for asked in one.asked] for one in found.answers}
    assert all(one < three for one, three in zip(lengths["RAG@1"], lengths["RAG@3"], strict=True))
    assert lengths["RAG+KM@1"] == lengths["RAG@1"] and lengths["RAG+KM@3"] == lengths["RAG@3"]
    assert adapters(found, "RAG+KM@1") == adapters(found, "RAG+KM@3") == adapters(result, "RAG+KM")
    differences = make_report(found)["differences"]
    assert "RAG+KM@1 - RAG@3" in differences and "RAG+KM@1 - RAG@1" in differences
