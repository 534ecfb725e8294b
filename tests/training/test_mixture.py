"""Which configuration each question gets: the shares, and that nothing else decides it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, fields

import pytest

from hybridqa.errors import ConfigError
from hybridqa.training.mixture import CONFIGURATIONS, SERVING, Mixture, Plugged

QUESTIONS = [f"question {number}" for number in range(4000)]


def test_every_configuration_has_a_share_and_questions_in_that_proportion() -> None:
    mixture = Mixture()
    assert [field.name for field in fields(Mixture)] == list(CONFIGURATIONS)
    drawn = Counter(mixture.draw(qid, 0) for qid in QUESTIONS)
    for name, share in asdict(mixture).items():
        assert drawn[name] / len(QUESTIONS) == pytest.approx(share, abs=0.025)


def test_a_question_is_asked_alike_whatever_others_there_are() -> None:
    mixture = Mixture()
    assert mixture.draw("question 7", 3) == mixture.draw("question 7", 3)
    assert [mixture.draw(qid, 0) for qid in QUESTIONS] != [mixture.draw(qid, 1) for qid in QUESTIONS]


def test_without_modules_there_are_passages_alone_and_as_many_abstentions() -> None:
    plain = Mixture().without_modules()
    drawn = {plain.draw(qid, 0) for qid in QUESTIONS}
    assert drawn == {"passages", "neither"}
    assert plain.neither == Mixture().neither
    assert plain.without_modules() == plain


@pytest.mark.parametrize(("module", "other"), [(False, True), (True, False), (False, False)])
def test_what_a_document_lacks_is_never_drawn(module: bool, other: bool) -> None:
    drawn = {Mixture().draw(qid, 0, module=module, other=other) for qid in QUESTIONS}
    plugged = {CONFIGURATIONS[name][1] for name in drawn}
    assert (Plugged.RIGHT in plugged) == module
    assert (Plugged.WRONG in plugged) == other
    assert SERVING[1] in drawn


@pytest.mark.parametrize("share", [0.5, -0.1, float("nan")])
def test_shares_that_are_none_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        Mixture(neither=share)
