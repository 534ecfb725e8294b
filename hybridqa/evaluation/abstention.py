"""How well hybridqa knows what it does not know: answers that are given, withheld, right and wrong.

Asks questions that have an answer, questions that their documents do not answer, and questions whose documents were
left out of the store. Knows nothing about how an answer is found. Invariant: every way of being sure is judged on the
same answers, and an answer to a question without one is wrong whatever it says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hybridqa.config import Settings
from hybridqa.errors import InputError
from hybridqa.evaluation.calibration import Floats, area_under_risk_coverage, area_under_roc, risk_coverage
from hybridqa.evaluation.datasets import EvalDocument, EvalQuestion, cluster_of, draw, read_questions
from hybridqa.evaluation.metrics import contains, token_f1
from hybridqa.evaluation.provenance import provenance
from hybridqa.evaluation.routing import left_out_plan
from hybridqa.evaluation.statistics import Interval, mean_interval, statistic_interval
from hybridqa.evaluation.stores import Tell, own_settings, store_of
from hybridqa.pipeline import HybridQA
from hybridqa.types import Answer

ANSWERABLE, UNANSWERABLE, REMOVED = "has an answer", "has none in its document", "its document was left out"
PLAIN = "cosine"  # what every retrieval system has: the others are compared with it
AT_ONCE = 16
RIGHT_F1 = 0.5  # token F1 with a gold answer


@dataclass(frozen=True, slots=True)
class AbstentionPlan:
    """What is measured."""

    docs: Path
    questions_file: Path
    documents: list[EvalDocument]
    asked: list[tuple[str, EvalQuestion]]  # each with its kind
    seed: int
    extractor: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Given:
    """What came of one question."""

    kind: str
    right: bool
    withheld: bool
    sure: Mapping[str, float]  # by way


def make_plan(
    docs: Path,
    questions: Path,
    settings: Settings,
    *,
    most: int = 150,
    seed: int = 0,
    extractor: Path | None = None,
) -> AbstentionPlan:
    """At most `most` questions of each kind (0: all). Raises `InputError` where none is without an answer."""
    documents, on, near, _ = left_out_plan(docs, questions, seed)
    there = {document.doc_id for document in documents}
    none = [q for q in read_questions(questions) if q.unanswerable and there.issuperset(q.doc_ids)]
    kinds = {ANSWERABLE: on, UNANSWERABLE: none, REMOVED: near}
    if not on or not (none or near):
        raise InputError(
            f"{str(questions)!r} has {len(on)} questions with an answer in three quarters of {str(docs)!r}, "
            f"{len(none)} without one, and {len(near)} about the other documents; expected some with and some without."
        )
    return AbstentionPlan(
        docs,
        questions,
        documents,
        [(kind, question) for kind, found in kinds.items() for question in draw(found, most, seed)],
        seed,
        extractor,
        own_settings(settings),
    )


def run_abstention(plan: AbstentionPlan, work: Path, tell: Tell) -> dict[str, Any]:
    """The report, as plain data. Raises `StoreError` while another run is at work in the folder, `EngineError`."""
    # every question is to be answered: what would have been withheld is judged here
    settings = {**plan.settings, "abstain_below": 0.0}
    with store_of(plan.documents, work, tell, extractor=plan.extractor, **settings) as store:
        answers = asyncio.run(_answers(store, [question for _, question in plan.asked], tell))
        model = {"name": store.model.name, "hash": store.model.hash}
    given = [_given(kind, question, answer) for (kind, question), answer in zip(plan.asked, answers, strict=True)]
    return {
        **provenance(plan.docs, plan.questions_file, plan.seed),
        "suite": "abstention",
        "model": model,
        "extractor": None if plan.extractor is None else plan.extractor.name,
        "settings": dict(plan.settings),
        "data": {
            "documents": len(plan.documents),
            "questions": {kind: sum(one.kind == kind for one in given) for kind in (ANSWERABLE, UNANSWERABLE, REMOVED)},
        },
        **scores(given, [cluster_of(question) for _, question in plan.asked], plan.seed),
    }


async def _answers(store: HybridQA, questions: Sequence[EvalQuestion], tell: Tell) -> list[Answer]:
    slots, done = asyncio.Semaphore(AT_ONCE), 0

    async def one(question: EvalQuestion) -> Answer:
        nonlocal done
        async with slots:
            answer = await store.aask(question.question, history=question.history)
        done += 1
        tell("answering", done, len(questions))
        return answer

    return list(await asyncio.gather(*(one(question) for question in questions)))


def _given(kind: str, question: EvalQuestion, answer: Answer) -> Given:
    route = answer.route
    assert route is not None
    evidence = max(route.evidence.values(), default=0.0)
    probability = answer.probability or 0.0
    return Given(
        kind,
        kind == ANSWERABLE and not answer.abstained and is_right(answer.text, question),
        answer.abstained,
        {
            PLAIN: max((scored.dense or 0.0 for scored in route.found), default=0.0),
            "evidence": evidence,
            "probability": probability,
            "evidence and probability": evidence * probability,
            "confidence": answer.confidence or 0.0,
        },
    )


def is_right(text: str, question: EvalQuestion) -> bool:
    """Whether an answer holds a gold answer, or shares enough with one; of options, whether a right one is nearest."""
    if not question.options:
        return bool(contains(text, question.answers)) or token_f1(text, question.answers) >= RIGHT_F1
    near = {option: token_f1(text, [option]) for option in question.options}
    best = max(near.values())
    right = max((near.get(answer, 0.0) for answer in question.answers), default=0.0)
    return best > 0 and right == best and list(near.values()).count(best) == 1


def scores(given: Sequence[Given], clusters: Sequence[str], seed: int) -> dict[str, Any]:
    """Areas under the risk-coverage curve of each way of being sure, and how far each is below the plain one."""
    was_N = np.array([float(one.right) for one in given])
    has_N = np.array([float(one.kind == ANSWERABLE) for one in given])
    sure = {name: np.array([one.sure[name] for one in given]) for name in given[0].sure}

    def interval(value: Any) -> Interval:
        return statistic_interval(value, len(given), clusters, seed=seed)

    def risk(name: str, places: Any) -> float:
        return area_under_risk_coverage(sure[name][places], was_N[places])

    return {
        "answered": {
            kind: {
                "right": _share([one.right for one in given], given, clusters, kind, seed),
                "withheld": _share([one.withheld for one in given], given, clusters, kind, seed),
            }
            for kind in (ANSWERABLE, UNANSWERABLE, REMOVED)
            if any(one.kind == kind for one in given)
        },
        "ways": {
            name: {
                "area_under_risk_coverage": interval(lambda places, name=name: risk(name, places)),
                "below_plain": interval(lambda places, name=name: risk(PLAIN, places) - risk(name, places)),
                "tells_answerable": interval(
                    lambda places, name=name: area_under_roc(sure[name][places], has_N[places])
                ),
                "curve": _curve(sure[name], was_N),
            }
            for name in sure
        },
        "best_possible": area_under_risk_coverage(was_N, was_N),
    }


def _share(outcome: Sequence[bool], given: Sequence[Given], clusters: Sequence[str], kind: str, seed: int) -> Interval:
    kept = [place for place, one in enumerate(given) if one.kind == kind]
    return mean_interval([float(outcome[place]) for place in kept], [clusters[place] for place in kept], seed=seed)


def _curve(sure_N: Floats, was_N: Floats) -> dict[str, list[float]]:
    """The risk at each twentieth of coverage."""
    coverage_N, risk_N = risk_coverage(sure_N, was_N)
    steps = np.linspace(0.05, 1.0, 20)
    places = np.minimum(np.searchsorted(coverage_N, steps - 1e-9), len(coverage_N) - 1)
    return {"coverage": steps.round(2).tolist(), "risk": risk_N[places].tolist()}
