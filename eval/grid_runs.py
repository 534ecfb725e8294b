"""What scripts that run the grid several times have in common: their options, and what they show and keep of it.

Knows nothing about what changes from run to run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridqa.evaluation.options import GridOptions

RECORDED = ("command", "commit", "hardware", "model", "seed", "data")  # of a report, the same in every run


def parser(description: str | None) -> argparse.ArgumentParser:
    """Which documents and questions, and where to work and write."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--docs", type=Path, required=True)
    made.add_argument("--questions", type=Path, required=True)
    made.add_argument("--work", type=Path, required=True)
    made.add_argument("--output", type=Path, required=True)
    made.add_argument("--documents", type=int, default=0, help="ask about so many, chosen by seed; 0: all")
    made.add_argument("--max-words", type=int, default=0, help="of a document that is asked about; 0: any length")
    made.add_argument("--questions-per-document", type=int, default=12)
    made.add_argument("--seed", type=int, default=0)
    return made


def grid_options(options: argparse.Namespace, arms: Sequence[str], objectives: Sequence[str]) -> GridOptions:
    """The grid of these options, without an extractor."""
    return GridOptions(
        docs=options.docs,
        questions=options.questions,
        arms=arms,
        objectives=tuple(objectives),
        no_extractor=True,
        compose=tuple(getattr(options, "compose", ())),
        documents=options.documents,
        max_words=options.max_words,
        questions_per_document=options.questions_per_document,
        seed=options.seed,
    )


def tell(stage: str, step: int, total: int) -> None:
    """A line where a stage begins."""
    if step == 0:
        print(stage, flush=True)


def show(name: str, arms: dict[str, Any]) -> None:
    """The log-probabilities of one run's arms."""
    print(f"{name}:", *(f"{arm} {found['answer_logprob']['mean']:.3f}" for arm, found in arms.items()), flush=True)
