"""Decides whether an extractor may serve: with it, right answers must be likelier on documents that it has not seen.

Knows nothing about how it was trained. Invariant: the same scores give the same verdict, and the report holds
everything that the verdict came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hybridqa.evaluation.statistics import paired_difference, widened
from hybridqa.training.exercises import UNANSWERABLE, Exercise
from hybridqa.training.mixture import CONFIGURATIONS, SERVING
from hybridqa.training.split import MIN_HELD_OUT

SERVED = "served"  # the names of the checks that decide: all questions,
ANSWERED = "answered"  # and those that have an answer, where not all do


@dataclass(frozen=True, slots=True)
class Check:
    """One configuration's questions; log-probabilities are per token of the right answer, in nats."""

    questions: int
    documents: int
    without: float  # the extractor, with the same prompt and module
    adapted: float  # with it
    gain: float
    low: float  # 95% interval of the gain, paired bootstrap over documents, widened where they are few
    high: float


@dataclass(frozen=True, slots=True)
class ExtractorReport:
    """What was measured on held-out documents."""

    passed: bool
    reason: str
    checks: dict[str, Check]  # by configuration; SERVED is each question as it would be served

    def as_dict(self) -> dict[str, Any]:
        """For manifests and `--json`."""
        checks = {name: asdict(check) for name, check in self.checks.items()}
        return {"passed": self.passed, "reason": self.reason, **checks}


def judge_extractor(
    exercises: Sequence[Exercise], without: Sequence[float], adapted: Sequence[float], *, seed: int = 0
) -> ExtractorReport:
    """The verdict from paired scores of the same exercises, without and with the extractor.

    It passes when it is better than none, by more than noise, on questions as they would be served: on all of them, and
    on those that have an answer.
    """
    places: dict[str, list[int]] = {SERVED: _served(exercises)}
    answered = _answered(exercises)
    if answered != places[SERVED]:
        places[ANSWERED] = answered
    for name in (*CONFIGURATIONS, UNANSWERABLE):
        found = [place for place, exercise in enumerate(exercises) if exercise.configuration == name]
        if found:
            places[name] = found
    checks = {}
    for name, chosen in places.items():
        if chosen:
            one, other = [without[place] for place in chosen], [adapted[place] for place in chosen]
            documents = [exercises[place].doc_id for place in chosen]
            gain = widened(paired_difference(other, one, documents, seed=seed), len(set(documents)))
            size = len(chosen)
            checks[name] = Check(
                size, len(set(documents)), sum(one) / size, sum(other) / size, gain.mean, gain.low, gain.high
            )
    if (tested := documents_tested(exercises)) < MIN_HELD_OUT:
        reason = f"held-out questions about {tested} documents can be answered; expected at least {MIN_HELD_OUT}"
        return ExtractorReport(False, reason, checks)
    deciding = min((checks[name] for name in (SERVED, ANSWERED) if name in checks), key=lambda check: check.low)
    passed = deciding.low > 0
    reason = (
        f"{'better' if passed else 'not better'} than none on {deciding.questions} questions about "
        f"{deciding.documents} held-out documents: {deciding.gain:+.2f} nats a token (95% interval {deciding.low:+.2f} "
        f"to {deciding.high:+.2f})"
    )
    return ExtractorReport(passed, reason, checks)


def documents_tested(exercises: Sequence[Exercise]) -> int:
    """How many documents have a question with an answer, as it would be served."""
    return len({exercises[place].doc_id for place in _answered(exercises)})


def _answered(exercises: Sequence[Exercise]) -> list[int]:
    return [place for place in _served(exercises) if exercises[place].configuration != UNANSWERABLE]


def _served(exercises: Sequence[Exercise]) -> list[int]:
    """For each question, the exercise that is how it would be served."""
    order = (UNANSWERABLE, *SERVING)
    best: dict[str, int] = {}
    for place, exercise in enumerate(exercises):
        if exercise.configuration in order:
            known = best.get(exercise.qid)
            rank = order.index(exercise.configuration)
            if known is None or rank < order.index(exercises[known].configuration):
                best[exercise.qid] = place
    return sorted(best.values())
