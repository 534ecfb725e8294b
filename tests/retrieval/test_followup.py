"""Follow-up questions: which lean on the conversation, and what is searched for beside them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridqa.retrieval.followup import LEANING, LONGEST, STANDING, beside, leans
from hybridqa.retrieval.searcher import Query
from hybridqa.types import Message

HISTORY = (
    Message("user", "Who designed the Lumen kettle?"),
    Message("assistant", "Maren Holt designed it."),
)


@pytest.mark.parametrize(
    "question",
    [
        "When did she design it?",
        "And in red?",
        "What about the lid?",
        "Why?",
        "Are there others in Oskvar today?",
        "How old is that?",
    ],
)
def test_a_question_that_cannot_stand_alone_leans(question: str) -> None:
    assert leans(question)
    assert beside(question, HISTORY) == (Query(f"Who designed the Lumen kettle? {question}", LEANING),)


@pytest.mark.parametrize(
    "question", ["Who founded the Veldmoor museum in Tarn?", "How many litres does a Lumen kettle hold?"]
)
def test_one_that_can_stands(question: str) -> None:
    assert not leans(question)
    assert beside(question, HISTORY) == (Query(f"Who designed the Lumen kettle? {question}", STANDING),)


def test_only_the_users_own_last_turn_counts() -> None:
    turns = (Message("user", "First?"), *HISTORY, Message("user", " \n"), Message("system", "Be brief."))
    assert beside("When?", turns)[0].text == "Who designed the Lumen kettle? When?"
    assert beside("When?", ()) == beside("When?", (Message("assistant", "Hello."),)) == ()


@given(st.text(max_size=80), st.text(max_size=3000))
def test_any_text_is_taken(question: str, before: str) -> None:
    for query in beside(question, (Message("user", before),)):
        assert query.weight < 1 and len(query.text) <= LONGEST + len(question) + 1
        assert query.text.endswith(question)
