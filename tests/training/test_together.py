"""Several adapters trained in one row: each learns what it learns alone, and fails alone."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import examples
from torch import Tensor

from hybridqa.errors import TrainingError
from hybridqa.models import ModelFolder
from hybridqa.training.assignment import Assignment
from hybridqa.training.fitting import Fit, learn
from hybridqa.training.lesson import CHECKPOINT, Job
from hybridqa.training.objectives import TeacherTargets
from hybridqa.training.packing import Example, Joint, additive_mask, pack
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import Recipe
from hybridqa.training.synthesis import Curriculum
from hybridqa.training.together import Together
from hybridqa.training.trainer import Trainer
from hybridqa.training.worker import main

RECIPE = Recipe(rank=4, alpha=8, steps=14, pack_tokens=40, retention=0.3, echoed=0.5, distracted=0.6, first_layer=0.5)
COUNT = 3


def keyed(items: list[Example], first: int) -> list[Example]:
    return [replace(item, key=first + item.key) for item in items]


def begin(trainer: Trainer, place: int, recipe: Recipe, beside: Path | None, checkpoint: Path | None = None) -> Fit:
    """The training of document `place`: lists of its own, prompts to leave alone, a second round, and companions."""
    own = keyed(examples(8 + 2 * place, seed=place), 0)
    second = keyed(examples(4, seed=50 + place), len(own))
    held = keyed(examples(4, seed=70 + place), len(own) + len(second))
    every = [*own, *second, *held]
    # The teacher reads something before: where both say the same, their distance has the gradient of a rounding error.
    read = [replace(item, prompt=(*range(2, 9), *item.prompt)) for item in every]
    taught: list[TeacherTargets] = trainer.teach(read, recipe)
    return Fit(
        trainer,
        [own[::2], own[1::2]],
        taught,
        recipe,
        distractors=[trainer.companion([beside])] if beside and place == 1 else (),
        retained=[held],
        more=(lambda: [second]) if place != 2 else None,
        checkpoint=checkpoint,
    )


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.parameters().items()}


def alone(
    trainer: Trainer, place: int, recipe: Recipe, beside: Path | None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and report of a training that has the trainer to itself."""
    trainer.attach(recipe)
    with begin(trainer, place, recipe, beside) as run:
        while not run.done:
            losses = [learn(trainer, part) for part in run.parts()]
            run.take(losses[0])
        return weights_of(trainer), run.report()


def publish(model: Path, folder: Path) -> Path:
    """Another module on the same model."""
    trainer = Trainer(model, device="cpu")
    trainer.attach(replace(RECIPE, rank=2, seed=9, first_layer=0.25))
    with torch.no_grad():
        for weight in trainer.parameters().values():
            weight.normal_(std=0.1)
    trainer.save(folder / "beside")
    return folder / "beside"


def test_each_learns_what_it_learns_alone(tiny_decoder: Path, tmp_path: Path) -> None:
    each_learns_what_it_learns_alone(tiny_decoder, publish(tiny_decoder, tmp_path), RECIPE)


def test_without_a_teacher_and_with_the_weights_that_serve(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, objective="next-token", shared=True)
    each_learns_what_it_learns_alone(tiny_llama, publish(tiny_llama, tmp_path), recipe)


def each_learns_what_it_learns_alone(model: Path, published: Path, recipe: Recipe) -> None:
    trainer = Trainer(model, device="cpu")
    expected = [alone(trainer, place, recipe, published) for place in range(COUNT)]
    trainer.detach()
    with Together(trainer, recipe, COUNT) as adapters, ExitStack() as open_runs:
        runs = {}
        for place in range(COUNT):
            adapters.use(place)
            runs[place] = open_runs.enter_context(begin(trainer, place, recipe, published))
        assert not adapters.fit(runs)
        packs = trainer.keeps_apart(pack(examples(3)))
        assert adapters.joined is (True if packs else None)
        for place, (weights, report) in enumerate(expected):
            adapters.use(place)
            got, told = weights_of(trainer), runs[place].report()
            assert told["loss"] == pytest.approx(report["loss"], rel=1e-4) and told["tokens"] == report["tokens"]
            assert any(weight.abs().max() > 0 for name, weight in got.items() if "lora_B" in name)
            for name, weight in got.items():
                assert torch.allclose(weight, weights[name], atol=1e-4), (place, name)
    plain = trainer.score(examples(3))
    assert plain == Trainer(model, device="cpu").score(examples(3))  # nothing is left on the model


def test_what_fails_fails_alone(tiny_llama: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_llama, device="cpu")
    expected, _ = alone(trainer, 0, RECIPE, None)

    def broken() -> list[list[Example]]:
        raise TrainingError("no second round")

    with Together(trainer, RECIPE, 2) as adapters, ExitStack() as open_runs:
        first = open_runs.enter_context(begin(trainer, 0, RECIPE, None, tmp_path))
        adapters.use(1)
        second = open_runs.enter_context(begin(trainer, 1, RECIPE, None))
        second._more = broken
        failures = adapters.fit({0: first, 1: second})
        assert {place: str(error) for place, error in failures.items()} == {1: "no second round"}
        adapters.use(0)
        for name, weight in weights_of(trainer).items():
            assert torch.allclose(weight, expected[name], atol=2e-4), name


