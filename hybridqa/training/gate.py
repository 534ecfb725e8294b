"""Decides whether a module may serve, by four checks: it knows its document, reads it no worse, leaves the rest alone,
and keeps what it knows beside another module.

Knowing is told from the mere form of an answer by putting the same answer to other questions about the same document.
A check fails only when the 95% interval lies wholly on the wrong side of its limit: noise alone rejects nothing, but
knowing has to be shown. Knows nothing about how the module was trained. Invariant: the same scores give the same
verdict, and the report holds everything that the verdict came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridqa.evaluation.statistics import mean_interval, widened

PASSED, FAILED = "passed", "failed"
DRIFT = 1.0
COMPOSITION = 0.5
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the gate holds a module to; in the report as `limit_…`."""

    questions: int = 4  # fewer held-out questions say nothing
    gain: float = 0.0  # nats a token: the margin's gain must be surely above it
    harm: float = 0.0  # nats a token: the margin with the right passage must not surely fall by more
    drift: float = DRIFT  # nats a token: the drift off the topic must not be surely above it
    composition: float = COMPOSITION  # share of the gain: another module must not surely cost more


LIMITS = Limits()


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
    """What the gate measured; margins and log-probabilities are per answer token, in nats.

    `…_low` and `…_high` are 95% intervals: bootstrap over the questions, paired where two sides answered them.
    """

    passed: bool
    reason: str
    questions: int
    knows: str = FAILED  # "passed", "failed", or "not checked: why"; so are `reads`, `leaves_alone` and `composes`
    base_logprob: float = 0.0  # of the right answers
    module_logprob: float = 0.0
    base_margin: float = 0.0  # answers to their own questions over the same to others
    module_margin: float = 0.0
    gain: float = 0.0  # of the margin
    gain_low: float = 0.0
    gain_high: float = 0.0
    reads: str = ""
    with_passage_questions: int = 0
    with_passage_base: float = 0.0  # margins with the right passage in the prompt
    with_passage_module: float = 0.0
    with_passage_gain: float = 0.0
    with_passage_low: float = 0.0
    with_passage_high: float = 0.0
    leaves_alone: str = ""
    drift_questions: int = 0  # general ones, and the same for every module
    drift: float = 0.0  # KL(base ‖ base and module) over the whole vocabulary at the answers' tokens
    drift_low: float = 0.0
    drift_high: float = 0.0
    composes: str = ""
    composition_modules: int = 0  # others that were plugged in beside it, one at a time
    composition_margin: float = 0.0  # with another one, mean over them
    composition_loss: float = 0.0  # of the margin, against the module alone
    composition_loss_low: float = 0.0
    composition_loss_high: float = 0.0
    composition_excess: float = 0.0  # that loss beyond the share of the gain that the limit allows
    composition_excess_low: float = 0.0
    composition_excess_high: float = 0.0
    limit_questions: int = 0
    limit_gain: float = 0.0
    limit_harm: float = 0.0
    limit_drift: float = 0.0
    limit_composition: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For manifests and `--json`."""
        return asdict(self)


def paired_interval(differences: Sequence[float] | Floats, *, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the mean of `differences`: percentiles by bootstrap, widened where they are few."""
    interval = widened(mean_interval(list(map(float, differences)), seed=seed), len(differences))
    return interval.low, interval.high


def judge(
    base: Scores,
    module: Scores,
    base_with_passage: Scores,
    module_with_passage: Scores,
    *,
    drifts: Sequence[float] = (),
    composed: Sequence[Scores] = (),
    limits: Limits = LIMITS,
    seed: int = 0,
) -> GateReport:
    """The verdict from paired scores of the same questions, without and with the module.

    `drifts` are how far the module moves each answer that has nothing to do with its document, in nats a token;
    `composed` the module's scores with another one beside it, for each such. It passes when its margin over wrong
    questions beats no module's by more than noise, and no other check that could be made is failed by more than noise.
    """
    questions = len(base.right)
    found: dict[str, Any] = {f"limit_{name}": value for name, value in asdict(limits).items()}
    if questions < limits.questions:
        reason = f"{questions} held-out questions; expected at least {limits.questions}"
        return GateReport(False, reason, questions, **found)
    gains_N = np.subtract(module.margins(), base.margins())
    readings_N = np.subtract(module_with_passage.margins(), base_with_passage.margins())
    checks = (
        _knows(gains_N, limits, seed),
        _reads(readings_N, limits, seed),
        _leaves_alone(np.asarray(drifts, dtype=np.float64), limits, seed),
        _composes(gains_N, module.margins(), composed, limits, seed),
    )
    for numbers, _ in checks:
        found |= numbers
    passed = all(numbers[name] != FAILED for (numbers, _), name in zip(checks, CHECKS, strict=True))
    return GateReport(
        passed=passed,
        reason="; ".join(said for _, said in checks if said),
        questions=questions,
        base_logprob=float(np.mean(base.right)),
        module_logprob=float(np.mean(module.right)),
        base_margin=float(np.mean(base.margins())),
        module_margin=float(np.mean(module.margins())),
        with_passage_questions=len(readings_N),
        with_passage_base=float(np.mean(base_with_passage.margins())) if len(readings_N) else 0.0,
        with_passage_module=float(np.mean(module_with_passage.margins())) if len(readings_N) else 0.0,
        **found,
    )


