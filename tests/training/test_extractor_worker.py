"""The process that trains an extractor: what it does with a job, and that a kill costs it nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridqa.answering.prompt import UNKNOWN, PromptBuilder, messages_for
from hybridqa.models import ModelFolder, load_tokenizer
from hybridqa.modules.adapter import CONFIG_FILE, WEIGHTS_FILE
from hybridqa.training.checkpoint import CHECKPOINT
from hybridqa.training.exercises import Exercise
from hybridqa.training.extractor_gate import SERVED
from hybridqa.training.extractor_job import ExtractorJob
from hybridqa.training.extractor_worker import lists, main, work
from hybridqa.training.recipe import Recipe
from hybridqa.training.trainer import Trainer

RECIPE = Recipe(objective="sft", rank=4, first_layer=0.0, steps=12, pack_tokens=400, checkpoint_steps=4)


def exercise(number: int, configuration: str, source: bool, module: str | None, known: bool = True) -> Exercise:
    sources = (f"The kettle {number} costs {number} euros.", "The bridge is green.") if source else ()
    target = f"{number} euros{' [1]' if source else ''}" if known else UNKNOWN
    return Exercise(
        f"q{number}", f"d{number % 3}", configuration, f"What does kettle {number} cost?", sources, target, module
    )


EXERCISES = (
    *(exercise(number, "passages_module", True, f"d{number % 3}") for number in range(8)),
    *(exercise(number, "module", False, "d0") for number in range(8, 13)),
    *(exercise(number, "neither", True, None, known=False) for number in range(13, 17)),
)


@pytest.fixture(scope="module")
def prompts(tiny_model: ModelFolder) -> PromptBuilder:
    return PromptBuilder(load_tokenizer(tiny_model.path), max_model_len=512, context_tokens=300)


@pytest.fixture(scope="module")
def job(
    tiny_model: ModelFolder, make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> ExtractorJob:
    folder = tmp_path_factory.mktemp("modules")
    modules = {f"d{place}": make_adapter(folder / f"d{place}", tiny_model, seed=place) for place in range(3)}
    return ExtractorJob(
        model_name="tiny",
        model_path=str(tiny_model.path),
        model_hash=tiny_model.hash,
        prompt="x",
        context_tokens=300,
        max_model_len=512,
        recipe=asdict(RECIPE),
        exercises=EXERCISES,
        held_out=EXERCISES,
        modules=dict.fromkeys(modules, "x"),
        folders={name: str(path) for name, path in modules.items()},
    )


def test_lists_have_one_module_and_one_instruction_each(prompts: PromptBuilder) -> None:
    found = lists(prompts, EXERCISES, closed_at_once=2)
    assert sorted(example.key for _, examples in found for example in examples) == list(range(len(EXERCISES)))
    for module, examples in found:
        chosen = [EXERCISES[example.key] for example in examples]
        assert {item.module for item in chosen} == {module}
        assert len({bool(item.sources) for item in chosen}) == 1
        assert chosen[0].sources or len(chosen) <= 2
        for item, example in zip(chosen, examples, strict=True):
            assert example.prompt == prompts.encode(messages_for(item.question, item.sources))
            assert example.target == prompts.encode_answer(item.target)
    assert len(lists(prompts, EXERCISES)) == 5  # sourced ones of three modules and of none; closed ones


def test_a_job_leaves_an_adapter_and_what_was_measured(
    job: ExtractorJob, prompts: PromptBuilder, tiny_model: ModelFolder, tmp_path: Path
) -> None:
    job.save(tmp_path)
    assert ExtractorJob.load(tmp_path) == job
    work(tmp_path, Trainer(tiny_model.path), prompts)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["train"]["steps"] == 12
    assert result["passed"] and result["metrics"]["gate"][SERVED]["gain"] > 0  # asked what it has learned
    weights = result["module_weights"]
    assert len(weights) == 14 and all(value != 1.0 for value in weights.values())
    config = json.loads((tmp_path / "adapter" / CONFIG_FILE).read_text())
    assert config["r"] == 4 and config["base_model_name_or_path"] == "tiny"


def test_a_killed_run_goes_on_to_the_same_end(
    job: ExtractorJob, prompts: PromptBuilder, tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    job.save(whole)
    job.save(killed)
    trainer = Trainer(tiny_model.path)
    work(whole, trainer, prompts)

    class Killed(BaseException):
        pass

    def stop(**event: object) -> None:
        if (killed / CHECKPOINT).exists():
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("hybridqa.training.extractor_worker.say", stop)
        patched.setattr("hybridqa.training.extractor_worker.time.perf_counter", iter(range(1000)).__next__)
        with pytest.raises(Killed):
            work(killed, trainer, prompts)
    assert not (killed / "result.json").exists()
    trainer = Trainer(tiny_model.path)
    work(killed, trainer, prompts)
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, killed)]
    assert results[0]["module_weights"] == results[1]["module_weights"]
    one, other = (load_file(folder / "adapter" / WEIGHTS_FILE) for folder in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert results[1]["metrics"]["train"]["seconds"] < 1000  # real seconds again


def test_without_modules_none_is_weighted(
    job: ExtractorJob, prompts: PromptBuilder, tiny_model: ModelFolder, tmp_path: Path
) -> None:
    plain = tuple(replace(item, module=None) for item in EXERCISES if item.sources)
    replace(job, exercises=plain, held_out=plain, folders={}, recipe={**job.recipe, "steps": 5}).save(tmp_path)
    work(tmp_path, Trainer(tiny_model.path), prompts)  # a checkpoint of weights that have no gradient, too
    assert json.loads((tmp_path / "result.json").read_text())["module_weights"] == {}
    assert (tmp_path / CHECKPOINT).exists()


def test_a_name_is_of_what_decides_the_result(job: ExtractorJob) -> None:
    moved = replace(job, model_path="/elsewhere", folders=dict.fromkeys(job.folders, "/elsewhere"))
    assert moved.name == job.name
    others = (
        replace(job, modules={**job.modules, "d0": "y"}),
        replace(job, exercises=EXERCISES[1:]),
        replace(job, recipe={**job.recipe, "seed": 1}),
    )
    assert len({job.name, *(other.name for other in others)}) == 4


def test_a_job_that_fails_is_said_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 1
    event = json.loads(capfd.readouterr().out)
    assert event["stage"] == "failed" and event["job"] == "none" and "FileNotFoundError" in event["reason"]
