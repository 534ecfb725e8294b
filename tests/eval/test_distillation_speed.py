"""The side-by-side speed measurement: the reference is right, both are judged alike, every arm and switch runs."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from hybridqa.models import ModelFolder
from hybridqa.training.packing import Example
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import Recipe
from hybridqa.training.synthesis import Curriculum

EVAL = Path(__file__).parent.parent.parent / "eval"
RECIPE = asdict(Recipe(rank=4, alpha=8, epochs=2.0, least_steps=1))
SETTINGS = {"rank": 4, "alpha": 8, "batch": 2, "steps": 3, "learning_rate": 1e-2}


@pytest.fixture(scope="module", autouse=True)
def _scripts() -> Any:
    """The scripts import one another from their own folder, as they do when they are run."""
    sys.path.insert(0, str(EVAL))
    yield
    sys.path.remove(str(EVAL))


def script(name: str) -> Any:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def curriculum_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curriculum of two chunks, written as the measurement keeps it."""
    facts = (("kettle", "1.7 litres"), ("toaster", "two slices"), ("lamp", "nine candles"), ("clock", "a week"))
    pairs = tuple(
        Pair(f"How much does the {what} hold?", much, "ask", n % 2, n) for n, (what, much) in enumerate(facts)
    )
    held_out = tuple(Pair(f"The {what} holds what?", much, "ask", n % 2, n) for n, (what, much) in enumerate(facts))
    chunks = tuple("  ".join(f"The {what} holds {much}." for what, much in facts[n::2]) for n in range(2))
    lesson = Curriculum("Household", chunks, pairs, held_out, {})
    path = tmp_path_factory.mktemp("curriculum") / "curriculum.json"
    about = {"document": "household", "words": 20}
    path.write_text(json.dumps({"about": about, "model_hash": "", "curriculum": asdict(lesson)}), encoding="utf-8")
    return path


@pytest.fixture
def spec(curriculum_path: Path, tiny_model: ModelFolder, tmp_path: Path) -> dict[str, Any]:
    """What the arms have in common."""
    common = {"model_path": str(tiny_model.path), "curriculum": str(curriculum_path), "device": "cpu"}
    return {**common, "snapshots": str(tmp_path), "points": 3, "scale": 2.0, "recipe": RECIPE, "dtype": "auto"}


