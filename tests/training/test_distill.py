"""Plug-ins from a file to an answer, on the tiny model and the reference engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridqa import HybridQA
from hybridqa.errors import CollectionNotFoundError, ConfigError, InputError, TrainingError
from hybridqa.models import ModelFolder
from hybridqa.training.checkpoint import CHECKPOINT
from hybridqa.types import ModuleKind

STYLE = "Answer in capital letters, and end with the words: Ask the desk."
KETTLE = (
    "The Lumen kettle holds 1.7 litres of water. Maren Holt designed the Lumen kettle in 2031. "
    "The Lumen kettle is made in the town of Oskvar. The Lumen kettle costs 89 euros."
)
Open = Callable[..., HybridQA]


@pytest.fixture
def open_store(tmp_path: Path, tiny_model: ModelFolder) -> Iterator[Open]:
    opened: list[HybridQA] = []

    def make(**changes: Any) -> HybridQA:
        settings: dict[str, Any] = {
            "model": str(tiny_model.path),
            "engine": "reference",
            "max_model_len": 512,
            "context_tokens": 300,
            "max_answer_tokens": 6,
            "passages": 1,
            "train_steps": 60,
            "learning_rate": 6e-3,
            "module_rank": 8,
            "module_alpha": 16,
        }
        qa = HybridQA.open(tmp_path / "store", create=True, **{**settings, **changes})
        opened.append(qa)
        return qa

    yield make
    for qa in opened:
        qa.close()


@pytest.fixture
def whole_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model never ends an answer by itself: here, what the engine was stopped in counts as whole."""
    monkeypatch.setattr("hybridqa.training.behaviours._WHOLE", ("stop", "length"))


@pytest.fixture
def style(tmp_path: Path) -> Path:
    path = tmp_path / "House Style.md"
    path.write_text(STYLE)
    return path


@pytest.mark.usefixtures("whole_answers")
def test_the_life_of_a_plugin(open_store: Open, style: Path) -> None:
    qa = open_store()
    qa.add_text("kettle", KETTLE, title="Lumen kettle")
    stages: list[str] = []
    made = qa.distill(instructions=style, count=24, on_event=lambda event: stages.append(event.stage))
    assert (made.state, made.module, made.kind) == ("published", "house-style@1", ModuleKind.INSTRUCTIONS), made
    assert {"synthesise", "teach", "train", "gate", "publish"} <= set(stages)
    gate = made.metrics["gate"]
    assert gate["passed"] and gate["gain_low"] > 0 and gate["with_sources"]["passed"]
    question = "What does the Lumen kettle cost?"
    plain, plugged = (qa.ask(question, plugins=plugins) for plugins in ([], ["house-style"]))
    assert [choice.module.name for choice in plugged.plugins] == ["house-style@1"] and plugged.passages
    assert plugged.text != plain.text
    assert not qa.ask(question).plugins and not qa.ask(question).modules  # nobody asked for it
    (module,) = qa.modules()
    assert not module.documents and module.metrics["gate"] == gate

    again = qa.distill(instructions=style, count=24)
    assert (again.state, again.module) == ("fresh", "house-style@1")
    assert qa.distill(instructions=style, count=24, force=True).module == "house-style@2"
    style.write_text(STYLE + " Always.")
    assert qa.distill(instructions=style, count=24).module == "house-style@3"
    assert qa.rollback("house-style").version == 2
    assert not list((qa.settings.module_dir / "work").glob("plugin-*"))
    with pytest.raises(InputError, match=r"'house-style' .* is of kind 'instructions'"):
        qa.distill(examples=write_examples(style.parent), module_id="house-style")


def write_examples(folder: Path) -> Path:
    path = folder / "drow.jsonl"
    path.write_text("\n".join(json.dumps({"input": f"word {n}", "output": f"drow {n}"}) for n in range(12)))
    return path


