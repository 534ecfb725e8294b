"""What lets several modules answer together: how they are trained, and how much each counts in a stack.

    python eval/composition.py --docs X.docs.jsonl --questions X.questions.jsonl --work FOLDER --output FILE

Trains the modules of the same documents in several ways, each with the product's own trainer, and asks every question
with its document's module alone (KM) and in stacks with others' (KM×2, …). In these the modules count by the evidence
for each, as they serve, or evenly with the same sum of squares, or whole. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from grid_runs import RECORDED, grid_options, parser, show, tell

from hybridqa.cli.output import plain
from hybridqa.config import Settings
from hybridqa.evaluation.grid import run_grid
from hybridqa.evaluation.options import make_plan
from hybridqa.evaluation.planner import Shares
from hybridqa.evaluation.report import make_report
from hybridqa.files import atomic_write_text
from hybridqa.routing.shares import share_of, shares_of
from hybridqa.training.recipe import Recipe, recipe_for

WAYS: dict[str, dict[str, float]] = {  # of training, with what each changes in the recipe
    "alone": {"distracted": 0.0, "echoed": 0.0},
    "beside others": {},
    "beside others, as they serve": {"shared": True},
    "beside itself": {"distracted": 0.0},
    "three times the retention": {"distracted": 0.0, "echoed": 0.0, "retention": 0.3},
    "always beside others": {"distracted": 1.0, "echoed": 0.0},
}


def evenly(evidence: Sequence[float]) -> tuple[float, ...]:
    """No module leads, whatever the evidence."""
    return tuple(share_of(len(evidence)) for _ in evidence)


def whole(evidence: Sequence[float]) -> tuple[float, ...]:
    """Each module counts whole, however many there are."""
    return tuple(1.0 for _ in evidence)


WEIGHTS: dict[str, Shares] = {"by evidence": shares_of, "evenly": evenly, "whole": whole}


def main() -> None:
    known = parser(__doc__)
    known.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY")
    known.add_argument("--compose", type=int, nargs="+", default=(1, 2, 4))
    options = known.parse_args()
    wanted = grid_options(options, ["closed", "KM", *(f"KM×{count}" for count in options.compose)], ("dcd",))
    found: dict[str, Any] = {}
    record: dict[str, Any] = {}
    for way in options.ways:
        settings = Settings(seed=options.seed)
        recipe = replace(recipe_for(settings, "dcd"), **WAYS[way])
        for weights, shares in WEIGHTS.items():
            made = run_grid(make_plan(wanted, settings), options.work, tell, recipe=recipe, shares=shares)
            report = plain(make_report(made))
            named = {name: report[name] for name in ("arms", "differences")}
            modules = report["modules"]["dcd"]
            found.setdefault(way, {"recipe": changed(recipe), "modules": summary(modules)})[weights] = named
            record = {name: report[name] for name in RECORDED}
            atomic_write_text(options.output, json.dumps({**record, "ways": found}, indent=1) + "\n")
            show(f"{way}, {weights}", named["arms"])


def changed(recipe: Recipe) -> dict[str, Any]:
    """What the recipe has otherwise than the default."""
    default = asdict(Recipe())
    return {name: value for name, value in asdict(recipe).items() if value != default[name]}


def summary(modules: dict[str, Any]) -> dict[str, Any]:
    """Of the modules: how many passed, and their mean seconds."""
    return {name: modules[name] for name in ("documents", "passed", "seconds")}


if __name__ == "__main__":
    main()
