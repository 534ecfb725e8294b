"""The gate: more than noise passes; noise, harm, drift and what another module destroys do not."""

from __future__ import annotations

import json
import random
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridqa.training.gate import Limits, Scores, judge, paired_interval

NOTHING = Scores((), ())


def scores(count: int, seed: int, gain: float, noise: float, form: float = 0.0) -> tuple[Scores, Scores]:
    """No module's scores and a module's, which gives right answers `gain` more and all of that form `form` more."""
    rng = random.Random(seed)
    right = [rng.uniform(-6, -2) for _ in range(count)]
    wrong = [(rng.uniform(-6, -2), rng.uniform(-6, -2)) for _ in range(count)]
    return Scores(tuple(right), tuple(wrong)), Scores(
        tuple(value + gain + form + rng.gauss(0, noise) for value in right),
        tuple((first + form, second + form) for first, second in wrong),
    )


def test_a_clear_gain_passes_and_is_on_record() -> None:
    base, module = scores(30, 0, 1.0, 0.5)
    reads = scores(8, 1, 0.0, 0.1)
    report = judge(base, module, *reads)
    assert report.passed and 0 < report.gain_low < report.gain < report.gain_high
    assert report.gain == pytest.approx(report.module_margin - report.base_margin)
    assert report.as_dict()["questions"] == 30
    assert report.with_passage_questions == 8
    assert report == judge(base, module, *reads)


def test_noise_harm_and_too_little_evidence_do_not_pass() -> None:
    assert not judge(*scores(30, 1, 0.0, 0.5), *scores(8, 1, 0.0, 0.5)).passed
    report = judge(*scores(30, 2, -1.0, 0.1), NOTHING, NOTHING)
    assert not report.passed and "does not know" in report.reason
    assert "held-out" in judge(*scores(3, 1, 9.0, 0.0), NOTHING, NOTHING).reason
    assert not judge(NOTHING, NOTHING, NOTHING, NOTHING).passed


def test_the_form_of_an_answer_is_no_knowledge() -> None:
    """A module that gives every short answer six nats more, right or wrong, has learned nothing of its document."""
    report = judge(*scores(30, 4, 0.0, 0.3, form=6.0), NOTHING, NOTHING)
    assert report.module_logprob - report.base_logprob > 5
    assert not report.passed


def test_spoilt_reading_does_not_pass_however_much_is_known() -> None:
    report = judge(*scores(30, 5, 2.0, 0.5), *scores(12, 6, -1.0, 0.3))
    assert not report.passed and report.gain_low > 0
    assert "spoils answers from the right passage" in report.reason


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = random.Random(3)
    covered = 0
    for trial in range(200):
        low, high = paired_interval([rng.gauss(0.3, 1.0) for _ in range(40)], seed=trial)
        covered += low <= 0.3 <= high
    assert 180 <= covered <= 199


def test_drift_beyond_its_limit_does_not_pass_and_noise_around_it_does() -> None:
    knowing = (*scores(30, 0, 2.0, 0.5), *scores(8, 1, 0.0, 0.1))
    limits = Limits(drift=0.5)
    rng = random.Random(4)
    far = [0.8 + rng.uniform(-0.2, 0.2) for _ in range(24)]
    report = judge(*knowing, drifts=far, limits=limits)
    assert not report.passed and report.leaves_alone == "failed" and report.knows == report.reads == "passed"
    assert report.drift_low > report.limit_drift == 0.5 and "off its topic" in report.reason
    assert report.drift == pytest.approx(sum(far) / 24) and report.drift_questions == 24
    assert judge(*knowing, drifts=[value - 0.6 for value in far], limits=limits).passed
    noisy = [0.0] * 18 + [3.0] * 6  # a mean of 0.75, of which a few questions are the whole
    assert judge(*knowing, drifts=noisy, limits=limits).passed
    assert judge(*knowing).leaves_alone.startswith("not checked")


def test_what_is_lost_beside_another_module_counts_by_its_share_of_the_gain() -> None:
    base, module = scores(30, 0, 2.0, 0.3)
    reads = scores(8, 1, 0.0, 0.1)

    def beside(loss: float, seed: int = 9, noise: float = 0.2) -> Scores:
        rng = random.Random(seed)
        return Scores(tuple(value - loss + rng.gauss(0, noise) for value in module.right), module.wrong)

    limits = Limits(composition=0.5)
    lost = judge(base, module, *reads, composed=[beside(1.8)], limits=limits)
    assert not lost.passed and lost.composes == "failed" and lost.composition_excess_low > 0
    assert lost.composition_loss_low < lost.composition_loss < lost.composition_loss_high
    assert lost.composition_excess == pytest.approx(lost.composition_loss - 0.5 * lost.gain)
    assert "beside another module" in lost.reason
    kept = judge(base, module, *reads, composed=[beside(0.2), beside(0.3, seed=8)], limits=limits)
    assert kept.passed and kept.composes == "passed" and kept.composition_modules == 2
    assert judge(base, module, *reads, composed=[beside(1.2, noise=6.0)], limits=limits).passed  # noise alone
    alone = judge(base, module, *reads)
    assert alone.passed and alone.composes == "not checked: no other module"
    assert judge(base, module, *reads, composed=[beside(1.8)], limits=Limits(composition=1.0)).passed


def test_the_limits_and_the_verdict_of_each_check_are_in_a_report_that_is_flat() -> None:
    limits = Limits(drift=0.4, harm=0.1)
    report = judge(*scores(30, 0, 2.0, 0.5), *scores(8, 1, 0.0, 0.1), limits=limits).as_dict()
    assert {name: report[f"limit_{name}"] for name in asdict(limits)} == asdict(limits)
    assert all(isinstance(value, bool | int | float | str) for value in report.values())
    assert json.loads(json.dumps(report)) == report
    few = judge(*scores(3, 0, 2.0, 0.5), NOTHING, NOTHING).as_dict()
    assert few.keys() == report.keys() and few["limit_questions"] == limits.questions


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 999), st.integers(0, 12), st.floats(-2, 2), st.floats(0, 3), st.lists(st.floats(0, 4), max_size=9)
)
def test_the_same_scores_give_the_same_verdict(
    seed: int, count: int, gain: float, loss: float, drifts: list[float]
) -> None:
    base, module = scores(count, seed, gain, 0.5)
    reads = scores(count // 2, seed + 1, gain / 2, 0.5)
    composed = [Scores(tuple(value - loss for value in module.right), module.wrong)]
    first, again = (judge(base, module, *reads, drifts=drifts, composed=composed, seed=seed) for _ in range(2))
    assert first == again
    if first.knows == "failed" or "failed" in (first.reads, first.leaves_alone, first.composes):
        assert not first.passed
    else:
        assert first.passed
