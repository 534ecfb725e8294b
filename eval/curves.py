"""What decides how much a module knows: steps, rank and how much of the text is learned, each varied alone.

    python eval/curves.py --docs X.docs.jsonl --questions X.questions.jsonl --work FOLDER --output FILE
    python eval/curves.py … --vary steps=50,100,200,400 rank=4,64 text=0,4

Trains the modules of the same documents at every point of every curve, each with the product's own trainer from the
same curricula, and asks with nothing in the prompt; the base model is asked with the gold passage beside. All else is
the default recipe's, but a rank's alpha grows with it, so that an adapter's scale stays. A run that was stopped goes on
where it was.
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
from hybridqa.evaluation.report import make_report
from hybridqa.files import atomic_write_text
from hybridqa.training.recipe import Recipe, recipe_for

VARIED = ("steps=50,100,200,400", "rank=4,64", "text=0,1,4")
OBJECTIVES = ("dcd", "next-token")
MEASURES = ("answer_logprob", "token_f1", "contains")
COSTS = ("documents", "passed", "seconds", "mb")


def main() -> None:
    known = parser(__doc__)
    known.add_argument("--vary", nargs="+", default=VARIED, metavar="NAME=VALUES", help="numbers of the recipe")
    known.add_argument("--objectives", nargs="+", default=OBJECTIVES)
    options = known.parse_args()
    arms = ["closed", *(f"KM:{objective}" for objective in options.objectives), "gold"]
    wanted = grid_options(options, arms, options.objectives)
    points: list[dict[str, Any]] = []
    for change in changes(options.vary):
        settings = Settings(seed=options.seed, **ranks(change))
        recipe = replace(recipe_for(settings), **change)
        report = plain(make_report(run_grid(make_plan(wanted, settings), options.work, tell, recipe=recipe)))
        points.append({"changed": change, **measured(report)})
        record = {name: report[name] for name in RECORDED}
        atomic_write_text(options.output, json.dumps({**record, "points": points}, indent=1) + "\n")
        show(", ".join(f"{name} {value}" for name, value in change.items()) or "default", points[-1]["scores"])


def changes(vary: Sequence[str]) -> list[dict[str, float]]:
    """The points of all curves: the default recipe first, then one number changed at a time."""
    numbers = {name: value for name, value in asdict(Recipe()).items() if type(value) in (int, float)}
    found: list[dict[str, float]] = [{}]
    for curve in vary:
        name, _, values = curve.partition("=")
        try:
            kind = type(numbers[name])
            found += [{name: kind(value)} for value in values.split(",")]
        except (KeyError, ValueError):
            raise SystemExit(f"--vary {curve!r}: expected NAME=VALUES with a number of {', '.join(numbers)}") from None
    return found


def ranks(change: dict[str, float]) -> dict[str, float]:
    """The settings that go with another rank: what a stack has room for depends on them."""
    if "rank" not in change:
        return {}
    default = Recipe()
    return {"module_rank": change["rank"], "module_alpha": change["rank"] * default.alpha // default.rank}


def measured(report: dict[str, Any]) -> dict[str, Any]:
    """Of a grid's report, what a curve shows."""
    scores = {name: {measure: arm[measure] for measure in MEASURES} for name, arm in report["arms"].items()}
    modules = {}
    for objective, made in report["modules"].items():
        steps = [module["metrics"]["train"]["steps"] for module in made["each"].values() if module["trained"]]
        modules[objective] = {**{name: made[name] for name in COSTS}, "steps": steps}
    return {
        "scores": scores,
        "modules": modules,
        **{name: report[name] for name in ("differences", "recovered")},
    }


if __name__ == "__main__":
    main()
