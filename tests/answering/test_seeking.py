"""Seeking in a real store: with the conversation, reranked by a real engine, and when that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridqa import HybridQA, Message
from hybridqa.answering.rewriting import Rewriter
from hybridqa.answering.seeking import Seeker
from hybridqa.engine.protocol import Engine
from hybridqa.errors import EngineError
from hybridqa.models import ModelFolder
from hybridqa.retrieval.rerank import LikelihoodReranker

TEXTS = {
    "kettle": "The Lumen kettle was designed by Maren Holt. It is sold in Oskvar and costs 89 euros.",
    "museum": "The Veldmoor museum was founded by Anna Voss. A ticket costs 12 crowns.",
    "ferry": "The ferry Solvang crosses the sound in 40 minutes. A bicycle travels free.",
}
TALK = (Message("user", "Tell me about the Lumen kettle."), Message("assistant", "It is a kettle."))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder) -> Iterator[HybridQA]:
    settings: dict[str, Any] = {"model": str(tiny_model.path), "engine": "reference", "dtype": "float32"}
    with HybridQA.open(tmp_path_factory.mktemp("seeking"), create=True, max_model_len=512, **settings) as qa:
        for doc_id, text in TEXTS.items():
            qa.add_text(doc_id, text)
        yield qa


def seeker_of(
    store: HybridQA,
    engine: Callable[[], Awaitable[Engine]],
    *,
    rerank: int = 0,
    history: bool = True,
    hops: int = 1,
    rewrite: bool = False,
) -> Seeker:
    return Seeker(
        store.searcher,
        LikelihoodReranker(store.prompts, engine, max_model_len=512),
        Rewriter(store.prompts, max_model_len=512),
        engine,
        rerank=rerank,
        history=history,
        hops=hops,
        rewrite=rewrite,
    )


def test_a_follow_up_is_searched_for_with_the_question_before_it(store: HybridQA) -> None:
    alone = store.seeker.look("What does it cost?", k=3, collection="default")
    told = store.seeker.look("What does it cost?", k=3, collection="default", history=TALK)
    scores = {one.passage.doc_id: one.score for one in alone.passages}
    assert told.passages[0].passage.doc_id == "kettle"
    assert told.passages[0].score - told.passages[1].score > scores["kettle"] - scores["museum"]
    assert told.notes == ("searched with the question before it",) and alone.notes == ()
    moved_on = store.seeker.look("How long does the ferry Solvang take?", k=3, collection="default", history=TALK)
    assert moved_on.passages[0].passage.doc_id == "ferry" and moved_on.notes == ()


def test_a_setting_leaves_the_conversation_out(store: HybridQA) -> None:
    def never() -> Any:
        raise AssertionError("no engine is needed to search")

    seeker = seeker_of(store, never, history=False, rewrite=True)
    told = asyncio.run(seeker.seek("What does it cost?", k=3, collection="default", history=TALK))
    assert told.passages == store.seeker.look("What does it cost?", k=3, collection="default").passages


def test_passages_are_reranked_where_asked_to(store: HybridQA) -> None:
    sought = store.run(store.seeker.seek("Who founded the museum?", k=2, collection="default", rerank=3))
    assert len(sought.passages) == 2
    assert all(one.likelihood is not None for one in sought.passages)
    assert sought.notes == ("3 passages reranked",) and sought.timings["rerank"] > 0
    plain = store.run(store.seeker.seek("Who founded the museum?", k=2, collection="default"))
    assert all(one.likelihood is None for one in plain.passages)


CHAIN = {
    "Tolmere": "Tolmere is a harbour town. Several works were made there, among them Iron Tide.",
    "Iron Tide": "Iron Tide is a tale of the sea by Pavla Renn. Its cast came from Oskvar.",
    **{f"Cinema of {town}": f"The cinema of {town} shows a film every day." for town in ("Arden", "Brusk", "Delf")},
}


def test_what_was_found_is_searched_with_where_asked_to(store: HybridQA) -> None:
    for title, text in CHAIN.items():
        store.add_text(title.lower(), text, title=title, collection="films")
    question = "Who directed the film that was shot in Tolmere?"
    once = store.seeker.look(question, k=3, collection="films")
    twice = store.seeker.look(question, k=3, collection="films", hops=2)
    assert [one.passage.doc_id for one in twice.passages[:2]] == ["tolmere", "iron tide"]
    assert "iron tide" not in [one.passage.doc_id for one in once.passages[:2]] and once.notes == ()
    assert len(twice.notes) == 1 and twice.notes[0].startswith("hop 2: searched with what 'Tolmere' and ")
    assert store.run(store.seeker.seek(question, k=3, collection="films", hops=2)).passages == twice.passages
    answer = store.ask(question, collection="films", k=2, hops=2, rerank=3)
    assert answer.route is not None and answer.timings["hops"] > 0
    assert answer.route_reason.startswith(f"{twice.notes[0]}; 3 passages reranked; 2 passages of")


def test_hops_are_a_setting_that_a_question_outranks(store: HybridQA) -> None:
    seeker = seeker_of(store, store.engine_ready, hops=3)
    assert any(
        note.startswith("hop 2: ") for note in seeker.look("What does it cost?", k=2, collection="default").notes
    )
    told = seeker.look("What does it cost?", k=2, collection="default", history=TALK, hops=1)
    assert told.notes == ("searched with the question before it",)
    onward = seeker.look("What does it cost?", k=2, collection="default", history=TALK)
    assert onward.notes[0] == told.notes[0] and len(onward.notes) > 1
    assert onward.passages[0].passage == told.passages[0].passage


def test_an_engine_that_fails_costs_the_order_and_no_passage(store: HybridQA) -> None:
    async def broken() -> Engine:
        raise EngineError("the engine is out of order. Ask again.")

    seeker = seeker_of(store, broken, rerank=3)
    sought = asyncio.run(seeker.seek("Who founded the museum?", k=3, collection="default"))
    assert sought.passages == store.seeker.look("Who founded the museum?", k=3, collection="default").passages
    assert sought.notes == ("not reranked: the engine is out of order. Ask again.",)


def test_a_restated_question_is_searched_for_in_place_of_the_one_before_it(store: HybridQA) -> None:
    question, restated = "How long does it take?", "How long does the ferry Solvang take?"
    plain = store.seeker.look(question, k=3, collection="default", history=TALK)
    told = store.seeker.look(question, k=3, collection="default", history=TALK, restated=restated)
    assert told.passages[0].passage.doc_id == "ferry" and plain.passages[0].passage.doc_id == "kettle"
    assert told.notes == (f"searched for {restated!r}",) and plain.notes == ("searched with the question before it",)


def test_a_model_that_writes_nonsense_costs_the_rewrite_alone(store: HybridQA) -> None:
    """The weights are random: the gate refuses, and the question before is searched with."""
    where: dict[str, Any] = {"k": 3, "collection": "default", "history": TALK}
    told = store.run(store.seeker.seek("What does it cost?", rewrite=True, **where))
    plain = store.seeker.look("What does it cost?", **where)
    assert told.passages == plain.passages and told.timings["rewrite"] > 0
    assert len(told.notes) == 2 and told.notes[0].startswith("not rewritten: ") and told.notes[1:] == plain.notes
    answer = store.ask("What does it cost?", history=TALK, k=1, rewrite=True)
    assert answer.route_reason.startswith(told.notes[0])


def test_only_a_follow_up_that_leans_is_rewritten(store: HybridQA) -> None:
    def never() -> Any:
        raise AssertionError("no engine is needed to search")

    seeker = seeker_of(store, never, rewrite=True)
    for question, history in (
        ("How long does the ferry Solvang take?", TALK),  # stands alone
        ("What does it cost?", ()),
        ("What does it cost?", (Message("assistant", "Ask me something."),)),
    ):
        told = asyncio.run(seeker.seek(question, k=3, collection="default", history=history))
        assert told.notes == () and "rewrite" not in told.timings
    with pytest.raises(AssertionError, match="no engine"):
        asyncio.run(seeker.seek("What does it cost?", k=3, collection="default", history=TALK))
    told = asyncio.run(seeker.seek("What does it cost?", k=3, collection="default", history=TALK, rewrite=False))
    assert told.notes == ("searched with the question before it",)


def test_an_engine_that_fails_costs_the_rewrite_and_no_passage(store: HybridQA) -> None:
    async def broken() -> Engine:
        raise EngineError("the engine is out of order. Ask again.")

    seeker = seeker_of(store, broken, rewrite=True)
    told = asyncio.run(seeker.seek("What does it cost?", k=3, collection="default", history=TALK))
    plain = store.seeker.look("What does it cost?", k=3, collection="default", history=TALK)
    assert told.passages == plain.passages
    assert told.notes == ("not rewritten: the engine is out of order. Ask again.", *plain.notes)


def test_an_answer_tells_its_route(store: HybridQA, tmp_path: Path) -> None:
    answer = store.ask("What does it cost?", history=TALK, k=1, rerank=2)
    assert answer.route is not None
    assert len(answer.passages) == 1 and len(answer.route.found) == 3
    assert next(iter(answer.route.evidence)) == answer.route.found[0].passage.doc_id
    assert answer.route_reason.startswith("searched with the question before it; 2 passages reranked; 1 passage of")


def test_too_little_evidence_withholds_an_answer_and_says_what_was_looked_for(
    tmp_path: Path, tiny_model: ModelFolder
) -> None:
    settings: dict[str, Any] = {"model": str(tiny_model.path), "engine": "reference", "dtype": "float32"}
    with HybridQA.open(tmp_path / "store", create=True, max_model_len=512, abstain_below=0.3, **settings) as qa:
        for doc_id, text in TEXTS.items():
            qa.add_text(doc_id, text)
        stranger = qa.ask("Which enzyme unwinds the helix in a yeast cell?")
        known = qa.ask("Who founded the Veldmoor museum?")
        closed = qa.ask("Which enzyme unwinds the helix in a yeast cell?", mode="closed")
    assert stranger.abstained and stranger.usage.total_tokens == 0
    assert (
        stranger.missing is not None and "nothing that was found has 'enzyme', 'unwinds', 'helix'" in stranger.missing
    )
    assert "no document has evidence of 0.30: the nearest, " in stranger.route_reason
    assert stranger.route is not None and len(stranger.route.found) == 3
    assert known.usage.completion_tokens > 0 and closed.usage.completion_tokens > 0


def test_what_the_user_has_said_is_answered_without_a_document(tmp_path: Path, tiny_model: ModelFolder) -> None:
    settings: dict[str, Any] = {"model": str(tiny_model.path), "engine": "reference", "dtype": "float32"}
    question = "Which enzyme unwinds the helix in a yeast cell?"
    said = [Message("user", "The enzyme that unwinds the helix is Sgs1."), Message("assistant", "I see.")]
    asked = [Message("user", "Is there an enzyme that unwinds the helix?"), Message("assistant", "I don't know.")]
    with HybridQA.open(tmp_path / "store", create=True, max_model_len=512, abstain_below=0.3, **settings) as qa:
        for doc_id, text in TEXTS.items():
            qa.add_text(doc_id, text)
        answer = qa.ask(question, history=said)
        assert answer.usage.completion_tokens > 0 and "but the user has spoken of it" in answer.route_reason
        assert qa.ask(question, history=asked).abstained