def test_the_reference_loss_equals_the_method_written_pair_by_pair(spec: dict[str, Any]) -> None:
    """Padded batches against one pass for each side of each pair, over the places of its own target."""
    arms, recipe = script("distillation_arms"), script("reference_recipe")
    run = recipe.Reference(Path(spec["model_path"]), recipe.ReferenceSettings(**SETTINGS), device="cpu")
    pairs = arms.distilled(arms.make_prompts(spec["model_path"]), arms.read_curriculum(spec["curriculum"]))
    assert len({len(pair.teacher_prompt) for pair in pairs}) > 1  # there is something to pad
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in run.parameters().values():
            weight.normal_(std=0.05)

    def read(prompt: tuple[int, ...], target: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        output = run.model(input_ids=torch.tensor([[*prompt, *target]]), output_hidden_states=True)
        first = len(prompt) - 1
        states = [state[0, first : first + len(target)] for state in output.hidden_states]
        return output.logits[0, first : first + len(target)].log_softmax(-1), states[1:]

    with torch.no_grad(), run.model.disable_adapter():
        teachers = [read(pair.teacher_prompt, pair.target) for pair in pairs]
    students = [read(pair.student_prompt, pair.target) for pair in pairs]
    teacher_N_V, student_N_V = (torch.cat([logprobs for logprobs, _ in side]) for side in (teachers, students))
    expected = (teacher_N_V.exp() * (teacher_N_V - student_N_V)).sum(-1).mean()
    for layer in range(2):
        teacher_N_D, student_N_D = (torch.cat([states[layer] for _, states in side]) for side in (teachers, students))
        expected = expected + (student_N_D - teacher_N_D).abs().sum() / teacher_N_D.abs().sum() / 2
    expected.backward()  # type: ignore[no-untyped-call]
    wanted = {name: weight.grad.clone() for name, weight in run.parameters().items() if weight.grad is not None}
    assert len(wanted) == len(run.parameters()) == 2 * 2 * 7  # A and B on every linear map of both layers
    run.model.zero_grad()
    loss = run.loss(pairs)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, weight in run.parameters().items():
        assert weight.grad is not None
        assert torch.allclose(weight.grad, wanted[name], rtol=1e-3, atol=1e-5), name


def test_both_trainers_are_judged_by_the_same_number(spec: dict[str, Any]) -> None:
    """A snapshot's held-out loss is what the reference's own model, and hybridqa's own trainer, say of themselves."""
    arms, judge, recipe = script("distillation_arms"), script("held_out_loss"), script("reference_recipe")
    lesson, prompts = arms.read_curriculum(spec["curriculum"]), arms.make_prompts(spec["model_path"])
    examples = [arms.closed_example(prompts, pair, key, 0) for key, pair in enumerate(lesson.held_out)]
    run = recipe.Reference(Path(spec["model_path"]), recipe.ReferenceSettings(**SETTINGS), device="cpu")
    trainer = arms.Trainer(Path(spec["model_path"]), device="cpu")
    trainer.attach(Recipe(**{**RECIPE, "first_layer": 0.0}))
    for model in (run, trainer):
        with torch.no_grad():
            for weight in model.parameters().values():
                weight.normal_(std=0.1)
    judge.write_snapshot(Path(spec["snapshots"]) / "1.safetensors", run.parameters())
    judge.write_snapshot(Path(spec["snapshots"]) / "2.safetensors", trainer.parameters())
    scored = arms.score(spec)
    count = sum(len(item.target) for item in examples)
    assert scored["losses"]["1"] == pytest.approx(plain_loss(run.model, examples), abs=1e-4)
    own = sum(-mean * len(item.target) for mean, item in zip(trainer.score(examples), examples, strict=True)) / count
    assert scored["losses"]["2"] == pytest.approx(own, abs=1e-4)
    assert len({round(loss, 3) for loss in (arms.bounds(spec)["base"], *scored["losses"].values())}) == 3


def test_the_bounds_are_the_base_models_own(spec: dict[str, Any]) -> None:
    arms = script("distillation_arms")
    lesson, prompts = arms.read_curriculum(spec["curriculum"]), arms.make_prompts(spec["model_path"])
    pairs = list(enumerate(lesson.held_out))
    model = AutoModelForCausalLM.from_pretrained(spec["model_path"], dtype=torch.float32).eval()
    closed = plain_loss(model, [arms.closed_example(prompts, pair, key, 0) for key, pair in pairs])
    read = plain_loss(model, [arms.sourced_example(prompts, pair, key, lesson) for key, pair in pairs])
    assert arms.bounds(spec) == pytest.approx({"base": closed, "teacher": read}, abs=1e-4)
    assert closed != pytest.approx(read, abs=1e-3)


def plain_loss(model: Any, examples: Sequence[Example]) -> float:
    """One example after the other, nothing padded."""
    total = 0.0
    for item in examples:
        ids_T = torch.tensor([*item.prompt, *item.target])
        with torch.no_grad():
            logits_T_V = model(input_ids=ids_T[None]).logits[0, :-1]
        total += float(F.cross_entropy(logits_T_V, ids_T[1:], reduction="none")[-len(item.target) :].sum())
    return total / sum(len(item.target) for item in examples)


@pytest.mark.parametrize("arm", ["reference", "hybridqa"])
def test_a_run_gives_a_curve_that_begins_at_the_base_model(spec: dict[str, Any], arm: str) -> None:
    arms = script("distillation_arms")
    run = arms.ARMS[arm]({**spec, "settings": SETTINGS})
    scored, base = arms.score(spec), arms.bounds(spec)["base"]
    steps = [point["step"] for point in run["points"]]
    assert steps[0] == 0
    assert {str(step) for step in steps} == set(scored["losses"])
    assert scored["losses"]["0"] == pytest.approx(base, abs=1e-5)
    assert scored["losses"][str(steps[-1])] < base
    for name in ("seconds", "passes", "targets"):
        values = [point[name] for point in run["points"]]
        assert values == sorted(values)
        assert values[-1] > values[0]
    assert run["points"][-1]["passes"] == pytest.approx(1.5 if arm == "reference" else 2.0)
    assert run["memory"]["peak_mb"] > 100


def test_the_clock_leaves_out_what_is_paused() -> None:
    arms = script("distillation_arms")
    clock = arms.Clock(torch.device("cpu"))
    with clock.paused():
        arms.time.sleep(0.2)
    assert clock.seconds() < 0.1


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        (
            "Traceback (most recent call last):\n  File\nValueError: too long\nSee https://example.org",
            "ValueError: too long",
        ),
        ("torch.OutOfMemoryError: no room\n\n", "torch.OutOfMemoryError: no room"),
        ("loading\nKilled\n", "Killed"),
        ("", ""),
    ],
)
def test_a_process_that_fails_says_why(stderr: str, said: str) -> None:
    assert script("distillation_speed").why(stderr) == said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at it
