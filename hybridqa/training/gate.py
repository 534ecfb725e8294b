"""Decides whether a module may serve: it must know its document better than no module, and not spoil reading.

Knowing is told from the mere form of an answer by putting the same answer to other questions about the same document.
Knows nothing about how the module was trained. Invariant: the same scores give the same verdict, and the report holds
everything that the verdict came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hybridqa.evaluation.statistics import mean_interval

MIN_QUESTIONS = 4  # fewer held-out questions say nothing


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities per token, in nats, of N answers to their own questions, and of each to other questions."""

    right: tuple[float, ...]
    wrong: tuple[tuple[float, ...], ...]

    def margins(self) -> list[float]:
        """How much likelier each answer is to its own question than to others; its own score where there are none."""
        return [
            right - (float(np.mean(wrong)) if wrong else 0.0)
            for right, wrong in zip(self.right, self.wrong, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the gate measured; margins and log-probabilities are per answer token, in nats."""

    passed: bool
    reason: str
    questions: int
    base_logprob: float = 0.0  # of the right answers
    module_logprob: float = 0.0
    base_margin: float = 0.0  # answers to their own questions over the same to others
    module_margin: float = 0.0
    gain: float = 0.0  # of the margin
    gain_low: float = 0.0  # 95% interval of the gain, paired bootstrap over questions
    gain_high: float = 0.0
    with_passage_questions: int = 0
    with_passage_base: float = 0.0  # margins with the right passage in the prompt
    with_passage_module: float = 0.0
    with_passage_gain: float = 0.0
    with_passage_low: float = 0.0
    with_passage_high: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For manifests and `--json`."""
        return asdict(self)


def paired_interval(differences: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of the mean of `differences`, by bootstrap."""
    interval = mean_interval(differences, seed=seed)
    return interval.low, interval.high


def judge(
    base: Scores, module: Scores, base_with_passage: Scores, module_with_passage: Scores, *, seed: int = 0
) -> GateReport:
    """The verdict from paired scores of the same questions, without and with the module.

    It passes when its margin over wrong questions beats no module's by more than noise, and the margin with the right
    passage in the prompt is not worse by more than noise.
    """
    questions = len(base.right)
    if questions < MIN_QUESTIONS:
        return GateReport(False, f"{questions} held-out questions; expected at least {MIN_QUESTIONS}", questions)
    gains = np.subtract(module.margins(), base.margins())
    low, high = paired_interval(gains.tolist(), seed=seed)
    reading = np.subtract(module_with_passage.margins(), base_with_passage.margins())
    reads_low, reads_high = paired_interval(reading.tolist(), seed=seed) if len(reading) else (0.0, 0.0)
    knows, spoils = low > 0, reads_high < 0
    measured = f"{gains.mean():+.2f} nats a token (95% interval {low:+.2f} to {high:+.2f})"
    reason = f"{'knows' if knows else 'does not know'} its document better than no module: {measured}"
    if spoils:
        reason += (
            f"; spoils answers from the right passage by {reading.mean():+.2f} ({reads_low:+.2f} to {reads_high:+.2f})"
        )
    return GateReport(
        passed=bool(knows and not spoils),
        reason=reason,
        questions=questions,
        base_logprob=float(np.mean(base.right)),
        module_logprob=float(np.mean(module.right)),
        base_margin=float(np.mean(base.margins())),
        module_margin=float(np.mean(module.margins())),
        gain=float(gains.mean()),
        gain_low=low,
        gain_high=high,
        with_passage_questions=len(reading),
        with_passage_base=float(np.mean(base_with_passage.margins())) if len(reading) else 0.0,
        with_passage_module=float(np.mean(module_with_passage.margins())) if len(reading) else 0.0,
        with_passage_gain=float(reading.mean()) if len(reading) else 0.0,
        with_passage_low=reads_low,
        with_passage_high=reads_high,
    )
