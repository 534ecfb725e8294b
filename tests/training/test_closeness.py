"""The gate of behaviours: its numbers against plain ones, and its verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.models import ModelFolder
from hybridqa.training.closeness import Distances, distances, judge, judge_behaviour
from hybridqa.training.contexts import BARE, SERVING, SOURCES, student_example, student_lists, taught_example
from hybridqa.training.gate import LIMITS
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import Recipe
from hybridqa.training.synthesis import Curriculum
from hybridqa.training.trainer import Trainer
from hybridqa.types import Message, ModuleKind

FAR, NEAR = (2.0, 1.8, 2.2, 1.9, 2.1, 2.0), (0.5, 0.4, 0.6, 0.7, 0.5, 0.4)
NONE = Distances()
RECIPE = Recipe(
    rank=4, alpha=8, steps=60, learning_rate=3e-3, b_ratio=8.0, cross_entropy=0.0, trust=False, top_k=0, pack_tokens=256
)


def test_closer_by_more_than_noise_passes() -> None:
    report = judge(Distances(FAR, NEAR), NONE, NONE)
    assert report.passed and report.gain_low > 1 and report.gain == pytest.approx(2.0 - 3.1 / 6)
    assert report.recovered == pytest.approx(1 - (3.1 / 6) / 2.0)
    assert report.as_dict().keys().isdisjoint({"with_sources", "others"})
    noise = judge(Distances(FAR, (*FAR[1:], FAR[0])), NONE, NONE)
    assert not noise.passed and "not more like the teacher" in noise.reason
    assert not judge(Distances(NEAR, FAR), NONE, NONE).passed


def test_too_few_questions_say_nothing() -> None:
    report = judge(Distances(FAR[:3], NEAR[:3]), NONE, NONE)
    assert not report.passed and "3 held-out questions" in report.reason


def test_what_it_does_elsewhere_counts_beyond_noise_and_drift() -> None:
    good = Distances(FAR, NEAR)
    still, a_little, far = ((0.0,) * 6, (LIMITS.drift / 2,) * 6, (2 * LIMITS.drift,) * 6)
    assert judge(good, NONE, Distances(still, a_little)).passed
    assert not judge(good, Distances(still, a_little), NONE).passed  # beside a source the teacher is the aim as well
    drifted = judge(good, NONE, Distances(still, far))
    assert not drifted.passed and "on other questions it is further away by 2.00" in drifted.reason
    assert drifted.others is not None and drifted.others["passed"] is False and drifted.others["questions"] == 6


@pytest.fixture
def prompts(tokenizer: Any) -> PromptBuilder:
    return PromptBuilder(tokenizer, max_model_len=512, context_tokens=200)


def lesson() -> Curriculum:
    forms = ((SERVING, -1), (SOURCES, 0), (BARE, -1))

    def pairs(first: int, count: int) -> tuple[Pair, ...]:
        return tuple(
            Pair(f"What is thing {n}?", f"THING {n} IS RED.", *forms[n % 3], -1, context=n % 2)
            for n in range(first, first + count)
        )

    contexts = tuple((Message("system", f"Answer in capital letters, as on day {day}."),) for day in range(2))
    return Curriculum(
        "",
        ("Thing\nThings are red.",),
        pairs(0, 24),
        pairs(24, 12),
        {},
        kind=ModuleKind.INSTRUCTIONS,
        contexts=contexts,
    )


def plain_distance(trainer: Trainer, prompts: PromptBuilder, taught: Curriculum, pair: Pair) -> float:
    """KL from the teacher to the bare student, one example at a time and without packs."""
    logits = []
    for example in (taught_example(prompts, pair, 0, taught), student_example(prompts, pair, 0, taught)):
        ids = torch.tensor([[*example.prompt, *example.target]])
        with torch.no_grad(), trainer.base_alone():
            logits.append(trainer.base(ids).logits[0, len(example.prompt) - 1 : -1].float())
    teacher, student = (F.log_softmax(part, -1) for part in logits)
    return float((teacher.exp() * (teacher - student)).sum(-1).mean())


def test_distances_are_those_of_a_plain_computation_and_training_shortens_them(
    tiny_model: ModelFolder, prompts: PromptBuilder
) -> None:
    trainer = Trainer(tiny_model.path)
    taught = lesson()
    trainer.attach(RECIPE)
    found = distances(trainer, prompts, taught, taught.held_out, RECIPE)
    assert found.base == pytest.approx(
        [plain_distance(trainer, prompts, taught, pair) for pair in taught.held_out], abs=1e-4
    )
    assert found.module == pytest.approx(found.base, abs=1e-5)  # a fresh adapter changes nothing
    before = judge_behaviour(trainer, prompts, taught, RECIPE)
    assert not before.passed and before.with_sources is not None
    targets = trainer.teach(
        [taught_example(prompts, pair, key, taught) for key, pair in enumerate(taught.pairs)], RECIPE
    )
    trainer.fit(student_lists(prompts, taught, taught.pairs), targets, RECIPE)
    after = judge_behaviour(trainer, prompts, taught, RECIPE)
    assert after.passed and after.module_kl < 0.5 * after.base_kl, after
    other = judge_behaviour(trainer, prompts, replace(taught, others=taught.held_out[:6]), RECIPE)
    assert other.others is not None and other.others["gain"] > 0
