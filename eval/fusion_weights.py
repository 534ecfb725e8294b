"""Fits what each signal of a passage counts, and says what the fit is worth on sets that it has not seen.

    python eval/fusion_weights.py --data DATA [--sets NAME ...] [--work FOLDER] [--output FILE]

DATA holds NAME.docs.jsonl and NAME.questions.jsonl. A store is made of each set's documents; the candidates that search
reads for each of its answerable questions are ranked by a softmax over their weighted signals, and the weights are
those that make the gold documents' candidates likeliest, with every set counting alike. Each set is also ranked with
weights that were fitted on the other sets alone: those are the numbers to believe. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from hybridqa.cli.output import plain
from hybridqa.config import Settings
from hybridqa.evaluation.datasets import cluster_of
from hybridqa.evaluation.retrieval import RetrievalPlan, make_plan, recall
from hybridqa.evaluation.statistics import mean_interval, paired_difference
from hybridqa.evaluation.stores import store_of
from hybridqa.files import atomic_write_text
from hybridqa.provenance import commit, hardware
from hybridqa.retrieval.fusion import FusionWeights
from hybridqa.retrieval.searcher import READ
from hybridqa.types import DEFAULT_COLLECTION, ScoredPassage

SETS = (
    "amazon_train covidqa dynamicqa emanual_tv fairytaleqa inscit mtrag multihop newwiki_dev newwiki_train policyqa "
    "quail realtimeqa_stream"
).split()
NAMES = [field.name for field in fields(FusionWeights)]
STRENGTH = 0.002  # of the pull towards nothing, beside a mean log-likelihood
KS = (1, 5)
Floats = np.ndarray
Set = tuple[RetrievalPlan, list[list[ScoredPassage]]]


def main() -> None:
    """Fits and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--most", type=int, default=400, help="questions of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder to keep the sets' stores in")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = {name: candidates(options, name, (options.work or Path(folder)) / name) for name in options.sets}
    weights = fit([matrices(one) for one in found.values()])
    result = {
        "command": f"python eval/fusion_weights.py --data DATA --sets {' '.join(options.sets)} --most {options.most} "
        f"--seed {options.seed}",
        "commit": commit(),
        "hardware": hardware(),
        "seed": options.seed,
        "weights": dict(zip(NAMES, weights.tolist(), strict=True)),
        "sets": {name: judged(found, name, weights, options.seed) for name in found},
        "seconds": round(time.perf_counter() - begun, 1),
    }
    text = json.dumps(plain(result), indent=1) + "\n"
    if options.output is not None:
        atomic_write_text(options.output, text)
    sys.stdout.write(text)


def candidates(options: argparse.Namespace, name: str, work: Path) -> Set:
    """A set's questions, and what search has read for each."""
    docs, questions = (options.data / f"{name}.{kind}.jsonl" for kind in ("docs", "questions"))
    plan = make_plan(docs, questions, Settings(), most=options.most, seed=options.seed)
    with store_of(plan.documents, work, lambda *_: None) as store:
        found = [store.searcher.search(one.question, k=READ, collection=DEFAULT_COLLECTION) for one in plan.questions]
    sys.stderr.write(f"{name}: {len(plan.documents)} documents, {len(plan.questions)} questions\n")
    return plan, found


def matrices(one: Set) -> list[tuple[Floats, Floats]]:
    """For each question that search found a gold document for: the candidates' signals (N, F), which are gold (N,)."""
    plan, found = one
    rows = []
    for question, passages in zip(plan.questions, found, strict=True):
        gold_N = np.array([scored.passage.doc_id in question.doc_ids for scored in passages])
        if gold_N.any() and not gold_N.all():
            rows.append((signals(passages), gold_N))
    return rows


def signals(passages: list[ScoredPassage]) -> Floats:
    """The candidates' signals (N, F): the score of each when one weight alone is 1."""
    nothing = FusionWeights(*(0.0 for _ in NAMES))
    return np.array([replace(nothing, **{name: 1.0}).scores(passages) for name in NAMES]).T


def fit(sets: list[list[tuple[Floats, Floats]]]) -> Floats:
    """The weights (F,) of greatest likelihood; every set counts alike."""

    def loss(weights_F: Floats) -> tuple[float, Floats]:
        total, slope_F = STRENGTH * float(weights_F @ weights_F) / 2, STRENGTH * weights_F
        for rows in sets:
            for signals_N_F, gold_N in rows:
                scores_N = signals_N_F @ weights_F
                odds_N = np.exp(scores_N - scores_N.max())
                shares_N = odds_N / odds_N.sum()
                right = max(float(shares_N[gold_N].sum()), 1e-12)
                of_right_N = np.where(gold_N, shares_N / right, 0.0)
                total -= float(np.log(right)) / len(rows) / len(sets)
                slope_F = slope_F - (of_right_N - shares_N) @ signals_N_F / len(rows) / len(sets)
        return total, slope_F

    found: Floats = minimize(loss, np.ones(len(NAMES)), jac=True, method="L-BFGS-B").x
    return found


def judged(found: dict[str, Set], name: str, everywhere: Floats, seed: int) -> dict[str, Any]:
    """Recall with the weights of the other sets, and how far it is from that with weights of all, and its own."""
    others = fit([matrices(one) for other, one in found.items() if other != name])
    own = fit([matrices(found[name])])
    kinds = {"others": others, "all": everywhere, "own": own, "default": np.array(astuple(FusionWeights()))}
    questions = found[name][0].questions
    clusters = [cluster_of(question) for question in questions]
    values = {kind: {k: recalls(found[name], weights, k) for k in KS} for kind, weights in kinds.items()}
    return {
        "questions": len(questions),
        "weights_of_others": dict(zip(NAMES, others.tolist(), strict=True)),
        "own_weights": dict(zip(NAMES, own.tolist(), strict=True)),
        "recall": {kind: {str(k): mean_interval(values[kind][k], clusters, seed=seed) for k in KS} for kind in kinds},
        "own_ahead_of_others": {
            str(k): paired_difference(values["own"][k], values["others"][k], clusters, seed=seed) for k in KS
        },
    }


def recalls(one: Set, weights: Floats, k: int) -> list[float]:
    """Recall@k of each question with these weights."""
    plan, found = one
    results = []
    for question, passages in zip(plan.questions, found, strict=True):
        order = np.argsort(-(signals(passages) @ weights), kind="stable") if passages else []
        ranked = list(dict.fromkeys(passages[place].passage.doc_id for place in order))
        results.append(recall(ranked, question.doc_ids, k))
    return results


if __name__ == "__main__":
    main()
