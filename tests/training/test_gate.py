"""The gate: more than noise passes, noise and harm do not."""

from __future__ import annotations

import random

import pytest

from hybridqa.training.gate import Scores, judge, paired_interval

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
