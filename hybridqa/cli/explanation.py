"""`ask --explain`: what was found for a question, what speaks for it, and what the router made of it.

Knows nothing about how any of it came about. Invariant: everything shown is of the answer's own route.
"""

from __future__ import annotations

from typing import Any

from hybridqa.cli import output
from hybridqa.types import Answer, ScoredPassage

_COLUMNS = ("", "score", "cosine", "bm25", "words", "title", "linked", "likelihood", "document", "passage")


def explanation(answer: Answer) -> dict[str, Any]:
    """What `--explain` adds to an answer's JSON."""
    route = answer.route
    if route is None:
        return {}
    shown = {scored.passage.passage_id: number for number, scored in enumerate(answer.passages, 1)}
    plugged = {choice.module.name for choice in answer.modules}
    return {
        "found": [
            {
                "doc_id": scored.passage.doc_id,
                "ordinal": scored.passage.ordinal,
                "start": scored.passage.start,
                "end": scored.passage.end,
                "score": scored.score,
                "cosine": scored.dense,
                "bm25": scored.lexical,
                "coverage": scored.coverage,
                "title": scored.title,
                "linked": scored.linked,
                "likelihood": scored.likelihood,
                "same_as": [{"doc_id": other.doc_id, "ordinal": other.ordinal} for other in scored.also],
                "source": shown.get(scored.passage.passage_id),
            }
            for scored in route.found
        ],
        "evidence": dict(route.evidence),
        "modules": [
            {
                "module": choice.module.name,
                "documents": sorted(choice.module.documents),
                "evidence": choice.evidence,
                "plugged_in": choice.module.name in plugged,
            }
            for choice in route.considered
        ],
        "mode": route.mode,
        "reason": route.reason,
        "seconds": dict(answer.timings),
    }


def show_explanation(answer: Answer) -> None:
    """The same for people."""
    route = answer.route
    if route is None:
        return
    output.say("")
    output.say(f"route: {route.reason}")
    shown = {scored.passage.passage_id: number for number, scored in enumerate(answer.passages, 1)}
    if route.found:
        output.say("")
        output.table(_COLUMNS, (_row(scored, shown.get(scored.passage.passage_id)) for scored in route.found))
    if route.evidence:
        output.say("")
        output.table(("evidence", "document"), ((f"{value:.2f}", doc_id) for doc_id, value in route.evidence.items()))
    plugged = {choice.module.name for choice in answer.modules}
    if route.considered:
        output.say("")
        output.table(
            ("evidence", "module", ""),
            (
                (f"{choice.evidence:.2f}", choice.module.name, "plugged in" if choice.module.name in plugged else "")
                for choice in route.considered
            ),
        )
    output.say("")
    output.say(" · ".join(f"{step} {1000 * seconds:.0f} ms" for step, seconds in answer.timings.items()))


def _row(scored: ScoredPassage, number: int | None) -> tuple[str, ...]:
    text = " ".join(scored.passage.text.split())
    also = f" (and {len(scored.also)} that say the same)" if scored.also else ""
    return (
        "" if number is None else f"[{number}]",
        f"{scored.score:.2f}",
        _number(scored.dense),
        _number(scored.lexical),
        f"{scored.coverage:.2f}",
        f"{scored.title:.2f}",
        f"{scored.linked:.2f}",
        _number(scored.likelihood),
        scored.passage.doc_id,
        f"{text[:60]}{'…' if len(text) > 60 else ''}{also}",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
