"""Arms: which there are, which are chosen, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybridqa.config import Settings
from hybridqa.errors import AdapterError, ConfigError, HybridQAError, InputError
from hybridqa.evaluation.arms import all_arms, choose_arms, comparisons
from hybridqa.evaluation.datasets import EvalQuestion
from hybridqa.evaluation.gold import gold_chunk
from hybridqa.evaluation.options import GridOptions, make_plan
from hybridqa.models import ModelFolder
from hybridqa.modules.adapter import read_adapter

OBJECTIVES = ("dcd", "next-token")


def names_of(*args: Any, **options: Any) -> list[str]:
    return [arm.name for arm in choose_arms(*args, **options)[0]]


def test_every_arm_has_its_own_name_and_content() -> None:
    arms = all_arms(OBJECTIVES, (1, 2))
    assert len({arm.name for arm in arms}) == len(arms)
    contents = [replace(arm, name="") for arm in arms]
    assert len(set(contents)) == len(arms)
    assert [arm.name for arm in arms if arm.closed_book] == ["KM:dcd", "KM:next-token", "KM×1", "KM×2", "KM+KE"]


def test_arms_with_an_extractor_are_absent_without_one() -> None:
    arms, absent = choose_arms(None, OBJECTIVES, (), extractor=False)
    assert [arm.name for arm in arms] == ["closed", "KM:dcd", "KM:next-token", "RAG", "RAG+KM", "gold", "gold+KM"]
    assert set(absent) == {"KE", "KM+KE", "RAG+KE", "RAG+KM+KE"}
    assert all("--extractor" in reason for reason in absent.values())
    assert not choose_arms(None, OBJECTIVES, (), extractor=True)[1]


def test_arms_are_chosen_by_name() -> None:
    assert names_of(["gold", "KM", "KMx2"], OBJECTIVES, (2,), extractor=False) == ["KM:dcd", "KM×2", "gold"]
    for names, message in ((["KM:sft"], "'KM:sft' is unknown"), ([], "no arm"), (["KE"], "--extractor")):
        with pytest.raises(ConfigError, match=message):
            choose_arms(names, OBJECTIVES, (), extractor=False)
    with pytest.raises(ConfigError, match="stack of 0"):
        choose_arms(None, OBJECTIVES, (1, 0), extractor=False)


def test_comparisons_are_of_arms_that_are_there() -> None:
    arms = choose_arms(
        ["closed", "KM:dcd", "KM:next-token", "RAG", "RAG+KM", "KM×2"], OBJECTIVES, (2,), extractor=False
    )
    assert comparisons(arms[0]) == [
        ("KM:dcd", "closed"),
        ("KM:next-token", "closed"),
        ("KM:dcd", "KM:next-token"),
        ("KM×2", "KM:dcd"),
        ("RAG", "closed"),
        ("RAG+KM", "RAG"),
    ]
    everything = comparisons(choose_arms(None, OBJECTIVES, (1, 2, 4), extractor=True)[0])
    assert {("RAG+KM+KE", "RAG+KE"), ("KM×4", "KM×1"), ("KM×4", "KM:dcd"), ("gold+KM", "gold")} <= set(everything)


def test_the_gold_chunk_holds_an_answer() -> None:
    chunks = ["Ann built the bridge over the river Tarn.", "The bridge was opened in 1931.", "In 1931 it rained."]
    question = EvalQuestion("q", "When was the bridge over the river Tarn opened?", ("1931",), ("d",))
    assert gold_chunk(question, chunks) == 1  # the first shares more words, and holds no answer
    assert gold_chunk(replace(question, answers=("in spring",)), chunks) == 0
    assert gold_chunk(replace(question, question="What fell?", answers=("rain that rained",)), chunks) == 2


@pytest.fixture
def options(tmp_path: Path) -> GridOptions:
    docs, questions = tmp_path / "d.jsonl", tmp_path / "q.jsonl"
    docs.write_text("".join(json.dumps({"doc_id": name, "text": f"About {name}."}) + "\n" for name in "abc"))
    lines = [
        {"qid": f"{name}{n}", "question": "?", "answers": ["x"], "doc_ids": [name]} for name in "abc" for n in range(5)
    ]
    lines.append({"qid": "none", "question": "?", "answers": [], "doc_ids": [], "unanswerable": True})
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return GridOptions(docs, questions, objectives=("dcd",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": ("magic",)}, "'magic' is unknown; expected some of dcd"),
        ({"objectives": ()}, "no objective"),
        ({"route": "best"}, "--route is 'best'; expected one of gold, router"),
        ({"documents": -1}, "--documents is -1"),
        ({"max_words": -1}, "--max-words is -1"),
        ({"max_words": 1}, "--max-words 1 leaves no question"),
        ({"questions_per_document": -1}, "--questions-per-document"),
        ({"max_answer_tokens": 0}, "--max-answer-tokens is 0; expected 1"),
        ({"passages": (2, 0)}, "--passages is 0"),
        ({"compose": (1, 4)}, "needs 4 documents with questions; 3"),
        ({"extractor_rag": Path("x")}, "without --extractor"),
        ({"extractor": Path("x"), "no_extractor": True}, "with --no-extractor"),
        ({"extractor": Path("/no/such/folder")}, "/no/such/folder"),
        ({"docs": Path("/no/such/file")}, "/no/such/file"),
    ],
)
def test_what_cannot_be_done_is_refused(options: GridOptions, change: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, InputError, AdapterError), match=message) as caught:
        make_plan(replace(options, **change), Settings())
    assert isinstance(caught.value, HybridQAError)


def test_a_plan_chooses_by_seed_and_makes_room_for_its_stacks(options: GridOptions) -> None:
    plan = make_plan(replace(options, documents=2, questions_per_document=3, seed=1), Settings())
    assert len(plan.doc_ids) == 2 and len(plan.questions) == 6 and len(plan.documents) == 3 and plan.unanswerable == 1
    assert plan == make_plan(replace(options, documents=2, questions_per_document=3, seed=1), Settings())
    assert plan.settings["max_lora_rank"] == 64 and plan.seed == plan.settings["seed"] == 1
    assert plan.trained == ("dcd",)
    assert make_plan(replace(options, arms=("closed", "RAG")), Settings()).trained == ()
    wide = make_plan(replace(options, compose=(3,)), Settings(module_rank=40))
    assert wide.settings["max_lora_rank"] == 128
    with pytest.raises(ConfigError, match="rank 600"):
        make_plan(replace(options, compose=(3,)), Settings(module_rank=200, max_lora_rank=256))


def test_long_documents_are_searched_and_not_asked_about(options: GridOptions) -> None:
    options.docs.write_text(
        "".join(
            json.dumps({"doc_id": name, "text": "word " * size}) + "\n"
            for name, size in zip("abc", (3, 4, 5), strict=True)
        )
    )
    both = {"qid": "both", "question": "?", "answers": ["x"], "doc_ids": ["a", "c"]}
    with options.questions.open("a") as file:
        file.write(json.dumps(both) + "\n")
    plan = make_plan(replace(options, max_words=4), Settings())
    assert plan.doc_ids == ["a", "b"] and len(plan.questions) == 10 and len(plan.documents) == 3
    assert len(make_plan(replace(options, max_words=5), Settings()).questions) == 16


def test_an_extractor_says_how_its_modules_weigh(
    options: GridOptions, make_adapter: Callable[..., Path], tiny_model: ModelFolder, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "extractor", tiny_model, rank=4)
    for manifest, message in (
        (None, "no readable manifest.json"),
        ({}, "'module_weights'"),
        ({"module_weights": {"a": "x"}}, "numbers"),
    ):
        if manifest is not None:
            (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(AdapterError, match=message):
            make_plan(replace(options, extractor=folder), Settings())
    (folder / "manifest.json").write_text(json.dumps({"module_weights": {"a": 0.5}, "base_model_hash": "other"}))
    extractor = make_plan(replace(options, extractor=folder), Settings()).extractor
    assert extractor is not None
    with pytest.raises(AdapterError, match="base model"):
        extractor.check_base_model(tiny_model.hash)
    with pytest.raises(AdapterError, match=r"no weight for layer 'model\.layers\.0"):
        extractor.weight_of(extractor.adapter)


def test_the_packages_own_extractors_are_plugged_in_for_their_model_alone(
    options: GridOptions, model_folder: ModelFolder, tiny_model: ModelFolder
) -> None:
    plan = make_plan(options, Settings())
    assert not plan.absent and {"KE", "RAG+KE", "KM+KE", "RAG+KM+KE"} <= {arm.name for arm in plan.arms}
    assert plan.extractor is not None and plan.extractor_rag is not None
    for extractor in (plan.extractor, plan.extractor_rag):
        extractor.check_base_model(model_folder.hash)
    (module,) = (Path(__file__).parents[2] / "modules" / "demo").rglob("adapter_config.json")
    weights = plan.extractor.weight_of(read_adapter(module.parent))
    assert isinstance(weights, dict) and len(set(weights.values())) > 1  # learned, for each layer
    assert plan.extractor_rag.weight_of(read_adapter(module.parent)) == 1.0  # it has met no module
    for changed, settings in (
        (replace(options, no_extractor=True), Settings()),
        (options, Settings(model=str(tiny_model.path))),
        (options, Settings(model="../smollm2-135m")),
    ):
        plan = make_plan(changed, settings)
        assert plan.extractor is None and set(plan.absent) == {"KE", "RAG+KE", "KM+KE", "RAG+KM+KE"}
    assert make_plan(replace(options, arms=("closed",)), Settings()).extractor is None


def test_several_numbers_of_passages_make_an_arm_of_each() -> None:
    arms, _ = choose_arms(["RAG", "RAG+KM", "closed"], OBJECTIVES, (), (1, 4), extractor=False)
    assert [(arm.name, arm.passages) for arm in arms] == [
        ("closed", None), ("RAG@1", 1), ("RAG@4", 4), ("RAG+KM@1", 1), ("RAG+KM@4", 4)
    ]  # fmt: skip
    assert comparisons(arms) == [
        ("RAG@1", "closed"), ("RAG@4", "closed"), ("RAG+KM@1", "RAG@1"), ("RAG+KM@4", "RAG@4"),
        ("RAG@1", "RAG@4"), ("RAG+KM@1", "RAG+KM@4"), ("RAG+KM@1", "RAG@4"),
    ]  # fmt: skip
    assert [arm.name for arm in choose_arms(["RAG@4"], OBJECTIVES, (), (1, 4), extractor=False)[0]] == ["RAG@4"]
    assert choose_arms(["RAG"], OBJECTIVES, (), (4,), extractor=False)[0][0].passages is None  # the settings' number
    with pytest.raises(ConfigError, match=r"arm 'RAG@2' is unknown; expected some of .*RAG@4"):
        choose_arms(["RAG@2"], OBJECTIVES, (), (1, 4), extractor=False)
