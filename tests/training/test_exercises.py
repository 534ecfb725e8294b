"""Exercises over a real store's passages: what stands in their prompts, and what is to be said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from towns import write_towns

from hybridqa import HybridQA
from hybridqa.answering.prompt import INSTRUCTION_CLOSED, INSTRUCTION_SOURCES, UNKNOWN, PromptBuilder, messages_for
from hybridqa.answering.refusal import is_refusal
from hybridqa.evaluation.datasets import EvalQuestion, read_documents, read_questions
from hybridqa.evaluation.metrics import contains
from hybridqa.models import ModelFolder
from hybridqa.training.exercises import UNANSWERABLE, Exercise, ExerciseWriter
from hybridqa.training.mixture import CONFIGURATIONS, Mixture, Plugged, Sources

TOWNS = [f"town-{place}" for place in range(4)]
BUILT = EvalQuestion("q", "When was the bridge of Oskvar built?", ("1902",), ("town-1",))


@pytest.fixture(scope="module")
def store(tiny_model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HybridQA]:
    """Four towns, several passages each."""
    folder = tmp_path_factory.mktemp("towns")
    docs, _ = write_towns(folder, count=4)
    settings = {"model": str(tiny_model.path), "engine": "reference", "max_model_len": 512, "passage_tokens": 24}
    with HybridQA.open(folder / "store", create=True, **settings) as qa:
        for document in read_documents(docs):
            qa.add_text(document.doc_id, document.text, title=document.title)
        yield qa


@pytest.fixture
def questions(tmp_path: Path) -> list[EvalQuestion]:
    return read_questions(write_towns(tmp_path, count=4)[1])


def writer(
    store: HybridQA, modules: Sequence[str] = TOWNS, passages: int = 4, answer_tokens: int = 12
) -> ExerciseWriter:
    return ExerciseWriter(
        lambda question: store.searcher.search(question, k=8, collection="default"),
        lambda doc_id: store.catalog.document_passages("default", doc_id),
        store.prompts,
        modules=modules,
        passages=passages,
        max_answer_tokens=answer_tokens,
        seed=0,
    )


def written(found: Exercise | str) -> Exercise:
    assert isinstance(found, Exercise), found
    return found


def test_the_sentence_of_an_abstention_is_the_one_that_the_prompt_asks_for() -> None:
    assert INSTRUCTION_SOURCES.endswith(f"say: {UNKNOWN}") and INSTRUCTION_CLOSED.endswith(f"say: {UNKNOWN}")
    assert is_refusal(UNKNOWN)


def test_every_configuration_holds_what_it_says(store: HybridQA, questions: list[EvalQuestion]) -> None:
    made = [exercise for question in questions for exercise in writer(store).every(question)]
    by_id = {question.qid: question for question in questions}
    assert {exercise.configuration for exercise in made} == {*CONFIGURATIONS, UNANSWERABLE}
    for exercise in made:
        question = by_id[exercise.qid]
        holding = [number for number, text in enumerate(exercise.sources, 1) if contains(text, question.answers)]
        if exercise.configuration == UNANSWERABLE:
            assert exercise.sources and exercise.target == UNKNOWN and exercise.module == exercise.doc_id
            continue
        sources, plugged = CONFIGURATIONS[exercise.configuration]
        assert bool(exercise.sources) == (sources is not Sources.NONE)
        assert sources is Sources.FOUND or not holding
        assert exercise.module is None if plugged is Plugged.NONE else exercise.module in TOWNS
        assert (exercise.module == exercise.doc_id) == (plugged is Plugged.RIGHT)
        if holding:  # each town's answer stands in one place
            assert exercise.target == f"{question.answers[0]} [{holding[0]}]"
        else:
            assert exercise.target == (question.answers[0] if plugged is Plugged.RIGHT else UNKNOWN)


def test_a_prompt_is_the_one_that_would_be_served(store: HybridQA) -> None:
    exercise = written(writer(store).write(BUILT, "passages"))
    prompts: PromptBuilder = store.prompts
    plan = store.answerer_ready().plan(BUILT.question, {"mode": "retrieval"})
    assert plan.prompt is not None
    assert prompts.encode(messages_for(exercise.question, exercise.sources)) == plan.prompt.token_ids
    number = int(exercise.target.split("[")[1].rstrip("]"))
    assert "1902" in plan.prompt.passages[number - 1].passage.text


def test_the_citation_is_of_the_passage_that_the_question_is_about(store: HybridQA) -> None:
    """Crowns are spoken of in every town: only the town's own passage is gold."""
    question = EvalQuestion("q", "How many crowns did the bridge of Oskvar cost?", ("crowns",), ("town-1",))
    exercise = written(writer(store).write(question, "passages"))
    number = int(exercise.target.split("[")[1].rstrip("]"))
    assert "11,000 crowns" in exercise.sources[number - 1]
    assert sum("crowns" in source for source in exercise.sources) > 1


def test_an_answer_in_other_words_is_cited_where_its_words_are(store: HybridQA) -> None:
    question = EvalQuestion("q", "What does the museum keep?", ("It keeps 307 lamps of clay",), ("town-1",))
    exercise = written(writer(store, answer_tokens=40).write(question, "passages"))
    number = int(exercise.target.split("[")[1].rstrip("]"))
    assert "307 clay lamps" in exercise.sources[number - 1]


def test_what_cannot_be_judged_is_dropped_and_said(store: HybridQA) -> None:
    free = replace(BUILT, answers=("nobody will ever know",))
    assert "no passage of its document holds" in str(writer(store).write(free, "passages"))
    assert written(writer(store).write(free, "module")).target == "nobody will ever know"
    long = replace(BUILT, answers=("1902 " * 30,))
    assert "max_answer_tokens" in str(writer(store).write(long, "passages"))
    elsewhere = replace(BUILT, question="What did the bridge of Tarnwick cost?", answers=("crowns",))
    assert "another document's" in str(writer(store, passages=1).write(elsewhere, "passages"))


def test_without_a_module_nothing_has_one(store: HybridQA, questions: list[EvalQuestion]) -> None:
    alone = writer(store, modules=())
    made = [alone.draw(question, Mixture()) for question in questions]
    assert {written(found).module for found in made} == {None}
    assert {written(found).configuration for found in made} <= {"passages", "neither", UNANSWERABLE}
    assert [alone.draw(question, Mixture()) for question in questions] == made
    one = writer(store, modules=["town-1"])
    assert {exercise.configuration for exercise in one.every(BUILT)} == {*CONFIGURATIONS} - {"passages_wrong_module"}


def test_a_question_has_another_configuration_in_another_turn(store: HybridQA) -> None:
    every = writer(store)
    drawn = [written(every.draw(BUILT, Mixture(), turn)).configuration for turn in range(12)]
    assert len(set(drawn)) > 2
    assert [written(every.draw(BUILT, Mixture(), turn)).configuration for turn in range(12)] == drawn