def test_the_layers_can_be_compiled(spec: dict[str, Any]) -> None:
    compiled = script("distillation_arms").ablation(
        {**spec, "recipe": RECIPE, "way": "compile", "pairs": 4, "repeats": 1}
    )
    assert compiled["seconds_per_pass"] > 0


def test_every_way_can_be_switched_off(spec: dict[str, Any]) -> None:
    arms, speed = script("distillation_arms"), script("distillation_speed")
    found = {}
    for way, (_, changes) in speed.WAYS.items():
        if way == "compile":  # it takes a compiler and minutes
            continue
        recipe = {**RECIPE, **changes.get("recipe", {})}
        found[way] = arms.ablation({**spec, **changes, "recipe": recipe, "way": way, "pairs": 4, "repeats": 1})
    assert all("skipped" not in made for made in found.values())
    whole = found["none"]
    assert whole["passes"] == pytest.approx(2.0, abs=0.5)
    assert found["packing"]["steps_per_pass"] > whole["steps_per_pass"]
    assert found["reading"]["steps_per_pass"] <= whole["steps_per_pass"]
    assert found["kept answers"]["student_seconds_per_pass"] == found["kept answers"]["seconds_per_pass"]


def test_pace_is_told_for_every_batch_size(spec: dict[str, Any]) -> None:
    made = script("distillation_arms").pace(
        {**spec, "dtype": "float32", "rank": 4, "alpha": 8, "batches": [1, 3], "repeats": 1}
    )
    assert set(made["seconds_per_pair"]) == {"1", "3"}
    assert all(seconds > 0 for seconds in made["seconds_per_pair"].values())


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"seconds": seconds, "passes": seconds / 10, "loss": loss} for seconds, loss in points]


def test_seconds_to_a_loss_are_read_off_straight_lines() -> None:
    speed = script("speed_report")
    plain, ours = curve((0, 5.0), (100, 3.0), (200, 2.0), (300, 2.2)), curve((1, 5.0), (11, 3.0), (21, 2.5))
    assert speed.reach(plain, 4.0) == pytest.approx(50)
    assert speed.reach(plain, 5.0) == 0
    assert speed.reach(plain, 1.9) is None
    found = speed.compare(plain, ours)
    assert found["100% of the reference's gain"]["trainer_seconds"] is None
    assert found["100% of the reference's gain"]["times_faster"] is None
    half = found["50% of the reference's gain"]
    assert (half["loss"], half["reference_seconds"], half["trainer_seconds"]) == pytest.approx((3.5, 75, 8.5))
    assert half["times_faster"] == pytest.approx(75 / 8.5)
    assert half["reference_passes"] == pytest.approx(7.5)
    assert found["the trainer's own best"]["reference_seconds"] == pytest.approx(150)


def test_smoothing_evens_out_dips_and_leaves_the_base_model() -> None:
    speed = script("speed_report")
    smoothed = speed.smooth(curve((0, 5.0), (10, 5.6), (20, 2.0), (30, 4.0), (40, 3.0), (50, 1.0)))
    assert [point["loss"] for point in smoothed] == pytest.approx([5, 5, 3, 3, 3, 1], abs=1e-6)
    assert [point["seconds"] for point in smoothed] == [0, 10, 20, 30, 40, 50]


