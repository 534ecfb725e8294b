"""Restatements and the synthesiser: what they ask stands in the text, what the critic drops is counted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridqa.training.pairs import ask_pair, find_facts, held_out_pairs, restatements
from hybridqa.training.synthesis import Synthesiser, question_fault, trimmed_summary, unsupported

TEXT = (
    "The Lumen kettle holds 1.7 litres of water. Maren Holt designed the Lumen kettle in 2031.\n\n"
    "The kettle went on sale on 14 March 2033 for 89 euros. It is made in the town of Oskvar, because the springs "
    "there are soft."
)


def test_facts_are_numbers_dates_and_names_first() -> None:
    facts = find_facts([TEXT])
    asked = {fact.phrase: fact.asks for fact in facts}
    assert asked["1.7 litres"] == "how many litres"
    assert asked["14 March 2033"] == "when"
    assert asked["2031"] == "which year"
    assert "Maren Holt" in asked
    assert asked["Oskvar"] == "what"  # "of" stands before it, not what it is
    for fact in facts:
        assert fact.sentence[fact.start : fact.end] == fact.phrase
        assert fact.sentence in " ".join(TEXT.split())


def test_every_answer_is_in_its_sentence_and_no_question_gives_it_away() -> None:
    facts = find_facts([TEXT])
    pairs = restatements(facts, "Lumen kettle", variants=3, seed=1)
    by_number = {fact.number: fact for fact in facts}
    asks = [pair for pair in pairs if pair.kind == "ask"]
    assert len(asks) == 3 * len(facts)
    assert all(pair.answer == by_number[pair.fact].phrase for pair in asks)
    assert all(pair.question.endswith("?") for pair in asks)
    assert pairs == restatements(facts, "Lumen kettle", variants=3, seed=1)
    assert pairs != restatements(facts, "Lumen kettle", variants=3, seed=2)
    learned = {pair.question for pair in pairs}
    held_out = held_out_pairs(facts, "Lumen kettle")
    assert held_out and not learned & {pair.question for pair in held_out}
    assert ask_pair(facts[0]).question == "The Lumen kettle holds how many litres of water?"


def test_a_name_is_asked_for_by_what_it_is() -> None:
    text = "The firm Brask & Oriel makes it. Parts such as LK-218 are kept by the engineer called Solvang of Tarn."
    facts = {fact.phrase: fact for fact in find_facts([text])}
    assert ask_pair(facts["Brask & Oriel"]).question == "Which firm makes it?"
    assert facts["Solvang of Tarn"].asks == "which engineer"
    assert "LK-218" in facts and "218" not in facts


def test_texts_without_spaces_have_facts_too() -> None:
    assert [fact.phrase for fact in find_facts(["这台水壶可以装1.35升水。它重910克。"])] == ["1.35"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=300), max_size=4), st.text(max_size=20))
def test_any_text_gives_pairs_with_text(passages: list[str], title: str) -> None:
    facts = find_facts(passages)
    for pair in [*restatements(facts, title), *held_out_pairs(facts, title)]:
        assert pair.question.strip() and pair.answer.strip()
        assert 0 <= pair.passage < len(passages)


@pytest.mark.parametrize(
    ("question", "fault"),
    [
        ("How much water does the Lumen kettle hold?", ""),
        ("How much water does the Lumen kettle", "no whole question"),
        ("Does the Lumen kettle hold 1.7 litres of water?", "gives its answer away"),
        ("What does the Berlin kettle hold of water?", "not about its source"),
        ("What is the answer to this question?", "not about its source"),
    ],
)
def test_the_critic_of_questions(question: str, fault: str) -> None:
    fact = next(fact for fact in find_facts([TEXT]) if fact.phrase == "1.7 litres")
    assert question_fault(question, fact, set()) == fault


def test_the_critic_of_summaries() -> None:
    assert trimmed_summary(" The kettle holds 1.7 litres. It is made in Osk") == ("The kettle holds 1.7 litres.", True)
    assert not trimmed_summary("The kettle holds")[1]
    for cut in (
        "The kettle of Oskvar holds 1.",
        "The kettle of Oskvar holds 1.7 li",
        "The kettle of Oskvar, says Dr. Ho",
    ):
        assert trimmed_summary(cut) == ("", False)
    assert trimmed_summary("It holds water. It was made in 2031. It is") == (
        "It holds water. It was made in 2031.",
        True,
    )
    assert trimmed_summary("这个水壶能装一点七升的水。它是在奥") == ("这个水壶能装一点七升的水。", True)
    assert unsupported("The kettle costs 89 euros.", TEXT) == ""
    assert unsupported("The kettle costs 98 euros.", TEXT)
    assert unsupported("The kettle is made in Paris.", TEXT)


def test_the_synthesiser_keeps_what_passes_and_counts_the_rest() -> None:
    asked: list[list[str]] = []

    def generate(prompts: Sequence[str], max_tokens: int, stop: str) -> list[str]:
        asked.append(list(prompts))
        assert max_tokens < 50 or all(prompt.endswith(stop) for prompt in prompts)  # else it stops before it begins
        if max_tokens < 50:
            return [" How much water does the Lumen kettle hold?\n\nText:"] * len(prompts)
        return [" The Lumen kettle holds 1.7 litres of water. And th"] * len(prompts)

    lessons = Synthesiser(generate, questions=5).run([("Lumen kettle", [TEXT]), ("", ["Nothing here"])])
    assert len(asked) == 2  # questions of all documents together, then summaries
    first, second = lessons
    kinds = [pair.kind for pair in first.pairs]
    assert kinds.count("question") == 1  # the same for each fact: once kept, then repeated or not about it
    assert kinds.count("summary") == 1
    assert sum(first.dropped.values()) == 4
    assert not second.held_out
