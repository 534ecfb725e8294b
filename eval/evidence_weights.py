"""Fits what the router's three numbers count, and says how calibrated they are on sets that the fit has not seen.

    python eval/evidence_weights.py --data DATA [--sets NAME ...] [--work FOLDER] [--output FILE]

DATA holds NAME.docs.jsonl and NAME.questions.jsonl. Each set's questions are asked of a store of its documents, once
with their own documents among what was found and once without, and with questions of all other sets. Each of the five
strongest documents of a question is a row: is the question about it? A logistic regression over all sets, each counting
alike, gives the weights. Each set is also judged with weights that were fitted on the other sets alone, and, with
`adapted`, on those and on questions that were made from the set's own documents by rule. Prints JSON.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fusion_weights import asked_for, tell
from scipy.optimize import minimize

from hybridqa.answering.answerer import ROUTING_PASSAGES
from hybridqa.config import Settings
from hybridqa.evaluation.calibration import area_under_roc, brier, expected_calibration_error
from hybridqa.evaluation.datasets import EvalQuestion
from hybridqa.evaluation.retrieval import make_plan
from hybridqa.evaluation.statistics import statistic_interval
from hybridqa.evaluation.stores import store_of
from hybridqa.pipeline import HybridQA
from hybridqa.provenance import commit, hardware
from hybridqa.retrieval.fusion import FusionWeights, best_first
from hybridqa.routing.evidence import DocumentEvidence
from hybridqa.training.facts import find_facts
from hybridqa.training.pairs import natural_pair, sketched_pair
from hybridqa.types import DEFAULT_COLLECTION, ScoredPassage

NAMES = ("bias", "share", "cosine", "coverage")
STRONGEST = 5  # documents of a question
FAR_QUESTIONS = 8  # of each other set
MADE = 150  # questions from the documents themselves
MADE_WEIGHT = 0.2  # of those, beside a set's
STRENGTH = 0.00001  # of the pull towards nothing, beside a mean log-likelihood
MEASURES = {"expected_calibration_error": expected_calibration_error, "brier": brier, "area_under_roc": area_under_roc}
Floats = np.ndarray
Rows = tuple[Floats, Floats, list[int], list[str]]  # signals (N, 4), right (N,), question of each, its kind


def main() -> None:
    """Fits and prints."""
    options = asked_for(__doc__, most=300)
    begun = time.perf_counter()
    plans = {
        name: make_plan(
            *(options.data / f"{name}.{kind}.jsonl" for kind in ("docs", "questions")),
            Settings(),
            most=options.most,
            seed=options.seed,
        )
        for name in options.sets
    }
    asked, made = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, plan in plans.items():
            with store_of(plan.documents, (options.work or Path(folder)) / name, lambda *_: None) as store:
                far = [
                    question
                    for other, others in plans.items()
                    if other != name
                    for question in random.Random(f"{options.seed} {name}").sample(
                        others.questions, min(FAR_QUESTIONS, len(others.questions))
                    )
                ]
                asked[name] = rows_of(store, [("on", one) for one in plan.questions] + [("far", one) for one in far])
                made[name] = rows_of(store, [("on", one) for one in made_questions(store, options.seed)])
            sys.stderr.write(f"{name}: {len(plan.questions)} questions, {len(far)} of other sets\n")
    weights = fit([(rows, 1.0) for rows in asked.values()])
    result = {
        "command": f"python eval/evidence_weights.py --data DATA --sets {' '.join(options.sets)} --most {options.most} "
        f"--seed {options.seed}",
        "commit": commit(),
        "hardware": hardware(),
        "seed": options.seed,
        "weights": dict(zip(NAMES, weights.tolist(), strict=True)),
        "sets": {name: judged(asked, made, name, options.seed) for name in asked},
        "seconds": round(time.perf_counter() - begun, 1),
    }
    result["mean"] = {
        kind: {
            measure: float(np.mean([found[kind][measure].mean for found in result["sets"].values()]))
            for measure in MEASURES
        }
        for kind in ("others", "adapted", "made alone")
    }
    tell(result, options.output)


def made_questions(store: HybridQA, seed: int) -> list[EvalQuestion]:
    """Questions by rule from passages of the store's documents, as the trainer makes them."""
    rng = random.Random(seed)
    doc_ids = [summary.doc_id for summary in store.documents()]
    questions: list[EvalQuestion] = []
    for number in range(MADE * 4):
        doc_id = rng.choice(doc_ids)
        facts = find_facts([rng.choice(store.catalog.document_passages(DEFAULT_COLLECTION, doc_id)).text])
        if not facts:
            continue
        fact = rng.choice(facts)
        pair = natural_pair(fact, rng) if rng.random() < 0.5 else sketched_pair(fact, "", rng)
        if pair is not None:
            questions.append(EvalQuestion(str(number), pair.question, (pair.answer,), (doc_id,)))
        if len(questions) == MADE:
            break
    return questions


