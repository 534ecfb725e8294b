"""Decides whether a module may serve: it must beat no module on held-out questions of its own document.

Knows nothing about how the module was trained. Invariant: the same scores give the same verdict, and the report holds
everything that the verdict came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
MIN_QUESTIONS = 4  # fewer held-out questions say nothing


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the gate measured; log-probabilities are per answer token, in nats."""

    passed: bool
    reason: str
    questions: int
    base_logprob: float
    module_logprob: float
    gain: float
    gain_low: float  # 95% interval of the gain, paired bootstrap over questions
    gain_high: float
    with_passage_base: float
    with_passage_module: float
    with_passage_gain: float

    def as_dict(self) -> dict[str, Any]:
        """For manifests and `--json`."""
        return asdict(self)


def paired_interval(differences: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of the mean of `differences`, by bootstrap."""
    values_N = np.asarray(differences, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(values_N), size=(RESAMPLES, len(values_N)))
    low, high = np.percentile(values_N[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def judge(
    base: Sequence[float],
    module: Sequence[float],
    base_with_passage: Sequence[float],
    module_with_passage: Sequence[float],
    *,
    seed: int = 0,
) -> GateReport:
    """The verdict from paired scores of the same questions, without and with the module."""
    questions = len(base)
    if questions < MIN_QUESTIONS:
        return GateReport(
            False, f"{questions} held-out questions; expected at least {MIN_QUESTIONS}", questions, *([0.0] * 8)
        )
    gains = np.subtract(module, base)
    low, high = paired_interval(gains.tolist(), seed=seed)
    passed = low > 0
    return GateReport(
        passed=passed,
        reason=(
            f"beats no module by {gains.mean():+.2f} nats a token (95% interval {low:+.2f} to {high:+.2f})"
            if passed
            else f"does not beat no module: {gains.mean():+.2f} nats a token (95% interval {low:+.2f} to {high:+.2f})"
        ),
        questions=questions,
        base_logprob=float(np.mean(base)),
        module_logprob=float(np.mean(module)),
        gain=float(gains.mean()),
        gain_low=low,
        gain_high=high,
        with_passage_base=float(np.mean(base_with_passage)),
        with_passage_module=float(np.mean(module_with_passage)),
        with_passage_gain=float(np.mean(np.subtract(module_with_passage, base_with_passage))),
    )
