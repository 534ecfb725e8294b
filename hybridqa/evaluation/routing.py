"""How often the router finds the right document's module, and keeps out those that are not asked about.

Every document counts as if it had a module: what is measured is the evidence that plugs modules in, which needs none.
Knows nothing about answers. Invariant: a quarter of the documents is left out of the store, and their questions are
asked as well: about something like what is there, and nothing that is.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from hybridqa.answering.answerer import ROUTING_PASSAGES
from hybridqa.config import Settings
from hybridqa.errors import InputError
from hybridqa.evaluation.calibration import (
    Floats,
    area_under_roc,
    brier,
    expected_calibration_error,
    reliability,
)
from hybridqa.evaluation.datasets import (
    EvalDocument,
    EvalQuestion,
    cluster_of,
    draw,
    first_versions,
    read_documents,
    read_questions,
)
from hybridqa.evaluation.provenance import provenance
from hybridqa.evaluation.statistics import Interval, mean_interval, statistic_interval
from hybridqa.evaluation.stores import Tell, own_settings, store_of
from hybridqa.pipeline import HybridQA
from hybridqa.routing.evidence import DocumentEvidence
from hybridqa.types import DEFAULT_COLLECTION

LEFT_OUT = 4  # one document of so many
ON, NEAR, FAR = "its document is there", "its document was left out", "of another collection"
Strings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RoutingPlan:
    """What is measured."""

    docs: Path
    questions_file: Path
    documents: list[EvalDocument]  # those in the store
    asked: list[tuple[str, EvalQuestion]]  # each with its kind
    left_out: int  # documents
    threshold: float
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Routed:
    """What one question was routed to."""

    kind: str
    evidence: float  # the strongest document's
    right: bool  # whether that document is one of the question's
    right_evidence: float  # the strongest of the question's own documents
    single: bool  # whether it has just one
    seconds: float


def make_plan(
    docs: Path, questions: Path, settings: Settings, *, most: int = 400, seed: int = 0, far: Path | None = None
) -> RoutingPlan:
    """At most `most` questions of each kind (0: all); `far` holds questions of another collection."""
    documents, on, near, out = left_out_plan(docs, questions, seed)
    kinds = {
        ON: on,
        NEAR: near,
        FAR: [] if far is None else [q for q in read_questions(far) if not q.unanswerable],
    }
    if not kinds[ON]:
        raise InputError(
            f"{str(questions)!r} has no answerable question about the three quarters of {str(docs)!r} that the store "
            "holds; expected 'doc_ids' that name some of them."
        )
    return RoutingPlan(
        docs,
        questions,
        documents,
        [(kind, q) for kind, qs in kinds.items() for q in draw(qs, most, seed)],
        out,
        settings.module_threshold,
        seed,
        own_settings(settings),
    )


def left_out_plan(
    docs: Path, questions: Path, seed: int
) -> tuple[list[EvalDocument], list[EvalQuestion], list[EvalQuestion], int]:
    """Three quarters of the documents, the questions about them and about the others, and how many those are."""
    versions = read_documents(docs)
    documents = first_versions(versions)
    usable = [q for q in read_questions(questions, versions) if q.doc_ids and not q.unanswerable]
    shuffled = sorted(document.doc_id for document in documents)
    random.Random(seed).shuffle(shuffled)
    out = set(shuffled[: len(shuffled) // LEFT_OUT])
    there = {document.doc_id for document in documents} - out
    return (
        [document for document in documents if document.doc_id in there],
        [q for q in usable if there.issuperset(q.doc_ids)],
        [q for q in usable if out.issuperset(q.doc_ids)],
        len(out),
    )


def run_routing(plan: RoutingPlan, work: Path, tell: Tell) -> dict[str, Any]:
    """The report, as plain data. Raises `StoreError` while another run is at work in the folder."""
    with store_of(plan.documents, work, tell, **plan.settings) as store:
        routed = []
        for place, (kind, question) in enumerate(plan.asked):
            tell("routing", place, len(plan.asked))
            routed.append(_routed(store, kind, question))
    clusters = [cluster_of(question) for _, question in plan.asked]
    return {
        **provenance(plan.docs, plan.questions_file, plan.seed),
        "suite": "routing",
        "settings": dict(plan.settings),
        "threshold": plan.threshold,
        "data": {
            "documents": len(plan.documents),
            "documents_left_out": plan.left_out,
            "questions": {kind: sum(one.kind == kind for one in routed) for kind in (ON, NEAR, FAR)},
        },
        **scores(routed, clusters, plan.threshold, plan.seed),
    }


def _routed(store: HybridQA, kind: str, question: EvalQuestion) -> Routed:
    sought = store.seeker.look(
        question.question, k=ROUTING_PASSAGES, collection=DEFAULT_COLLECTION, history=question.history
    )
    begun = time.perf_counter()
    evidence = DocumentEvidence(sought.passages).of_each()
    seconds = time.perf_counter() - begun
    best = next(iter(evidence), None)
    return Routed(
        kind,
        0.0 if best is None else evidence[best],
        kind == ON and best in question.doc_ids,
        max((evidence.get(doc_id, 0.0) for doc_id in question.doc_ids), default=0.0) if kind == ON else 0.0,
        len(question.doc_ids) == 1,
        seconds,
    )


def scores(routed: Sequence[Routed], clusters: Sequence[str], threshold: float, seed: int) -> dict[str, Any]:
    """What the evidence is worth, with intervals over documents."""
    said_N = np.array([one.evidence for one in routed])
    was_N = np.array([float(one.right) for one in routed])

    def share(outcome: list[bool], chosen: list[bool]) -> Interval | None:
        kept = [place for place, wanted in enumerate(chosen) if wanted]
        if not kept:
            return None
        return mean_interval([float(outcome[place]) for place in kept], [clusters[place] for place in kept], seed=seed)

    def of(statistic: Any) -> Interval:
        def value(places: Any) -> float:
            found: float = statistic(said_N[places], was_N[places])
            return found

        return statistic_interval(value, len(routed), clusters, seed=seed)

    on = [one.kind == ON for one in routed]
    passes = [one.evidence >= threshold for one in routed]
    return {
        "right_document_first": share([one.right for one in routed], on),
        "right_document_first_of_one": share(
            [one.right for one in routed], [one.kind == ON and one.single for one in routed]
        ),
        "right_plugged_in": share([one.right and passed for one, passed in zip(routed, passes, strict=True)], on),
        "wrong_plugged_in": share([not one.right and passed for one, passed in zip(routed, passes, strict=True)], on),
        "stranger_plugged_in": {kind: share(passes, [one.kind == kind for one in routed]) for kind in (NEAR, FAR)},
        "calibration": {
            "expected_calibration_error": of(expected_calibration_error),
            "brier": of(brier),
            "area_under_roc": of(area_under_roc),
            "reliability": reliability(said_N, was_N),
        },
        "by_threshold": {str(at): _at(said_N, was_N, on, at) for at in (0.2, 0.35, 0.5, 0.65, 0.8)},
        "withheld_below": {
            str(at): {
                **{
                    kind: share([one.evidence < at for one in routed], [one.kind == kind for one in routed])
                    for kind in (ON, NEAR, FAR)
                },
                "right document first": share([one.right and one.evidence < at for one in routed], on),
            }
            for at in (0.02, 0.05, 0.1, 0.2)
        },
        "seconds": {
            "p50": median(one.seconds for one in routed),
            "p95": quantiles([one.seconds for one in routed], n=20)[-1] if len(routed) > 1 else routed[0].seconds,
        },
    }


def _at(said_N: Floats, was_N: Floats, on: Sequence[bool], threshold: float) -> dict[str, float | None]:
    """What another threshold would do."""
    on_N, passes_N = np.array(on), said_N >= threshold
    return {
        "right": float((passes_N & (was_N > 0))[on_N].mean()),
        "wrong": float((passes_N & (was_N == 0))[on_N].mean()),
        "strangers": float(passes_N[~on_N].mean()) if (~on_N).any() else None,
    }
