"""Decides whether a behaviour's module may serve: it must answer more like the teacher with its context than the base.

Measured in mean KL divergence from the teacher, a target token, on held-out questions. Knows nothing about how the
module was trained. Invariant: the same numbers give the same verdict, and the report holds all that it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.training.contexts import SOURCES, student_example, taught_example
from hybridqa.training.gate import LIMITS, paired_interval
from hybridqa.training.judging import PACK_TOKENS
from hybridqa.training.objectives import TeacherTargets, concatenate, kl_divergence
from hybridqa.training.packing import Example, group, pack
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import Recipe
from hybridqa.training.synthesis import Curriculum
from hybridqa.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Distances:
    """KL from the teacher to the student, in nats a token, of each of N answers, without and with the module."""

    base: tuple[float, ...] = ()
    module: tuple[float, ...] = ()

    def gains(self) -> list[float]:
        """How much closer each answer is with the module."""
        return [base - module for base, module in zip(self.base, self.module, strict=True)]


@dataclass(frozen=True, slots=True)
class ClosenessReport:
    """What was measured; distances in nats a token."""

    passed: bool
    reason: str
    questions: int
    base_kl: float = 0.0  # from the teacher with its context to the base model without
    module_kl: float = 0.0
    gain: float = 0.0  # of the two, a mean over questions
    gain_low: float = 0.0  # 95% interval, paired bootstrap over questions
    gain_high: float = 0.0
    recovered: float = 0.0  # the share of the distance that the module has closed
    with_sources: dict[str, Any] | None = None  # the same where a source stands in both prompts
    others: dict[str, Any] | None = None  # on questions that have nothing to do with what was learned

    def as_dict(self) -> dict[str, Any]:
        """For manifests and `--json`."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def judge(held_out: Distances, with_sources: Distances, others: Distances, *, seed: int = 0) -> ClosenessReport:
    """The verdict.

    It passes when held-out answers are closer to the teacher by more than noise, those beside a source are not further
    away by more than noise, and other questions' are not further away by more than noise and the gate's drift.
    """
    questions = len(held_out.base)
    if questions < LIMITS.questions:
        return ClosenessReport(
            False, f"{questions} held-out questions; expected at least {LIMITS.questions}", questions
        )
    gains = held_out.gains()
    low, high = paired_interval(gains, seed=seed)
    base_kl, module_kl = float(np.mean(held_out.base)), float(np.mean(held_out.module))
    reads, keeps = _check(with_sources, 0.0, seed), _check(others, LIMITS.drift, seed)
    reason = (
        f"answers {'' if low > 0 else 'not '}more like the teacher with its context than the base model does: KL "
        f"{base_kl:.2f} to {module_kl:.2f} nats a token (95% interval of the gain {low:+.2f} to {high:+.2f})"
    )
    if reads is not None and not reads["passed"]:
        reason += f"; beside a source it is further away by {-reads['gain']:.2f}"
    if keeps is not None and not keeps["passed"]:
        reason += f"; on other questions it is further away by {-keeps['gain']:.2f}"
    return ClosenessReport(
        passed=low > 0 and all(check is None or check["passed"] for check in (reads, keeps)),
        reason=reason,
        questions=questions,
        base_kl=base_kl,
        module_kl=module_kl,
        gain=float(np.mean(gains)),
        gain_low=low,
        gain_high=high,
        recovered=1 - module_kl / base_kl if base_kl > 0 else 0.0,
        with_sources=reads,
        others=keeps,
    )


def _check(distances: Distances, allowed: float, seed: int) -> dict[str, Any] | None:
    """Whether the module is further from the teacher by no more than noise and `allowed`; None of too few questions."""
    if len(distances.base) < LIMITS.questions:
        return None
    gains = distances.gains()
    low, high = paired_interval(gains, seed=seed)
    return {
        "passed": high >= -allowed,
        "gain": float(np.mean(gains)),
        "low": low,
        "high": high,
        "questions": len(gains),
        "base_kl": float(np.mean(distances.base)),
        "module_kl": float(np.mean(distances.module)),
    }


def judge_behaviour(trainer: Trainer, prompts: PromptBuilder, lesson: Curriculum, recipe: Recipe) -> ClosenessReport:
    """The report on the attached adapter."""
    held_out = distances(trainer, prompts, lesson, lesson.held_out, recipe)
    sourced = [place for place, pair in enumerate(lesson.held_out) if pair.kind == SOURCES]
    return judge(
        held_out,
        Distances(tuple(held_out.base[place] for place in sourced), tuple(held_out.module[place] for place in sourced)),
        distances(trainer, prompts, lesson, lesson.others, recipe),
        seed=recipe.seed,
    )


def distances(
    trainer: Trainer, prompts: PromptBuilder, lesson: Curriculum, pairs: Sequence[Pair], recipe: Recipe
) -> Distances:
    """How far the student is from the teacher on each pair's answer, without and with the attached adapter."""
    read = [taught_example(prompts, pair, key, lesson) for key, pair in enumerate(pairs)]
    plain = replace(recipe, temperature=1.0)
    order = sorted(range(len(pairs)), key=lambda key: (pairs[key].context, pairs[key].passage))  # read once a row
    taught = trainer.teach([read[key] for key in order], plain, hidden=False, tokens=row_tokens)
    teachers = dict(zip(order, taught, strict=True))
    students = [student_example(prompts, pair, key, lesson) for key, pair in enumerate(pairs)]
    base: list[float] = []
    module: list[float] = []
    with torch.no_grad():
        for part in group(students, PACK_TOKENS):
            row = pack(part)
            teacher = concatenate([teachers[key] for key in row.keys]).to(trainer.device)
            lower_T_D = trainer.lower(row)
            for found, adapter in ((base, False), (module, True)):
                with trainer.beside(None, adapter=adapter):
                    logits_N_V, _, _ = trainer.forward(row, hidden=False, lower_T_D=lower_T_D)
                found.extend(_mean_distances(logits_N_V, teacher, row.lengths))
    return Distances(tuple(base), tuple(module))


def _mean_distances(logits_N_V: torch.Tensor, teacher: TeacherTargets, lengths: Sequence[int]) -> list[float]:
    kl_N = kl_divergence(logits_N_V, teacher)
    return [float(piece.mean()) for piece in torch.split(kl_N, list(lengths))]


def row_tokens(first: Example) -> int:
    """What a row of the teacher's may hold: half of `PACK_TOKENS` beside its first prompt, most of which it shares."""
    return max(PACK_TOKENS, PACK_TOKENS // 2 + len(first.prompt))
