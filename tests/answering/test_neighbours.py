"""Neighbours of the passages in a prompt: which text they bring, where they stop, and what they never cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from hybridqa import HybridQA, Mode
from hybridqa.answering.neighbours import Neighbours
from hybridqa.answering.prompt import PromptBuilder, source_text
from hybridqa.errors import QuestionError
from hybridqa.models import ModelFolder, load_tokenizer
from hybridqa.types import Passage, ScoredPassage

TEXT = "\n\n".join(
    f"{thing} of Tarn was built by {maker} in {1900 + place} and is open to everyone who comes on a Sunday."
    for place, (thing, maker) in enumerate(
        [
            *[("The kettle museum", "Maren Holt"), ("The ferry house", "Anna Voss"), ("The lamp foundry", "Per Lund")],
            *[("The old quarry", "Ida Brook"), ("The north theatre", "Olaf Rye"), ("The orchard wall", "Siv Dahl")],
        ]
    )
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder) -> Iterator[HybridQA]:
    settings: dict[str, Any] = {"model": str(tiny_model.path), "engine": "reference", "max_answer_tokens": 4}
    folder = tmp_path_factory.mktemp("neighbours")
    with HybridQA.open(folder, create=True, passage_tokens=24, context_tokens=600, **settings) as qa:
        qa.add_text("town", TEXT)
        qa.add_text("jug", "The Lumen jug holds two litres.")
        yield qa


def passages_of(store: HybridQA) -> list[Passage]:
    return store.catalog.document_passages("default", "town")


def scored(passage: Passage) -> ScoredPassage:
    return ScoredPassage(passage, 1.0)


def test_a_passage_is_one_stretch_of_its_document_with_what_stands_beside_it(store: HybridQA) -> None:
    passages = passages_of(store)
    assert len(passages) >= 6
    wide = Neighbours(store.catalog, 1).wider(scored(passages[2]), []).passage
    assert (wide.start, wide.end) == (passages[1].start, passages[3].end)
    assert wide.text == TEXT[wide.start : wide.end] and wide.passage_id == passages[2].passage_id
    first = Neighbours(store.catalog, 99).wider(scored(passages[0]), []).passage
    assert first.text == TEXT[passages[0].start : passages[-1].end]
    assert Neighbours(store.catalog, 0).wider(scored(passages[2]), []) == scored(passages[2])


def test_it_stops_where_another_passage_of_the_prompt_begins(store: HybridQA) -> None:
    passages = passages_of(store)
    wide = Neighbours(store.catalog, 3).wider(scored(passages[3]), [scored(passages[2]), scored(passages[5])]).passage
    assert (wide.start, wide.end) == (passages[3].start, passages[4].end)
    elsewhere = [scored(replace(passages[2], doc_id="jug"))]
    assert Neighbours(store.catalog, 1).wider(scored(passages[3]), elsewhere).passage.start == passages[2].start


def test_of_a_document_that_has_changed_or_gone_nothing_is_added(store: HybridQA) -> None:
    passage = passages_of(store)[2]
    for other in (replace(passage, text="Something else."), replace(passage, doc_id="gone")):
        assert Neighbours(store.catalog, 1).wider(scored(other), []) == scored(other)


def test_answers_have_them_where_wanted_and_room_and_no_text_twice(store: HybridQA) -> None:
    question = "Who built the lamp foundry of Tarn?"
    bare = store.ask(question, mode=Mode.RETRIEVAL, k=2)
    wide = store.ask(question, mode=Mode.RETRIEVAL, k=2, neighbours=2)
    assert [one.passage.passage_id for one in wide.passages] == [one.passage.passage_id for one in bare.passages]
    assert wide.usage.prompt_tokens > bare.usage.prompt_tokens
    spans = sorted((one.passage.start, one.passage.end) for one in wide.passages)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    for one in wide.passages:
        assert one.passage.text == TEXT[one.passage.start : one.passage.end]
    for citation in wide.citations:
        assert citation.quote == TEXT[citation.start : citation.end]
    with pytest.raises(QuestionError, match="neighbours=-1"):
        store.ask(question, neighbours=-1)


def test_no_passage_loses_its_place_to_the_neighbours_of_a_better_one(store: HybridQA) -> None:
    passages = passages_of(store)
    found = [scored(passages[0]), scored(passages[3])]
    tokenizer = load_tokenizer(store.model.path)
    lengths = []
    for context in (10_000, 120, 1):
        prompts = PromptBuilder(tokenizer, max_model_len=4096, context_tokens=context)
        bare = prompts.build("Who?", (), found, max_answer_tokens=4)
        wide = prompts.build("Who?", (), found, max_answer_tokens=4, wider=Neighbours(store.catalog, 2).wider)
        assert [one.passage.passage_id for one in wide.passages] == [one.passage.passage_id for one in bare.passages]
        sources = sum(len(tokenizer.encode(source_text(one.passage))) for one in wide.passages)
        assert sources <= context or wide == bare
        lengths.append(len(wide.token_ids))
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) >= 3
