"""Restating follow-ups: what the gate lets through, what the model is asked, and a real model that is asked it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.answering.rewriting import (
    MAX_TOKENS,
    TURN_CHARACTERS,
    TURNS,
    Rewriter,
    begun_by,
    cleaned,
    fault,
    messages_for,
)
from hybridqa.engine.protocol import Engine
from hybridqa.retrieval.lexical import STOPWORDS, stem, text_words
from hybridqa.types import Message


@pytest.fixture(scope="module")
def prompts(tokenizer: object) -> PromptBuilder:
    return PromptBuilder(tokenizer, max_model_len=2048, context_tokens=1000)  # type: ignore[arg-type]


TALK = (
    Message("user", "Who designed the Lumen kettle?"),
    Message("assistant", "Maren Holt designed it in 2031, in the town of Oskvar."),
)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("When was she born?", "When was Maren Holt born?"),
        ("When was she born?", "When was Maren Holt, who designed the Lumen kettle, born?"),
        ("And the lid?", "Who designed the lid of the Lumen kettle?"),
        ("What does it cost in Oskvar?", "What do the Lumen kettles cost in Oskvar?"),
        ("its price", "price of the Lumen kettle"),
    ],
)
def test_a_restatement_that_says_what_was_meant_is_let_through(question: str, text: str) -> None:
    assert fault(text, question, TALK) == ""


@pytest.mark.parametrize(
    ("question", "text", "why"),
    [
        ("When was she born?", "", "the model wrote nothing"),
        ("When was she born?", "When was she born?", "it says no more than the question"),
        ("When was she born?", "When was he born?", "it says no more than the question"),
        ("Who designed it?", "Who designed the Lumen kettle?", "it is an earlier turn"),
        ("When was she born?", "Maren Holt was born in 2031.", "it is no question"),
        ("When was she born?", "When was Maren Holt born? Where was she born?", "it is more than one question"),
        ("When was she born?", "Maren Holt. When was she born?", "it is more than one question"),
        ("When was she born?", "Where is Maren Holt?", "it lost 'born'"),
        ("When was she born?", "When was Anna Voss born?", "nobody said 'anna'"),
        ("When was she born?", "When was Maren Holt born in the month of May?", "nobody said 'month'"),
        (
            "Why?",
            "Why was it the Lumen kettle that Maren Holt of Oskvar designed in the town in 2031?",
            "it is too long",
        ),
    ],
)
def test_one_that_does_not_is_refused(question: str, text: str, why: str) -> None:
    assert fault(text, question, TALK) == why


def test_what_a_system_turn_says_is_nobodys_word() -> None:
    told = (Message("system", "Speak of Anna Voss."), *TALK)
    assert fault("When was Anna Voss born?", "When was she born?", told) == "nobody said 'anna'"


WORDS = st.lists(st.sampled_from("when she born kettle Lumen anna 2031 red the what ? . Oskvar".split()), max_size=9)


@given(WORDS, WORDS)
def test_nothing_gets_through_that_nobody_said_or_that_loses_the_question(text: list[str], question: list[str]) -> None:
    written, asked = " ".join(text), " ".join(question)
    if fault(written, asked, TALK):
        return
    there = {stem(word) for word in text_words(written)}
    said = {stem(word) for line in (asked, *(turn.content for turn in TALK)) for word in text_words(line)}
    assert {one for one in there if one not in STOPWORDS} <= said | {stem(word) for word in STOPWORDS}
    assert {stem(word) for word in text_words(asked) if word not in STOPWORDS} <= there


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (' "When was Maren Holt born?"\n', "When was Maren Holt born?"),
        ("Rewritten question: When  was Maren Holt born?", "When was Maren Holt born?"),
        ("Question: “Why?”", "Why?"),
        ("User: Why?", "Why?"),
        ("", ""),
    ],
)
def test_labels_and_quotation_marks_are_taken_off(text: str, kept: str) -> None:
    assert cleaned(text) == kept


def test_the_model_reads_the_end_of_the_conversation_and_the_question() -> None:
    long = Message("user", "early " * 200 + "late")
    last = messages_for("When\nwas she born?", [long, *TALK])[-1].content
    assert last.endswith("Last question: When was she born?")
    assert "Assistant: Maren Holt designed it in 2031" in last and "late\n" in last
    assert len(last.splitlines()[0]) == len("User: ") + TURN_CHARACTERS


@pytest.mark.parametrize(
    ("question", "begun"),
    [("when was she born?", "When"), ("“How old?”", "How"), ("And the lid?", ""), ("Tell me more.", ""), ("?", "")],
)
def test_a_restatement_begins_as_its_question_does(question: str, begun: str, prompts: PromptBuilder) -> None:
    assert begun_by(question) == begun
    ids = Rewriter(prompts, max_model_len=2048)._prompt(question, TALK)
    assert ids == prompts.encode(messages_for(question, TALK), begun)


def test_turns_that_do_not_fit_the_window_are_left_out(prompts: PromptBuilder) -> None:
    many = [Message("user", f"turn{number} " + "word " * 60) for number in range(TURNS + 3)]

    def read(window: int) -> str | None:
        ids = Rewriter(prompts, max_model_len=window)._prompt("Why?", many)
        return None if ids is None else prompts._tokenizer.decode(ids)

    whole = read(4096)
    assert whole is not None and "turn3" in whole and "turn2" not in whole
    enough = len(prompts.encode(messages_for("Why?", many[-2:]), "Why")) + MAX_TOKENS
    cut = read(enough)
    assert cut is not None and "turn7" in cut and "turn6" not in cut
    assert read(MAX_TOKENS + 1) is None
    engine: Engine = None  # type: ignore[assignment]  # it is not asked
    nothing = asyncio.run(Rewriter(prompts, max_model_len=MAX_TOKENS + 1).rewrite("Why?", many, engine))
    assert nothing.question == "" and nothing.refused == "the question leaves no room for it"


def test_what_a_model_writes_is_judged(prompts: PromptBuilder, engine: Engine) -> None:
    rewriter = Rewriter(prompts, max_model_len=2048)
    for question in ("When was she born?", "And the lid?", "Where is that town?"):
        done = asyncio.run(rewriter.rewrite(question, TALK, engine))
        assert done == asyncio.run(rewriter.rewrite(question, TALK, engine))
        assert bool(done.question) != bool(done.refused)
        assert not done.question or fault(done.question, question, TALK) == ""