def rows_of(store: HybridQA, questions: list[tuple[str, EvalQuestion]]) -> Rows:
    """A row for each of a question's strongest documents; of one about documents that are there, without them, too."""
    signals_N_4, right, places, kinds = [], [], [], []
    for number, (kind, question) in enumerate(questions):
        found = store.searcher.search(question.question, k=ROUTING_PASSAGES, collection=DEFAULT_COLLECTION)
        gold = set(question.doc_ids) if kind == "on" else set()
        views = [(kind, found, gold)] + ([("removed", without(found, gold), set())] if gold else [])
        for view, passages, own in views:
            evidence = DocumentEvidence(passages)
            for doc_id in list(evidence.of_each())[:STRONGEST]:
                known = evidence.signals((doc_id,))
                assert known is not None
                signals_N_4.append((1.0, *known))
                right.append(float(doc_id in own))
                places.append(2 * number + (view == "removed"))
                kinds.append(view)
    return np.array(signals_N_4), np.array(right), places, kinds


def without(found: list[ScoredPassage], doc_ids: set[str]) -> list[ScoredPassage]:
    """What search would have found without these documents, as far as it looked."""
    left = [scored for scored in found if scored.passage.doc_id not in doc_ids]
    return best_first(
        replace(scored, score=score) for scored, score in zip(left, FusionWeights().scores(left), strict=True)
    )


def fit(parts: list[tuple[Rows, float]]) -> Floats:
    """The weights (4,) of greatest likelihood; parts count by their weights, whatever their sizes."""

    def loss(weights_4: Floats) -> tuple[float, Floats]:
        total, slope_4 = STRENGTH * float(weights_4 @ weights_4) / 2, STRENGTH * weights_4
        for (signals_N_4, right_N, _, _), weight in parts:
            said_N = 1 / (1 + np.exp(-(signals_N_4 @ weights_4)))
            likely_N = np.where(right_N > 0, said_N, 1 - said_N)
            total -= weight * float(np.log(np.maximum(likely_N, 1e-12)).mean()) / len(parts)
            slope_4 = slope_4 + weight * (said_N - right_N) @ signals_N_4 / len(right_N) / len(parts)
        return total, slope_4

    found: Floats = minimize(loss, np.zeros(len(NAMES)), jac=True, method="L-BFGS-B").x
    return found


def judged(asked: dict[str, Rows], made: dict[str, Rows], name: str, seed: int) -> dict[str, Any]:
    """What the strongest document of each question is said to be, against what it is."""
    others = [(rows, 1.0) for other, rows in asked.items() if other != name]
    fits = {
        "others": fit(others),
        "adapted": fit([*others, (made[name], MADE_WEIGHT * len(others))]),
        "made alone": fit([(made[name], 1.0)]),
    }
    return {kind: measured(asked[name], weights, seed) for kind, weights in fits.items()}


def measured(rows: Rows, weights_4: Floats, seed: int) -> dict[str, Any]:
    """Calibration of the strongest document of each question, over questions."""
    signals_N_4, right_N, places, _ = rows
    said_N = 1 / (1 + np.exp(-(signals_N_4 @ weights_4)))
    best: dict[int, int] = {}
    for row, place in enumerate(places):
        if place not in best or said_N[row] > said_N[best[place]]:
            best[place] = row
    chosen = np.array(list(best.values()))
    return {
        "weights": dict(zip(NAMES, weights_4.tolist(), strict=True)),
        **{
            measure: statistic_interval(
                lambda drawn, statistic=statistic: statistic(said_N[chosen][drawn], right_N[chosen][drawn]),
                len(chosen),
                seed=seed,
            )
            for measure, statistic in MEASURES.items()
        },
    }


if __name__ == "__main__":
    main()
