"""The extractor's verdict from scores."""

from __future__ import annotations

import random
from dataclasses import replace

from hybridqa.training.exercises import UNANSWERABLE, Exercise
from hybridqa.training.extractor_gate import ANSWERED, SERVED, judge_extractor


def exercises(names: tuple[str, ...], documents: int = 5, questions: int = 6) -> list[Exercise]:
    return [
        Exercise(f"{doc}-{number}", f"d{doc}", name, "Who?", (), "me", None)
        for doc in range(documents)
        for number in range(questions)
        for name in names
    ]


def test_better_than_none_passes_and_noise_does_not() -> None:
    given = exercises(("passages",))
    rng = random.Random(0)
    base = [rng.gauss(-2, 0.5) for _ in given]
    better = judge_extractor(given, base, [value + 0.5 + rng.gauss(0, 0.2) for value in base])
    assert better.passed and better.checks[SERVED].low > 0 and "better than none on 30 questions" in better.reason
    same = judge_extractor(given, base, [value + rng.gauss(0, 0.5) for value in base])
    assert not same.passed and "not better" in same.reason
    assert not judge_extractor(given, base, [value - 0.5 for value in base]).passed


def test_the_verdict_is_of_questions_as_they_would_be_served() -> None:
    """With the module where there is one: what passages alone gain does not count then."""
    given = exercises(("passages", "module", "passages_module"))
    gains = {"passages": 1.0, "module": 1.0, "passages_module": -0.1}
    report = judge_extractor(given, [0.0] * len(given), [gains[exercise.configuration] for exercise in given])
    assert not report.passed and report.checks[SERVED].questions == 30
    assert report.checks[SERVED].gain == report.checks["passages_module"].gain
    assert report.as_dict()["passages"]["gain"] == 1.0


def test_refusals_do_not_outweigh_answers() -> None:
    given = [*exercises(("passages",)), *(replace(each, qid=f"no {each.qid}") for each in exercises((UNANSWERABLE,)))]
    gains = [2.0 if exercise.configuration == UNANSWERABLE else -0.2 for exercise in given]
    report = judge_extractor(given, [0.0] * len(given), gains)
    assert report.checks[SERVED].low > 0 and not report.passed
    assert report.checks[ANSWERED].questions == 30 and "-0.20 nats" in report.reason
    gains = [-1.0 if exercise.configuration == UNANSWERABLE else 0.9 for exercise in given]
    report = judge_extractor(given, [0.0] * len(given), gains)
    assert report.checks[ANSWERED].low > 0 and not report.passed  # nor answers refusals
    assert judge_extractor(given, [0.0] * len(given), [0.5] * len(given)).passed
    refusals = exercises((UNANSWERABLE,))
    assert "0 documents can be answered" in judge_extractor(refusals, [0.0] * 30, [1.0] * 30).reason


def test_too_few_documents_say_nothing() -> None:
    given = exercises(("passages",), documents=1)
    report = judge_extractor(given, [0.0] * len(given), [1.0] * len(given))
    assert not report.passed and "expected at least 2" in report.reason
    assert not judge_extractor([], [], []).passed
