"""What a job's student is taught: the second round, the memory budget, and the same again after a kill."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.models import ModelFolder, load_tokenizer
from hybridqa.training.kept import Kept
from hybridqa.training.lesson import Job
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import Recipe
from hybridqa.training.synthesis import Curriculum
from hybridqa.training.targets import KeptTargets
from hybridqa.training.teaching import CHOICE, Teaching
from hybridqa.training.trainer import Trainer
from hybridqa.training.worker import main


def asked(first: int, count: int) -> tuple[Pair, ...]:
    return tuple(
        Pair(f"What does shelf {number} hold?", f"{number} kettles", "ask", number % 2, number)
        for number in range(first, first + count)
    )


def a_job(model: ModelFolder, **recipe: object) -> Job:
    chunks = ("Shelf 0 holds no kettle.", "Shelf 1 holds a kettle.")
    return Job(
        collection="default",
        doc_id="store",
        content_hash="x",
        module_id="store",
        model_name="tiny",
        model_path=str(model.path),
        model_hash=model.hash,
        context_tokens=100,
        max_model_len=512,
        recipe=asdict(Recipe(rank=2, steps=6, dtype="float32", **recipe)),  # type: ignore[arg-type]
        curriculum=Curriculum("The store", chunks, asked(0, 4), asked(20, 4), {}, reserve=asked(40, 8)),
    )


@pytest.fixture(scope="module")
def prompts(tiny_model: ModelFolder) -> PromptBuilder:
    return PromptBuilder(load_tokenizer(tiny_model.path), max_model_len=512, context_tokens=100)


def result_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "result.json").read_text())
    return found


def test_a_second_round_comes_from_the_reserve_and_is_chosen_once(tiny_model: ModelFolder, tmp_path: Path) -> None:
    a_job(tiny_model).save(tmp_path / "one")
    assert main([str(tmp_path / "one")]) == 0
    chosen = json.loads((tmp_path / "one" / CHOICE).read_text())
    assert len(chosen) == 2 and len(set(chosen)) == 2 and all(0 <= place < 8 for place in chosen)
    metrics = result_of(tmp_path / "one")["metrics"]
    assert isinstance(metrics, dict) and metrics["synthesis"]["second_round"] == 2
    assert metrics["peak_memory_mb"] > 100 and metrics["train"]["dtype"] == "float32"

    a_job(tiny_model).save(tmp_path / "two")  # as one that was stopped after its choice finds it
    (tmp_path / "two" / CHOICE).write_text("[7, 3, 1]")
    assert main([str(tmp_path / "two")]) == 0
    assert json.loads((tmp_path / "two" / CHOICE).read_text()) == [7, 3, 1]
    again = result_of(tmp_path / "two")["metrics"]
    assert isinstance(again, dict) and again["synthesis"]["second_round"] == 3


@pytest.mark.parametrize("recipe", [{"first_round": 1.0}, {"objective": "prompt-distillation"}])
def test_no_second_round(
    tiny_model: ModelFolder, tmp_path: Path, prompts: PromptBuilder, recipe: dict[str, object]
) -> None:
    job = a_job(tiny_model, **recipe)
    job = replace(job, curriculum=replace(job.curriculum, sampled=asked(0, 2)))
    with Kept(1_000_000) as kept:
        trainer = Trainer(tiny_model.path)
        teaching = Teaching(tmp_path, job, trainer, prompts, Recipe(**job.recipe), KeptTargets(kept))
        assert teaching.more() is None


def test_the_memory_budget_changes_no_weight(tiny_model: ModelFolder, tmp_path: Path) -> None:
    for name, memory in (("roomy", 4096), ("tight", 0)):
        a_job(tiny_model, memory_mb=memory).save(tmp_path / name)
    assert main([str(tmp_path / name) for name in ("roomy", "tight")]) == 0
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("roomy", "tight")]
    assert weights[0] == weights[1]


def test_every_target_has_its_own_key(tiny_model: ModelFolder, tmp_path: Path, prompts: PromptBuilder) -> None:
    job = a_job(tiny_model)
    recipe = Recipe(**job.recipe)
    with Kept(1_000_000_000) as kept:
        trainer = Trainer(tiny_model.path)
        trainer.attach(recipe)
        targets = KeptTargets(kept)
        teaching = Teaching(tmp_path, job, trainer, prompts, recipe, targets)
        teaching.teach()
        more = teaching.more()
        assert more is not None
        lists = [*teaching.students(), *teaching.retained(), *more()]
        by_answer: dict[int, set[tuple[int, ...]]] = {}
        for part in lists:
            for example in part:
                if example.key < 0:  # text, which has no teacher
                    continue
                by_answer.setdefault(example.key, set()).add(tuple(example.target))
                assert len(targets[example.key].target_logprob_N) == len(example.target)
        assert all(len(answers) == 1 for answers in by_answer.values())
