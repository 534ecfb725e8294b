"""What will be asked of the engine for one question, and why.

Knows nothing about how it was decided. Invariant: `prompt` is None exactly where there is nothing to answer from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hybridqa.answering.prompt import Prompt
from hybridqa.engine.protocol import Adapter, Sampling
from hybridqa.types import Mode, Route


@dataclass(slots=True)
class Plan:
    """A question on its way to the engine."""

    question: str
    collection: str
    mode: Mode
    route: Route
    prompt: Prompt | None
    adapter: Adapter | None
    sampling: Sampling
    timings: dict[str, float] = field(default_factory=dict)


def is_empty(route: Route) -> bool:
    """Whether there is nothing to answer from: plug-ins and an extractor hold nothing of the documents."""
    return route.mode is not Mode.CLOSED and not route.passages and not route.modules


def bare(route: Route, error: Exception) -> Route:
    """The route without any adapter."""
    reason = f"{route.reason}; modules left out: {error}"
    return replace(route, modules=(), plugins=(), extractor=None, reason=reason)
