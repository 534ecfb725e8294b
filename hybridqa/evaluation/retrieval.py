"""How often search finds the right document: hybridqa's own against words alone, vectors alone and their ranks fused.

Knows nothing about answers. Invariant: every way of searching sees the same store, questions and passages, and ranks
documents by their best passage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

from hybridqa.config import Settings
from hybridqa.errors import InputError
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
from hybridqa.evaluation.statistics import Interval, mean_interval, paired_difference
from hybridqa.evaluation.stores import Tell, own_settings, store_of
from hybridqa.evaluation.ways import OURS, Ways
from hybridqa.retrieval.followup import leans
from hybridqa.types import DEFAULT_COLLECTION

KS = (1, 2, 4, 5, 8)  # documents
Ranked = list[str]  # doc ids, best first


@dataclass(frozen=True, slots=True)
class RetrievalPlan:
    """What is measured."""

    docs: Path
    questions_file: Path
    documents: list[EvalDocument]
    questions: list[EvalQuestion]
    left_out: Mapping[str, int]  # questions that are not asked, by reason
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)  # a user's own, where they are not the defaults
    rerank: int = 0  # so many passages in a further way; 0: there is none
    hops: int = 1  # searches in a further way; 1: there is none
    rewrite: bool = False  # whether there is a further way in which follow-ups are rewritten

    @property
    def conversations(self) -> bool:
        """Whether some questions are of one."""
        return any(question.history for question in self.questions)


def make_plan(
    docs: Path,
    questions: Path,
    settings: Settings,
    *,
    most: int = 400,
    seed: int = 0,
    rerank: int = 0,
    hops: int = 1,
    rewrite: bool = False,
) -> RetrievalPlan:
    """At most `most` answerable questions (0: all), over all documents. Raises `InputError`."""
    versions = read_documents(docs)
    documents = first_versions(versions)
    known = {document.doc_id for document in documents}
    every = read_questions(questions, versions)
    usable = [q for q in every if q.doc_ids and not q.unanswerable and known.issuperset(q.doc_ids)]
    if not usable:
        raise InputError(
            f"{str(questions)!r} has no answerable question with its documents in {str(docs)!r}; expected 'doc_ids' "
            "that name some of them."
        )
    left_out = {
        "unanswerable": sum(q.unanswerable for q in every),
        "without a document": sum(not q.doc_ids and not q.unanswerable for q in every),
        "of a later version": sum(
            bool(q.doc_ids) and not q.unanswerable and not known.issuperset(q.doc_ids) for q in every
        ),
    }
    own, drawn = own_settings(settings), draw(usable, most, seed)
    if rewrite and not any(question.history for question in drawn):
        raise InputError(
            f"no question of {str(questions)!r} that is asked has a 'history'; expected some that do, or no --rewrite."
        )
    return RetrievalPlan(docs, questions, documents, drawn, left_out, seed, own, rerank, hops, rewrite)


def run_retrieval(plan: RetrievalPlan, work: Path, tell: Tell) -> dict[str, Any]:
    """The report, as plain data. Raises `StoreError` while another run is at work in the folder."""
    with store_of(plan.documents, work, tell, **plan.settings) as store:
        searches = Ways(store)
        ways = searches.of(conversations=plan.conversations, rerank=plan.rerank, hops=plan.hops, rewrite=plan.rewrite)
        ranked: dict[str, list[Ranked]] = {name: [] for name in ways}
        for place, question in enumerate(plan.questions):
            tell("searching", place, len(plan.questions))
            for name, way in ways.items():
                ranked[name].append(list(dict.fromkeys(passage.doc_id for passage in way(question))))
        embedder = store.embedder.fingerprint
        passages = len(store.catalog.vector_ids(DEFAULT_COLLECTION))
    return {
        **provenance(plan.docs, plan.questions_file, plan.seed),
        "suite": "retrieval",
        "embedder": embedder,
        "settings": dict(plan.settings),
        "data": {
            "documents": len(plan.documents),
            "passages": passages,
            "reranked": plan.rerank,
            "hops": plan.hops,
            "rewritten": dict(searches.rewritten),
            "questions": len(plan.questions),
            "left_out": dict(plan.left_out),
        },
        **scores(ranked, plan.questions, plan.seed),
        "seconds": _seconds(searches.timings),
    }


def scores(ranked: Mapping[str, Sequence[Ranked]], questions: Sequence[EvalQuestion], seed: int) -> dict[str, Any]:
    """Recall of each way by k, and how far ours is ahead of each and of the better of words and vectors."""
    clusters = [cluster_of(question) for question in questions]
    recalls = {
        name: {
            k: [recall(found, question.doc_ids, k) for found, question in zip(lists, questions, strict=True)]
            for k in KS
        }
        for name, lists in ranked.items()
    }
    several = [len(set(q.doc_ids)) > 1 for q in questions]
    better = {k: max(("bm25", "dense"), key=lambda name: fmean(recalls[name][k])) for k in KS}
    kinds = {
        "leans on the conversation": [bool(q.history) and leans(q.question) for q in questions],
        "stands alone": [bool(q.history) and not leans(q.question) for q in questions],
    }
    return {
        "conversations": {
            kind: {
                "questions": sum(chosen),
                **{
                    name: {str(k): _mean_of(by_k[k], chosen, clusters, seed) for k in KS}
                    for name, by_k in recalls.items()
                },
            }
            for kind, chosen in kinds.items()
            if any(chosen)
        },
        "recall": {
            name: {str(k): mean_interval(values, clusters, seed=seed) for k, values in by_k.items()}
            for name, by_k in recalls.items()
        },
        "complete": {  # of the questions of several documents
            name: {str(k): _mean_of(_complete(lists, questions, k), several, clusters, seed) for k in KS}
            for name, lists in ranked.items()
            if any(several)
        },
        "ahead_of": {
            other: {str(k): _ahead(recalls, other, k, clusters, seed) for k in KS} for other in ranked if other != OURS
        }
        | {
            "better of bm25 and dense": {
                str(k): {"way": better[k], **_parts(_ahead(recalls, better[k], k, clusters, seed))} for k in KS
            }
        },
    }


def _complete(lists: Sequence[Ranked], questions: Sequence[EvalQuestion], k: int) -> list[float]:
    """For each question 1 if all of its documents are among the first `k`, else 0."""
    return [float(set(q.doc_ids) <= set(found[:k])) for found, q in zip(lists, questions, strict=True)]


def _mean_of(values: Sequence[float], chosen: Sequence[bool], clusters: Sequence[str], seed: int) -> Interval:
    """The mean over the questions that were chosen."""
    kept = [place for place, wanted in enumerate(chosen) if wanted]
    return mean_interval([values[place] for place in kept], [clusters[place] for place in kept], seed=seed)


def recall(found: Ranked, gold: Sequence[str], k: int) -> float:
    """The share of the gold documents among the first `k`, of as many as could be there."""
    return len(set(found[:k]) & set(gold)) / min(k, len(set(gold)))


def _ahead(
    recalls: Mapping[str, Mapping[int, list[float]]], other: str, k: int, clusters: Sequence[str], seed: int
) -> Interval:
    return paired_difference(recalls[OURS][k], recalls[other][k], clusters, seed=seed)


def _parts(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _seconds(timings: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of each step of our search."""
    return {
        step: {
            "p50": median(spent[step] for spent in timings),
            "p95": quantiles([spent[step] for spent in timings], n=20)[-1] if len(timings) > 1 else timings[0][step],
        }
        for step in timings[0]
    }