def test_a_record_is_compared_again(tmp_path: Path) -> None:
    """By the command: the dip counts as measured, and counts less when smoothed."""
    about: dict[str, Any] = {"memory": {"peak_mb": 100.0}}
    rough = [{**point, "targets": 5} for point in curve((0, 5.0), (10, 1.0), (20, 4.0), (30, 2.5), (40, 1.0))]
    fine = [{**point, "targets": 5} for point in curve((0, 5.0), (4, 1.0))]
    run = {"seed": 1, "reference": {**about, "points": rough}, "hybridqa": {**about, "points": fine}}
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"runs": [run], "bounds": {"base": 5.0, "teacher": 2.0}}), encoding="utf-8")
    command = [sys.executable, str(EVAL / "speed_report.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    record = json.loads(path.read_text(encoding="utf-8"))
    found = {kind: arms["hybridqa"] for kind, arms in record["runs"][0]["compared"].items()}
    half = "50% of the reference's gain"
    assert found["measured"][half]["times_faster"] == pytest.approx(2.5)
    assert found["smooth"][half]["reference_seconds"] == pytest.approx(8)  # of 2.5 at 10 s, where 5 falls to 3
    assert record["summary"]["times_faster"]["smooth"]["hybridqa"][half]["of"] == 1
    assert f"| smooth | hybridqa | {half} |" in done.stdout
    assert record["compared_by"]


def test_a_record_without_runs_is_shown_and_another_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"what": "shares"}', encoding="utf-8")
    command = [sys.executable, str(EVAL / "speed_report.py")]
    assert subprocess.run([*command, str(path)], capture_output=True, check=False).returncode == 0
    assert path.read_text(encoding="utf-8") == '{"what": "shares"}'
    missing = subprocess.run([*command, str(tmp_path / "none.json")], capture_output=True, text=True, check=False)
    assert missing.returncode == 2 and "none.json" in missing.stderr and "Traceback" not in missing.stderr


def test_a_ratio_has_an_interval_and_counts_the_seeds_that_have_one() -> None:
    speed = script("speed_report")
    even = speed.ratio([8.0, 8.0, 8.0])
    assert even["mean"] == pytest.approx(8)
    assert even["interval"] == pytest.approx([8, 8])
    made = speed.ratio([4.0, 9.0, None])
    assert made["mean"] == pytest.approx(6)
    assert (made["seeds"], made["of"]) == (2, 3)
    half = 12.706 * math.log(1.5) / 1  # Student's t at one degree of freedom; the logs are ±log 1.5 about their mean
    assert made["interval"] == pytest.approx([6 * math.exp(-half), 6 * math.exp(half)], rel=1e-3)
    assert speed.ratio([None])["mean"] is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at it
def test_the_whole_measurement_runs(
    curriculum_path: Path, tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All arms and switches by the command's options; in this process, since each start of another takes seconds."""
    speed, arms = script("distillation_speed"), script("distillation_arms")
    started = []

    class Bench(speed.Bench):  # type: ignore[misc, name-defined]
        def _start(self, spec: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
            assert "OMP_WAIT_POLICY" not in environment
            data = json.loads(spec.read_text(encoding="utf-8"))
            started.append((data["arm"], data.get("way")))
            try:
                return subprocess.CompletedProcess([], 0, json.dumps(arms.ARMS[data["arm"]](data)), "")
            except SystemExit as end:
                return subprocess.CompletedProcess([], 1, "", str(end))

    output = tmp_path / "speed.json"
    words = "--seeds 0 --steps 3 --batches 2 --rates 1e-3 2e-3 --dtypes float32 --repeats 1 --ablation-pairs 4"
    words += f" --recipe rank=4 trust=False --device cpu --curriculum {curriculum_path} --output {output}"
    monkeypatch.setattr(sys, "argv", ["distillation_speed.py", *words.split()])
    result = Bench(speed.parse(), tiny_model, tmp_path).run()
    assert json.loads(output.read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    assert result["complete"]
    assert result["runs"][0]["hybridqa"]["recipe"]["rank"] == result["runs"][0]["reference"]["settings"]["rank"] == 4
    assert result["runs"][0]["hybridqa"]["recipe"]["trust"] is False
    assert len(result["sweep"]["rates"]) > 2  # of two, the best is at the edge
    assert [way for arm, way in started if arm == "ablation"] == list(speed.WAYS)
    assert result["summary"]["times_faster"]["smooth"]["same_objective"]["50% of the reference's gain"]["of"] == 1
    shown = script("speed_report").table(result)
    assert "| measured | hybridqa | 100% of the reference's gain |" in shown
    assert "| the reference, float32 |" in shown
    assert str(tmp_path) not in output.read_text(encoding="utf-8")
    started.clear()
    again = Bench(speed.parse(), tiny_model, tmp_path).run()
    assert not started and not list(tmp_path.glob("snapshots-*"))
    assert all(again[name] == result[name] for name in ("pace", "sweep", "runs", "summary", "ablation"))
    monkeypatch.setattr(sys, "argv", ["distillation_speed.py", *words.split(), "--no-runs"])
    shares = Bench(speed.parse(), tiny_model, tmp_path).run()
    assert not started and "runs" not in shares and shares["ablation"] == result["ablation"]
    assert script("speed_report").table(shares).strip().startswith("| a pass over 4 pairs |")


@pytest.mark.slow
def test_an_arm_is_a_process(spec: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({**spec, "arm": "bounds"}), encoding="utf-8")
    command = [sys.executable, str(EVAL / "distillation_arms.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["base"] > 0 and made["teacher"] > 0


def test_modules_trained_in_one_row_are_measured(curriculum_path: Path, tiny_model: ModelFolder) -> None:
    options = Namespace(curriculum=curriculum_path, model=str(tiny_model.path), steps=2, repeats=1, size=2)
    found = script("together_speed").measure(options)
    assert found["in_one_row"] and found["seconds_per_module"] > 0 and len(found["repeats"]) == 1
