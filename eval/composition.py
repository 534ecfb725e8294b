"""What lets several modules answer together: how they are trained, and how much each counts in a stack.

    python eval/composition.py --docs X.docs.jsonl --questions X.questions.jsonl --work FOLDER --output FILE

Trains the modules of the same documents in several ways, each with the product's own trainer, and asks every question
with its document's module alone (KM) and in stacks with others' (KM×2, …). In these the modules count by the evidence
for each, as they serve, or evenly with the same sum of squares, or whole. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hybridqa.cli.output import plain
from hybridqa.config import Settings
from hybridqa.evaluation.grid import run_grid
from hybridqa.evaluation.options import GridOptions, make_plan
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY")
    parser.add_argument("--compose", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument("--documents", type=int, default=0)
    parser.add_argument("--questions-per-document", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arms = ["closed", "KM", *(f"KM×{count}" for count in options.compose)]
    wanted = GridOptions(
        docs=options.docs,
        questions=options.questions,
        arms=arms,
        objectives=("dcd",),
        no_extractor=True,
        compose=tuple(options.compose),
        documents=options.documents,
        questions_per_document=options.questions_per_document,
        seed=options.seed,
    )
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
            record = {name: report[name] for name in ("command", "commit", "hardware", "model", "seed", "data")}
            atomic_write_text(options.output, json.dumps({**record, "ways": found}, indent=1) + "\n")
            show(way, weights, named)


def changed(recipe: Recipe) -> dict[str, Any]:
    """What the recipe has otherwise than the default."""
    default = asdict(Recipe())
    return {name: value for name, value in asdict(recipe).items() if value != default[name]}


def summary(modules: dict[str, Any]) -> dict[str, Any]:
    """Of the modules: how many passed, and their mean seconds."""
    return {name: modules[name] for name in ("documents", "passed", "seconds")}


def tell(stage: str, step: int, total: int) -> None:
    """A line where a stage begins."""
    if step == 0:
        print(stage, flush=True)


def show(way: str, weight: str, report: dict[str, Any]) -> None:
    """The log-probabilities of one way."""
    cells = (f"{name} {arm['answer_logprob']['mean']:.3f}" for name, arm in report["arms"].items())
    print(f"{way}, {weight}:", *cells, flush=True)


if __name__ == "__main__":
    main()
