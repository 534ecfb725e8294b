"""`retrieve`: the best passages, with what speaks for them, and no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridqa import Filter, HybridQA, Message
from hybridqa.errors import CollectionNotFoundError, ModuleNotFoundInStoreError, QuestionError
from hybridqa.models import ModelFolder

QUESTION = "Who designed the Lumen kettle?"
WORDS = " ".join(["It is sold in many towns, and it boils a litre in two minutes."] * 8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder) -> Iterator[HybridQA]:
    settings: dict[str, Any] = {"model": str(tiny_model.path), "engine": "reference", "dtype": "float32"}
    folder = tmp_path_factory.mktemp("retrieve")
    with HybridQA.open(folder, create=True, max_model_len=512, max_answer_tokens=6, **settings) as qa:
        for number in range(9):
            qa.add_text(f"kettle-{number}", f"The Lumen kettle {number} was designed by Maren Holt. {WORDS}")
        qa.add_text("secret", "The vault opens with quillfeather.", collection="vault")
        yield qa


def test_it_finds_k_passages_whatever_a_prompt_would_hold(store: HybridQA) -> None:
    route = store.retrieve(QUESTION, k=9)
    assert len(route.passages) == 9 and route.passages == route.found[:9]
    assert len(store.ask(QUESTION, k=9).passages) < 9  # no prompt has room for them
    assert [one.score for one in route.passages] == sorted((one.score for one in route.passages), reverse=True)
    assert {one.passage.doc_id for one in route.passages} <= set(route.evidence)
    assert len(store.retrieve(QUESTION).passages) == store.settings.passages
    assert len(store.retrieve(QUESTION, k=1000).passages) == 9
    assert asyncio.run(store.aretrieve(QUESTION, k=9)) == route


def test_low_evidence_leaves_nothing_out(store: HybridQA) -> None:
    asked = "How do volcanoes erupt?"
    assert store.ask(asked).abstained
    route = store.retrieve(asked, k=3)
    assert len(route.passages) == 3 and max(route.evidence.values()) < store.settings.abstain_below


def test_the_engine_is_not_started(tmp_path: Path, tiny_model: ModelFolder) -> None:
    with HybridQA.open(tmp_path, create=True, model=str(tiny_model.path), engine="reference") as qa:
        assert qa.retrieve(QUESTION).passages == ()
        qa.add_text("kettle", "The Lumen kettle was designed by Maren Holt.")
        assert len(qa.retrieve(QUESTION).passages) == 1
        assert qa._engine is None and qa._starting is None


def test_options_choose_as_they_do_for_an_answer(store: HybridQA) -> None:
    only = store.retrieve(QUESTION, filter=Filter(doc_ids=("kettle-3",)))
    assert {one.passage.doc_id for one in only.passages} == {"kettle-3"}
    assert {one.passage.doc_id for one in store.retrieve(QUESTION, collection="vault").passages} == {"secret"}
    follows = store.retrieve("Who?", history=[Message("user", "The Lumen kettle 5?")], k=1)
    assert "searched with the question before it" in follows.reason
    reranked = store.retrieve(QUESTION, rerank=3, k=4)
    assert "3 passages reranked" in reranked.reason
    assert [one.likelihood is not None for one in reranked.passages] == [True, True, True, False]


def test_what_cannot_be_used_is_refused_as_ask_refuses_it(store: HybridQA) -> None:
    for wrong in ({"colection": "vault"}, {"temperature": 0.5}, {"mode": "closed"}, {"neighbours": 1}):
        with pytest.raises(TypeError, match=f"no option '{next(iter(wrong))}'"):
            store.retrieve(QUESTION, **wrong)  # type: ignore[arg-type]
    for bad in ({"k": 0}, {"hops": 0}, {"rerank": -1}, {"filter": {"team": "x"}}, {"plugins": "style"}):
        with pytest.raises(QuestionError, match=next(iter(bad))):
            store.retrieve(QUESTION, **bad)  # type: ignore[arg-type]
    for question in ("", "  ", "\ud800"):
        with pytest.raises(QuestionError):
            store.retrieve(question)
    with pytest.raises(CollectionNotFoundError):
        store.retrieve(QUESTION, collection="nowhere")
    with pytest.raises(ModuleNotFoundInStoreError):
        store.retrieve(QUESTION, plugins=["nobody's"])


def test_a_question_may_be_longer_than_the_model_s_window(store: HybridQA) -> None:
    long = f"{QUESTION} {'I ask because I like kettles. ' * 300}"
    with pytest.raises(QuestionError, match="the question"):
        store.ask(long)
    assert store.retrieve(long, rerank=2, rewrite=True).passages
