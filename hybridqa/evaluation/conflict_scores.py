"""What was said where sources disagree, counted: the old answer or the new one, for each way of asking.

Knows nothing about stores or engines. Invariant: a way of asking is compared with others on the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridqa.evaluation.statistics import Interval, mean_interval

CLOSED = "closed"  # the way that every other is compared with: what the base model finds likelier by itself
WITH_MODULE = ", with its module"


@dataclass(frozen=True, slots=True)
class Told:
    """One answer of one way of asking."""

    way: str
    qid: str
    text: str
    says_old: bool
    says_new: bool
    old: float | None  # log-probability of the old answer, nats a token; None where nothing was asked of the engine
    new: float | None
    fresh: int  # modules of the document in the stack that know its present text
    stale: int  # that know another

    @property
    def margin(self) -> float:
        """By how much the new answer is likelier, nats a token."""
        return 0.0 if self.new is None or self.old is None else self.new - self.old


def scores(told: Sequence[Told], seed: int) -> dict[str, Any]:
    """For each way, and for each with only the questions that had their module: what it says and what moved it.

    Each question is of a document of its own. `CLOSED` must be among the ways.
    """
    base = {one.qid: one.margin for one in told if one.way == CLOSED}
    ways: dict[str, list[Told]] = {}
    for one in told:
        ways.setdefault(one.way, []).append(one)
        if one.fresh and not one.way.endswith(WITH_MODULE):
            ways.setdefault(f"{one.way}{WITH_MODULE}", []).append(one)
    return {"ways": {way: _of(found, base, seed) for way, found in ways.items()}}


def _of(told: Sequence[Told], base: Mapping[str, float], seed: int) -> dict[str, Any]:
    def mean(values: Sequence[float]) -> Interval:
        return mean_interval(values, seed=seed)

    asked = [one for one in told if one.old is not None]
    found: dict[str, Any] = {
        "questions": len(told),
        "answered": len(asked),  # the others had nothing to be answered from
        "says_new": mean([float(one.says_new) for one in told]),
        "says_old": mean([float(one.says_old) for one in told]),
        "fresh_module": mean([float(one.fresh > 0) for one in told]),
        "stale_module": mean([float(one.stale > 0) for one in told]),
    }
    if asked:
        # some answers are likelier than others whatever is known: what the sources do is told by what they move
        moved = [one.margin - base[one.qid] for one in asked]
        found["prefers_new"] = mean([float(one.margin > 0) for one in asked])
        found["moved_to_new"] = mean([float(value > 0) for value in moved])
        found["moved_by"] = mean(moved)  # nats a token
    return found
