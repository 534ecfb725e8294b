"""The grid's report: scores with intervals, differences, what modules recover, modules, and where it all came from.

Knows nothing about how answers were made. Invariant: every interval is a bootstrap over documents, widened where they
are few, and two arms are compared on the same questions only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from hybridqa.evaluation.arms import comparisons
from hybridqa.evaluation.datasets import cluster_of
from hybridqa.evaluation.grid import ArmAnswers, GridResult
from hybridqa.evaluation.metrics import METRICS
from hybridqa.evaluation.provenance import command_line, without_folders
from hybridqa.evaluation.statistics import Interval, mean_interval, paired_difference, ratio_interval, widened
from hybridqa.files import sha256_file
from hybridqa.provenance import commit, hardware

LOGPROB = "answer_logprob"
MEASURES = (*METRICS, LOGPROB)
Scores = dict[str, list[float]]  # by measure, in the order of the questions


def make_report(result: GridResult) -> dict[str, Any]:
    """The whole report as plain data, fit for JSON once what is not a number is null."""
    plan = result.plan
    clusters = [cluster_of(question) for question in plan.questions]
    scores = {answers.arm.name: _scores(result, answers) for answers in result.answers}
    return {
        **without_folders(_provenance(result)),
        "arms": {answers.arm.name: _arm(answers, scores[answers.arm.name], clusters) for answers in result.answers},
        "absent": plan.absent,
        "differences": {
            f"{one} - {other}": {
                measure: _wide(paired_difference(scores[one][measure], scores[other][measure], clusters), clusters)
                for measure in MEASURES
            }
            for one, other in comparisons(plan.arms)
        },
        "recovered": {
            arm.name: _recovered(scores[arm.name], scores["gold"], scores.get("closed"), clusters)
            for arm in plan.arms
            if arm.closed_book and "gold" in scores
        },
        "modules": {objective: _modules(result, objective) for objective in plan.trained},
        "timings": result.timings,
    }


def _provenance(result: GridResult) -> dict[str, Any]:
    plan, options = result.plan, result.plan.options
    return {
        "command": command_line(),
        "commit": commit(),
        "hardware": hardware(),
        "model": result.model,
        "seed": plan.seed,
        "settings": result.settings,
        "recipe": result.recipe,
        "objectives": plan.objectives,
        "route": options.route,
        "extractors": {
            name: found and {"folder": found.adapter.path, "sha256": found.adapter.digest[-64:]}
            for name, found in (("extractor", plan.extractor), ("extractor_rag", plan.extractor_rag))
        },
        "data": {
            "documents": {"file": options.docs, "sha256": sha256_file(options.docs), "count": len(plan.documents)},
            "questions": {
                "file": options.questions,
                "sha256": sha256_file(options.questions),
                "asked": len(plan.questions),
                "unanswerable_left_out": plan.unanswerable,
                "without_document_left_out": plan.without_document,
                "per_document": options.questions_per_document,
            },
            "documents_asked_about": len({cluster_of(question) for question in plan.questions}),
        },
        "work": result.work,
    }


def _scores(result: GridResult, answers: ArmAnswers) -> Scores:
    pairs = list(zip(answers.given, result.plan.questions, strict=True))
    scores = {
        name: [metric(given.text, question.answers) for given, question in pairs] for name, metric in METRICS.items()
    }
    return {**scores, LOGPROB: [given.answer_logprob for given in answers.given]}


def _arm(answers: ArmAnswers, scores: Scores, clusters: Sequence[str]) -> dict[str, Any]:
    return {
        "n": len(answers.given),
        **{measure: _wide(mean_interval(scores[measure], clusters), clusters) for measure in MEASURES},
        "prompt_tokens": statistics.fmean(given.prompt_tokens for given in answers.given),
        "answer_tokens": statistics.fmean(given.completion_tokens for given in answers.given),
        "with_adapter": statistics.fmean(asked.adapter is not None for asked in answers.asked),
        "known_before": answers.known,
        "seconds": answers.seconds,
    }


def _recovered(
    arm: Scores, gold: Scores, closed: Scores | None, clusters: Sequence[str]
) -> dict[str, dict[str, Interval]]:
    """The share of the gold arm's score (a log-probability is none), and of its gain over the closed arm."""
    of_score = {measure: share(arm[measure], gold[measure], clusters) for measure in METRICS}
    if closed is None:
        return {"of_score": of_score}

    def gain(scores: Scores, measure: str) -> list[float]:
        return [mine - base for mine, base in zip(scores[measure], closed[measure], strict=True)]

    of_gain = {measure: share(gain(arm, measure), gain(gold, measure), clusters) for measure in MEASURES}
    return {"of_score": of_score, "of_gain": of_gain}


def share(part: Sequence[float], whole: Sequence[float], clusters: Sequence[str]) -> Interval:
    """The share of the one in the other; not a number where there was nothing to have a share of."""
    if sum(whole) <= 0:
        return Interval(math.nan, math.nan, math.nan)
    return _wide(ratio_interval(part, whole, clusters), clusters)


def _wide(interval: Interval, clusters: Sequence[str]) -> Interval:
    return widened(interval, len(set(clusters)))


def _modules(result: GridResult, objective: str) -> dict[str, Any]:
    """What the modules of one objective cost, and what their gate said."""
    modules = [module for module in result.modules.values() if module.objective == objective]
    trained = [module.report for module in modules if module.adapter is not None]
    return {
        "documents": len(modules),
        "trained": len(trained),
        "passed": sum(report["passed"] for report in trained),
        **{
            name: mean_interval(known)
            if (known := [each[name] for each in trained if each[name] is not None])
            else None
            for name in ("seconds", "synthesis_seconds", "mb")
        },
        "each": {module.doc_id: module.report for module in modules},
    }


def cell(interval: Interval | None) -> str:
    """An interval for people: its value, then its bounds where it has any."""
    if interval is None or math.isnan(interval.mean):
        return "-"
    bounds = "" if math.isnan(interval.low) else f" ({interval.low:.2f} to {interval.high:.2f})"
    return f"{interval.mean:.3f}{bounds}"
