"""How an answer is decoded: as asked, within the model's window, and refused by name where that cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from hybridqa import Answer, HybridQA
from hybridqa.answering.options import sampling_of
from hybridqa.engine.protocol import Sampling
from hybridqa.errors import QuestionError
from hybridqa.models import ModelFolder

QUESTION = "Who designed the Lumen kettle?"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder) -> Iterator[HybridQA]:
    settings: dict[str, Any] = {"model": str(tiny_model.path), "engine": "reference", "dtype": "float32"}
    with HybridQA.open(
        tmp_path_factory.mktemp("options"), create=True, max_model_len=512, max_answer_tokens=6, **settings
    ) as qa:
        qa.add_text("kettle", "The Lumen kettle was designed by Maren Holt. It costs 89 euros.")
        yield qa


def test_what_is_not_given_is_the_defaults() -> None:
    default = Sampling(max_tokens=9, stop=("END",))
    assert sampling_of({}, default) == default == sampling_of({"temperature": None, "stop": None}, default)
    given = sampling_of({"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "stop": ["x"], "seed": 0}, default)
    assert given == Sampling(3, 0.5, 0.9, ("END", "x"), 0)


def test_an_answer_is_as_long_as_wanted_and_fits(store: HybridQA) -> None:
    assert store.ask(QUESTION).usage.completion_tokens == 6
    short = store.ask(QUESTION, max_tokens=2)
    assert short.usage.completion_tokens == 2 and short.finish_reason == "length"
    long = store.ask(QUESTION, max_tokens=100_000)
    assert long.usage.completion_tokens > 6 and long.usage.total_tokens <= 512
    assert long.usage.prompt_tokens == short.usage.prompt_tokens  # no source was left out for it


def test_a_draw_is_its_seeds_and_a_stop_is_not_in_the_answer(store: HybridQA) -> None:
    drawn = [store.ask(QUESTION, temperature=1.5, seed=seed).text for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    whole = store.ask(QUESTION, max_tokens=40).text
    stop = whole[5:8]
    assert stop not in store.ask(QUESTION, max_tokens=40, stop=[stop]).text


def test_a_stream_says_what_its_answer_says(store: HybridQA) -> None:
    *pieces, answer = store.stream(QUESTION, max_tokens=60)
    assert isinstance(answer, Answer)
    said = [piece.text for piece in pieces if not isinstance(piece, Answer)]
    assert "".join(said) == answer.text and len(said) > 3
    logprob = sum(piece.logprob for piece in pieces if not isinstance(piece, Answer))
    assert answer.probability == pytest.approx(math.exp(logprob / answer.usage.completion_tokens))
    for citation in answer.citations:
        assert all(answer.text[start:end].startswith("[") for start, end in citation.places)


@pytest.mark.parametrize(
    "wrong",
    [
        *[
            {"max_tokens": 0},
            {"max_tokens": "many"},
            {"temperature": -0.1},
            {"temperature": 2.1},
            {"temperature": True},
        ],
        *[{"top_p": 0}, {"top_p": 1.1}, {"seed": 0.5}, {"seed": 2**63}, {"stop": "x"}, {"stop": [""]}, {"stop": [1]}],
    ],
)
def test_what_no_engine_can_decode_by_is_named(store: HybridQA, wrong: Any) -> None:
    with pytest.raises(QuestionError, match=f"{next(iter(wrong))}=.*expected"):
        store.ask(QUESTION, **wrong)