@pytest.mark.usefixtures("whole_answers")
def test_examples_and_scratchpads_in_a_store_without_documents(open_store: Open, tmp_path: Path) -> None:
    qa = open_store(train_steps=20)
    made = qa.distill(examples=write_examples(tmp_path), count=16, objective="prompt-distillation")
    assert made.kind is ModuleKind.EXAMPLES and made.module == "drow@1"
    assert made.metrics["recipe"]["objective"] == "prompt-distillation" and "others" in made.metrics["gate"]
    pads = tmp_path / "sums.jsonl"
    lines = [{"question": f"{n}+1?", "reasoning": f"After {n} comes {n + 1}.", "answer": str(n + 1)} for n in range(16)]
    pads.write_text("\n".join(map(json.dumps, lines)))
    made = qa.distill(scratchpad=pads, module_id="sums", count=16)
    assert made.kind is ModuleKind.SCRATCHPAD and made.module == "sums@1" and made.metrics["gate"]["questions"] == 4
    assert {module.kind for module in qa.modules()} == {ModuleKind.EXAMPLES, ModuleKind.SCRATCHPAD}


@pytest.mark.usefixtures("whole_answers")
def test_a_plugin_that_learns_nothing_is_rejected_with_its_report_and_not_tried_again(
    open_store: Open, style: Path
) -> None:
    qa = open_store(learning_rate=1e-9, train_steps=2)
    made = qa.distill(instructions=style, count=8)
    assert made.state == "rejected" and "not more like the teacher" in made.reason
    (module,) = qa.modules()
    assert not module.current and module.metrics["gate"]["passed"] is False
    again = qa.distill(instructions=style, count=8)
    assert again.state == "rejected" and "--force" in again.reason and len(qa.modules()) == 1


def test_answers_that_never_end_are_too_little_to_learn_from(
    open_store: Open, style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa = open_store()
    monkeypatch.setattr(sys, "executable", "/no/such/python")  # a trainer's process could not start
    for _ in range(2):
        made = qa.distill(instructions=style, count=8)
        assert (made.state, made.module) == ("rejected", None)
        assert "too little to learn from" in made.reason and "cut off" in made.reason


@pytest.mark.usefixtures("whole_answers")
def test_a_killed_run_goes_on_from_its_checkpoint(
    open_store: Open, style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa = open_store(train_steps=60)

    class Killed(Exception):
        pass

    def stop_late(event: Any) -> None:
        if event.stage == "train" and list(qa.settings.module_dir.glob(f"work/plugin-*/{CHECKPOINT}")):
            raise Killed

    with pytest.raises(Killed):
        qa.distill(instructions=style, count=24, on_event=stop_late)
    (folder,) = qa.settings.module_dir.glob("work/plugin-*")
    assert (folder / CHECKPOINT).exists() and not qa.modules()
    qa.refresh()  # leaves it alone
    events = []
    monkeypatch.setattr("hybridqa.training.behaviours.BehaviourWriter.write", None)  # the engine is not asked again
    made = qa.distill(instructions=style, count=24, on_event=events.append)
    assert made.state == "published"
    steps = [event.step for event in events if event.stage == "train"]
    assert steps and min(steps) > 25


@pytest.mark.usefixtures("whole_answers")
def test_a_trainer_that_fails_is_an_error_with_the_command_to_repeat(
    open_store: Open, style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa = open_store()
    monkeypatch.setenv("PYTHONHOME", "/no/such/folder")
    with pytest.raises(TrainingError, match="hybridqa distill"):
        qa.distill(instructions=style, count=8)


def test_what_cannot_be_distilled_is_refused_before_a_model_is_loaded(open_store: Open, style: Path) -> None:
    qa = open_store(model="/no/such/model")
    with pytest.raises(InputError, match="0 files"):
        qa.distill()
    with pytest.raises(InputError, match="2 files"):
        qa.distill(instructions=style, examples=style)
    with pytest.raises(InputError, match="line 1: no JSON"):
        qa.distill(examples=style)
    with pytest.raises(InputError, match="'Not An Id'"):
        qa.distill(instructions=style, module_id="Not An Id")
    with pytest.raises(CollectionNotFoundError, match="'nowhere'"):
        qa.distill(instructions=style, collection="nowhere")
    with pytest.raises(InputError, match="count=0"):
        qa.distill(instructions=style, count=0)
    with pytest.raises(ConfigError, match="'guesswork'"):
        qa.distill(instructions=style, objective="guesswork")
