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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from hybridqa.answering.answerer import ROUTING_PASSAGES
from hybridqa.cli.output import plain
from hybridqa.config import Settings
from hybridqa.evaluation.datasets import cluster_of
from hybridqa.evaluation.retrieval import RetrievalPlan, make_plan, recall
from hybridqa.evaluation.statistics import mean_interval, paired_difference
from hybridqa.evaluation.stores import store_of
from hybridqa.files import atomic_write_text
from hybridqa.pipeline import HybridQA
from hybridqa.provenance import commit, hardware
from hybridqa.retrieval.fusion import FusionWeights
from hybridqa.types import DEFAULT_COLLECTION, ScoredPassage

SETS = (
    "amazon_train covidqa dynamicqa emanual_tv fairytaleqa inscit mtrag multihop newwiki_dev newwiki_train policyqa "
    "quail realtimeqa_stream"
).split()
NAMES = [field.name for field in fields(FusionWeights)]
STRENGTH = 0.002  # of the pull towards nothing, beside a mean log-likelihood
KS = (1, 5)
Floats = np.ndarray


class Set:
    """A set's questions with the candidates of each: Q questions, at most N candidates, F signals."""

    def __init__(self, plan: RetrievalPlan, found: list[list[ScoredPassage]]) -> None:
        most = max(map(len, found))
        self.questions = plan.questions
        self.doc_ids = [[scored.passage.doc_id for scored in passages] for passages in found]
        self.signals_Q_N_F = np.zeros((len(found), most, len(NAMES)))
        self.there_Q_N = np.zeros((len(found), most), dtype=bool)
        self.gold_Q_N = np.zeros((len(found), most), dtype=bool)
        for place, (question, passages) in enumerate(zip(plan.questions, found, strict=True)):
            self.signals_Q_N_F[place, : len(passages)] = signals(passages)
            self.there_Q_N[place, : len(passages)] = True
            self.gold_Q_N[place, : len(passages)] = [doc_id in question.doc_ids for doc_id in self.doc_ids[place]]
        # a question whose document was not found, or nothing else, says nothing about weights
        self.telling_Q = self.gold_Q_N.any(axis=1) & (self.gold_Q_N != self.there_Q_N).any(axis=1)

    def recalls(self, weights_F: Floats, k: int) -> list[float]:
        """Recall@k of each question with these weights."""
        results = []
        for question, doc_ids, scores_N in zip(
            self.questions, self.doc_ids, self.signals_Q_N_F @ weights_F, strict=True
        ):
            order = np.argsort(-scores_N[: len(doc_ids)], kind="stable")
            results.append(recall(list(dict.fromkeys(doc_ids[place] for place in order)), question.doc_ids, k))
        return results


def main() -> None:
    """Fits and prints."""
    options = asked_for(__doc__, most=400)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = {name: candidates(options, name, folder) for name in options.sets}
    weights = fit(list(found.values()))
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
    tell(result, options.output)


def asked_for(
    about: str | None,
    *,
    most: int,
    sets: list[str] = SETS,
    add: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """The options of a fit over several sets, `most` questions of each by default; `add` adds a script's own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=sets)
    parser.add_argument("--most", type=int, default=most, help="questions of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder to keep the sets' stores in")
    parser.add_argument("--output", type=Path)
    if add is not None:
        add(parser)
    return parser.parse_args()


def tell(result: dict[str, Any], path: Path | None) -> None:
    """Prints a result, and keeps it where that is wanted."""
    text = json.dumps(plain(result), indent=1) + "\n"
    if path is not None:
        atomic_write_text(path, text)
    sys.stdout.write(text)


@contextmanager
def opened(
    options: argparse.Namespace, name: str, folder: str, **settings: Any
) -> Iterator[tuple[RetrievalPlan, HybridQA]]:
    """What is asked of a set, and a store of its documents, in `folder` unless --work names another."""
    docs, questions = (options.data / f"{name}.{kind}.jsonl" for kind in ("docs", "questions"))
    plan = make_plan(docs, questions, Settings(), most=options.most, seed=options.seed)
    with store_of(plan.documents, (options.work or Path(folder)) / name, lambda *_: None, **settings) as store:
        yield plan, store


def candidates(options: argparse.Namespace, name: str, folder: str) -> Set:
    """A set's questions, and what search has read for each."""
    with opened(options, name, folder) as (plan, store):
        found = [
            store.searcher.search(one.question, k=ROUTING_PASSAGES, collection=DEFAULT_COLLECTION)
            for one in plan.questions
        ]
    sys.stderr.write(f"{name}: {len(plan.documents)} documents, {len(plan.questions)} questions\n")
    return Set(plan, found)


def signals(passages: list[ScoredPassage]) -> Floats:
    """The candidates' signals (N, F): the score of each when one weight alone is 1."""
    nothing = FusionWeights(*(0.0 for _ in NAMES))
    return np.array([replace(nothing, **{name: 1.0}).scores(passages) for name in NAMES]).T


def fit(sets: list[Set]) -> Floats:
    """The weights (F,) of greatest likelihood, one for each signal that the sets have; every set counts alike."""
    rows = [
        (one.signals_Q_N_F[one.telling_Q], one.there_Q_N[one.telling_Q], one.gold_Q_N[one.telling_Q]) for one in sets
    ]

    def loss(weights_F: Floats) -> tuple[float, Floats]:
        total, slope_F = STRENGTH * float(weights_F @ weights_F) / 2, STRENGTH * weights_F
        for signals_Q_N_F, there_Q_N, gold_Q_N in rows:
            scores_Q_N = np.where(there_Q_N, signals_Q_N_F @ weights_F, -np.inf)
            odds_Q_N = np.exp(scores_Q_N - scores_Q_N.max(axis=1, keepdims=True))
            shares_Q_N = odds_Q_N / odds_Q_N.sum(axis=1, keepdims=True)
            right_Q_1 = np.maximum((shares_Q_N * gold_Q_N).sum(axis=1, keepdims=True), 1e-12)
            pull_Q_N = shares_Q_N * gold_Q_N / right_Q_1 - shares_Q_N
            total -= float(np.log(right_Q_1).mean()) / len(rows)
            slope_F = slope_F - np.einsum("qn,qnf->qf", pull_Q_N, signals_Q_N_F).mean(axis=0) / len(rows)
        return total, slope_F

    found: Floats = minimize(loss, np.ones(sets[0].signals_Q_N_F.shape[2]), jac=True, method="L-BFGS-B").x
    return found


def judged(found: dict[str, Set], name: str, everywhere: Floats, seed: int) -> dict[str, Any]:
    """Recall with the weights of the other sets, and how far it is from that with weights of all, and its own."""
    others = fit([one for other, one in found.items() if other != name])
    own = fit([found[name]])
    kinds = {"others": others, "all": everywhere, "own": own, "default": np.array(astuple(FusionWeights()))}
    questions = found[name].questions
    clusters = [cluster_of(question) for question in questions]
    values = {kind: {k: found[name].recalls(weights, k) for k in KS} for kind, weights in kinds.items()}
    return {
        "questions": len(questions),
        "weights_of_others": dict(zip(NAMES, others.tolist(), strict=True)),
        "own_weights": dict(zip(NAMES, own.tolist(), strict=True)),
        "recall": {kind: {str(k): mean_interval(values[kind][k], clusters, seed=seed) for k in KS} for kind in kinds},
        "own_ahead_of_others": {
            str(k): paired_difference(values["own"][k], values["others"][k], clusters, seed=seed) for k in KS
        },
    }


if __name__ == "__main__":
    main()