def test_a_joint_row_keeps_its_packs_apart() -> None:
    packs = [pack(examples(3, seed=seed)) for seed in range(3)]
    row = Joint.of(packs)
    assert len(row) == sum(map(len, packs)) and row.sizes == tuple(map(len, packs))
    assert torch.equal(row.allowed(), torch.block_diag(*(part.allowed().float() for part in packs)).bool())
    assert torch.equal(row.token_ids_T[: len(packs[0])], packs[0].token_ids_T)
    start = len(packs[0])
    assert torch.equal(row.predicts_N[sum(packs[0].lengths) :][: sum(packs[1].lengths)], packs[1].predicts_N + start)
    assert additive_mask(row.allowed(), torch.float32).shape == (1, 1, len(row), len(row))


def job(tiny_model: ModelFolder, name: str) -> Job:
    pairs = tuple(
        Pair(f"What does shelf {number} of the {name} hold?", f"{number} {name}s", "ask", number % 2, number)
        for number in range(4)
    )
    return Job(
        collection="default",
        doc_id=name,
        content_hash="x",
        module_id=name,
        model_name="tiny",
        model_path=str(tiny_model.path),
        model_hash=tiny_model.hash,
        context_tokens=100,
        max_model_len=512,
        recipe=asdict(Recipe(rank=2, steps=6, checkpoint_steps=4, dtype="float32")),
        curriculum=Curriculum(f"The {name}", ("Shelf 0 holds nothing.", f"Shelf 1: {name}."), pairs, pairs[:2], {}),
    )


@pytest.mark.parametrize("stage", ["step", "gate"])
def test_what_several_cannot_do_together_each_does_alone_and_ends_once(
    tiny_model: ModelFolder,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    names = ("kettle", "lamp", "clock")
    for name in names:
        job(tiny_model, name).save(tmp_path / name)
    finish = Assignment.finish

    def crowded(self: Together, parts: object) -> None:
        raise RuntimeError("no kernel for so long a row")

    def full(self: Assignment, together: int = 1) -> None:
        if together > 1 and self.folder.name == "lamp":
            raise torch.OutOfMemoryError("out of memory")
        finish(self, together)

    if stage == "step":
        monkeypatch.setattr(Together, "_learn_at_once", crowded)
    else:
        monkeypatch.setattr(Assignment, "finish", full)
    expected = [("kettle", "done"), ("lamp", "done"), ("clock", "done")]
    code = main(["--together", "3", *(str(tmp_path / name) for name in names)])
    said = capfd.readouterr()
    events = [json.loads(line) for line in said.out.splitlines() if line.startswith("{")]
    ends = [(event["job"], event["stage"]) for event in events if event["stage"] in ("done", "failed")]
    if stage == "step":  # not even one alone can do that
        assert ends == [(name, "failed") for name, _ in expected] and code == 1
    else:
        assert ends == expected and code == 0
        together = [
            json.loads((tmp_path / name / "result.json").read_text())["metrics"]["train"]["together"] for name in names
        ]
        assert together == [3, 1, 1]
    assert "each goes on alone" in said.err


def test_the_worker_trains_jobs_of_one_recipe_together(
    tiny_model: ModelFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("kettle", "lamp", "clock", "broken")
    for together in (1, 3):
        for name in names:
            made = job(tiny_model, name)
            if name == "clock":
                made = replace(made, recipe={**made.recipe, "steps": 5})  # in a row of its own
            if name == "broken":
                made = replace(made, curriculum=replace(made.curriculum, pairs=(), chunks=()))
            made.save(tmp_path / str(together) / name)
        arguments = ["--together", str(together), *(str(tmp_path / str(together) / name) for name in names)]
        assert main(arguments) == 1
        events = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
        ends = [(event["job"], event["stage"]) for event in events if event["stage"] in ("done", "failed")]
        order = names if together == 1 else ("broken", "kettle", "lamp", "clock")
        assert ends == [(name, "failed" if name == "broken" else "done") for name in order]
    for name in ("kettle", "lamp", "clock"):
        results = [json.loads((tmp_path / each / name / "result.json").read_text()) for each in ("1", "3")]
        counts = [result["metrics"]["train"]["together"] for result in results]
        assert counts == [1, 1 if name == "clock" else 2]
        assert results[0]["metrics"]["train"]["loss"] == pytest.approx(results[1]["metrics"]["train"]["loss"], rel=1e-3)
        both = [load_file(tmp_path / each / name / "adapter" / "adapter_model.safetensors") for each in ("1", "3")]
        for key, weight in both[0].items():
            assert torch.allclose(weight.float(), both[1][key].float(), atol=2e-3), key
        assert (tmp_path / "3" / name / CHECKPOINT).is_file()
        assert not list((tmp_path / "3" / name).glob("kept-*"))
