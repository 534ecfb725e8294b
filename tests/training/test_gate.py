"""The gate: more than noise passes, noise and harm do not."""

from __future__ import annotations

import random

from hybridqa.training.gate import judge, paired_interval


def scores(count: int, seed: int, gain: float, noise: float) -> tuple[list[float], list[float]]:
    rng = random.Random(seed)
    base = [rng.uniform(-6, -2) for _ in range(count)]
    return base, [value + gain + rng.gauss(0, noise) for value in base]


def test_a_clear_gain_passes_and_is_on_record() -> None:
    base, module = scores(30, 0, 1.0, 0.5)
    report = judge(base, module, base[:4], module[:4])
    assert report.passed and 0 < report.gain_low < report.gain < report.gain_high
    assert report.as_dict()["questions"] == 30
    assert report == judge(base, module, base[:4], module[:4])


def test_noise_harm_and_too_little_evidence_do_not_pass() -> None:
    base, module = scores(30, 1, 0.0, 0.5)
    assert not judge(base, module, base, module).passed
    base, module = scores(30, 2, -1.0, 0.1)
    report = judge(base, module, base, module)
    assert not report.passed and "does not beat no module" in report.reason
    assert "held-out" in judge([-1.0] * 3, [0.0] * 3, [], []).reason
    assert not judge([], [], [], []).passed


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = random.Random(3)
    covered = 0
    for trial in range(200):
        low, high = paired_interval([rng.gauss(0.3, 1.0) for _ in range(40)], seed=trial)
        covered += low <= 0.3 <= high
    assert 180 <= covered <= 199