CHECKS = ("knows", "reads", "leaves_alone", "composes")
Check = tuple[dict[str, Any], str]  # what goes into the report, and what is said of it


def _knows(gains_N: Floats, limits: Limits, seed: int) -> Check:
    low, high = paired_interval(gains_N, seed=seed)
    knows = low > limits.gain
    said = f"{'knows' if knows else 'does not know'} its document better than no module: "
    said += f"{gains_N.mean():+.2f} nats a token (95% interval {low:+.2f} to {high:+.2f})"
    numbers = {"gain": float(gains_N.mean()), "gain_low": low, "gain_high": high}
    return {"knows": PASSED if knows else FAILED, **numbers}, said


def _reads(readings_N: Floats, limits: Limits, seed: int) -> Check:
    if not len(readings_N):
        return {"reads": "not checked: no question with its passage"}, ""
    low, high = paired_interval(readings_N, seed=seed)
    numbers = {"with_passage_gain": float(readings_N.mean()), "with_passage_low": low, "with_passage_high": high}
    if high >= -limits.harm:
        return {"reads": PASSED, **numbers}, ""
    said = f"spoils answers from the right passage by {readings_N.mean():+.2f} ({low:+.2f} to {high:+.2f})"
    return {"reads": FAILED, **numbers}, said


def _leaves_alone(drifts_N: Floats, limits: Limits, seed: int) -> Check:
    if not len(drifts_N):
        return {"leaves_alone": "not checked: no other question"}, ""
    low, high = paired_interval(drifts_N, seed=seed)
    mean = float(drifts_N.mean())
    numbers = {"drift_questions": len(drifts_N), "drift": mean, "drift_low": low, "drift_high": high}
    if low <= limits.drift:
        return {"leaves_alone": PASSED, **numbers}, ""
    said = f"changes answers off its topic by {mean:.2f} nats a token ({low:.2f} to {high:.2f}), "
    return {"leaves_alone": FAILED, **numbers}, said + f"expected at most {limits.drift:g}"


def _composes(
    gains_N: Floats, margins: Sequence[float], composed: Sequence[Scores], limits: Limits, seed: int
) -> Check:
    if not composed:
        return {"composes": "not checked: no other module"}, ""
    beside_N = np.mean([scores.margins() for scores in composed], axis=0)
    losses_N = np.subtract(margins, beside_N)
    # Of each question's own gain, so that both vary together: a share of a mean would have an interval of its own.
    excess_N = losses_N - limits.composition * gains_N
    low, high = paired_interval(losses_N, seed=seed)
    excess_low, excess_high = paired_interval(excess_N, seed=seed)
    numbers = {
        "composition_modules": len(composed),
        "composition_margin": float(beside_N.mean()),
        "composition_loss": float(losses_N.mean()),
        "composition_loss_low": low,
        "composition_loss_high": high,
        "composition_excess": float(excess_N.mean()),
        "composition_excess_low": excess_low,
        "composition_excess_high": excess_high,
    }
    if excess_low <= 0:
        return {"composes": PASSED, **numbers}, ""
    said = f"loses {losses_N.mean():.2f} of its {gains_N.mean():+.2f} nats beside another module "
    return {
        "composes": FAILED,
        **numbers,
    }, said + f"({low:.2f} to {high:.2f}), expected at most {limits.composition:.0%}"
