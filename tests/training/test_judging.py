"""What the gate measures, on tiny models with adapters built to fail one check each; and what retention is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.models import ModelFolder
from hybridqa.training.gate import Limits
from hybridqa.training.judging import drifts, judge_module
from hybridqa.training.lora import Companion
from hybridqa.training.packing import Example
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import Recipe
from hybridqa.training.retention import JUDGING, TRAINING, retention_examples
from hybridqa.training.synthesis import Curriculum
from hybridqa.training.trainer import Trainer
from hybridqa.training.wordings import lessons

RECIPE = Recipe(
    rank=8, alpha=16, first_layer=0.0, steps=40, learning_rate=2e-2, b_ratio=1.0, reading=0.0, objective="sft"
)
ANSWERS = {
    "Where does the baker live?": "Oskvar",
    "Which animal swims?": "otters",
    "Who sings loudest of all?": "Maren",
    "When did it rain?": "yesterday",
    "How tall is the tower?": "nine feet",
    "What colour has the door?": "green",
}
PAIRS = tuple(Pair(question, answer, "ask", 0, number) for number, (question, answer) in enumerate(ANSWERS.items()))
LESSON = Curriculum("Kettles", ("A text of few words.",), PAIRS, PAIRS, {})  # tested by what was learned


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> PromptBuilder:
    return PromptBuilder(tokenizer, max_model_len=512, context_tokens=300)


def flat(lists: list[list[Example]]) -> list[Example]:
    return [item for part in lists for item in part]


@pytest.fixture(scope="module")
def learned(tiny_model: ModelFolder, prompts: PromptBuilder) -> Trainer:
    """A tiny model with an adapter that knows the answers by heart."""
    trainer = Trainer(tiny_model.path, device="cpu")
    trainer.attach(RECIPE)
    trainer.fit(lessons(prompts, LESSON, PAIRS, reading=0.0, seed=0), [], RECIPE)
    return trainer


def own(trainer: Trainer, weight: float) -> Companion:
    """The adapter itself, so many times, as another module."""
    assert trainer.maps is not None
    scale = trainer.maps.alpha / trainer.maps.rank * weight
    weights = {name: value.detach().clone() for name, value in trainer.parameters().items()}
    names = {name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")}
    return Companion(
        {name: (weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"] * scale) for name in names}
    )


def test_drift_is_the_divergence_over_the_whole_vocabulary(learned: Trainer, prompts: PromptBuilder) -> None:
    items = flat(retention_examples(prompts, JUDGING[:4]))
    expected = []
    for item in items:
        ids = torch.tensor([[*item.prompt, *item.target]])
        rows = slice(len(item.prompt) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            with learned.base_alone():
                base_N_V = F.log_softmax(learned.base(input_ids=ids).logits[0, rows], -1)
            moved_N_V = F.log_softmax(learned.base(input_ids=ids).logits[0, rows], -1)
        kl_N = F.kl_div(moved_N_V, base_N_V, log_target=True, reduction="none").sum(-1)
        expected.append(float(kl_N.mean()))
    assert drifts(learned, items) == pytest.approx(expected, rel=1e-3)
    assert min(expected) > 0.01


def test_each_check_sees_what_it_is_for(learned: Trainer, prompts: PromptBuilder) -> None:
    """It knows; it moves general answers; and its own opposite beside it takes all it knows away."""
    free = Limits(drift=1e9, harm=1e9)
    good = judge_module(learned, prompts, LESSON, limits=free)
    assert good.passed and good.knows == "passed" and good.drift_questions == len(JUDGING)
    assert judge_module(learned, prompts, LESSON, limits=free) == good
    drifting = judge_module(learned, prompts, LESSON, limits=replace(free, drift=good.drift_low / 2))
    assert not drifting.passed and drifting.leaves_alone == "failed" and "off its topic" in drifting.reason
    rest, opposite = own(learned, 2**0.5 - 1), own(learned, -1.0)  # in a stack of two each counts √½
    kept = judge_module(learned, prompts, LESSON, [rest], limits=free)
    assert kept.passed and kept.composition_modules == 1 and abs(kept.composition_loss) < 1e-3
    broken = judge_module(learned, prompts, LESSON, [opposite], limits=free)
    assert not broken.passed and broken.composes == "failed" and broken.knows == "passed"
    assert broken.composition_margin == pytest.approx(broken.base_margin, abs=1e-3)
    assert broken.composition_loss == pytest.approx(broken.gain, abs=1e-3)


def test_no_question_is_both_trained_with_and_judged_by() -> None:
    assert len(TRAINING) >= 32 and len(JUDGING) >= 24
    texts = [text.casefold() for side in (TRAINING, JUDGING) for text, _ in side]
    assert len(set(texts)) == len(texts)
    answers = [{answer.casefold() for _, answer in side} for side in (TRAINING, JUDGING)]
    assert not answers[0] & answers[1]


def test_retention_keeps_general_answers_where_they_were(tiny_model: ModelFolder, prompts: PromptBuilder) -> None:
    moved: dict[float, float] = {}
    losses: dict[float, float] = {}
    tokens: dict[float, float] = {}
    for share in (0.0, 0.5):
        recipe = replace(RECIPE, retention=share, retention_weight=2.0, pack_tokens=96, echoed=0.0)
        trainer = Trainer(tiny_model.path, device="cpu")
        trainer.attach(recipe)
        retained = retention_examples(prompts, TRAINING)
        examples = flat(retained)
        targets = dict(zip((item.key for item in examples), trainer.teach(examples, recipe, hidden=False), strict=True))
        teachers = [targets[key] for key in range(len(TRAINING))]
        trained = trainer.fit(lessons(prompts, LESSON, PAIRS, reading=0.0, seed=0), teachers, recipe, retained=retained)
        found = drifts(trainer, flat(retention_examples(prompts, JUDGING)))
        moved[share], losses[share], tokens[share] = sum(found) / len(found), trained["loss"], trained["tokens"]
    assert moved[0.5] < 0.6 * moved[0.0]  # on questions that it was not trained with
    assert losses[0.5] < 2 * losses[0.0] + 0.5  # what was to be learned is learned
    assert tokens[0.5] > tokens[0.0]
