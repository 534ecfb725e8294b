"""Facts and restatements: what they ask stands in the text, in wordings that keep to the text."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from hybridqa.training.facts import Fact, find_facts
from hybridqa.training.pairs import (
    FACTS_PER_SENTENCE,
    ask_pair,
    further_restatements,
    held_out_pairs,
    natural_pair,
    restatements,
)

TEXT = (
    "The Lumen kettle holds 1.7 litres of water. Maren Holt designed the Lumen kettle in 2031.\n\n"
    "The kettle went on sale on 14 March 2033 for 89 euros. It is made in the town of Oskvar, because the springs "
    "there are soft."
)


def fact_of(sentence: str, phrase: str) -> Fact:
    """The fact of one sentence whose phrase this is."""
    return next(fact for fact in find_facts([sentence]) if fact.phrase == phrase)


def natural(sentence: str, phrase: str) -> set[str]:
    """The questions of `natural_pair` over some seeds."""
    fact = fact_of(sentence, phrase)
    pairs = [natural_pair(fact, random.Random(seed)) for seed in range(20)]
    return {pair.question for pair in pairs if pair is not None}


def test_facts_are_numbers_dates_and_names_first() -> None:
    facts = find_facts([TEXT])
    asked = {fact.phrase: fact.asks for fact in facts}
    assert asked["1.7 litres"] == "how many litres"
    assert asked["14 March 2033"] == "when"
    assert asked["2031"] == "which year"
    assert asked["the springs there are soft"] == "why"
    assert "Maren Holt" in asked
    assert asked["Oskvar"] == "what"  # "of" stands before it, not what it is
    for fact in facts:
        assert fact.sentence[fact.start : fact.end] == fact.phrase
        assert fact.sentence in " ".join(TEXT.split())


def test_every_answer_is_in_its_sentence_and_no_question_gives_it_away() -> None:
    facts = find_facts([TEXT])
    pairs = restatements(facts, "Lumen kettle", seed=1)
    by_number = {fact.number: fact for fact in facts}
    sentences = Counter(by_number[pair.fact].sentence for pair in pairs)
    assert set(sentences) == {fact.sentence for fact in facts}
    further = further_restatements(facts, "Lumen kettle", {pair.question for pair in pairs}, seed=1)
    assert {pair.fact for pair in further} == set(by_number)  # the others are asked for in a second round
    for sentence, count in sentences.items():
        assert count == min(FACTS_PER_SENTENCE, sum(fact.sentence == sentence for fact in facts))
    assert all(pair.answer == by_number[pair.fact].phrase for pair in pairs)
    assert all(pair.question.endswith("?") for pair in pairs)
    assert pairs == restatements(facts, "Lumen kettle", seed=1)
    assert pairs != restatements(facts, "Lumen kettle", seed=2)
    learned = {pair.question for pair in pairs}
    held_out = held_out_pairs(facts, chunks=1)
    assert held_out and not learned & {pair.question for pair in held_out}
    assert ask_pair(fact_of(TEXT, "1.7 litres")).question == "The Lumen kettle holds how many litres of water?"


def test_further_restatements_are_other_questions_for_the_same_facts() -> None:
    facts = find_facts([TEXT])
    known = {pair.question for pair in restatements(facts, "Lumen kettle")}
    further = further_restatements(facts, "Lumen kettle", known)
    asked = [pair.question for pair in further]
    assert len(asked) == len(set(asked)) >= len(facts) and not known & set(asked)
    assert {pair.answer for pair in further} <= {fact.phrase for fact in facts}


def test_a_name_is_asked_for_by_what_it_is() -> None:
    text = "The firm Brask & Oriel makes it. Parts such as LK-218 are kept by the engineer called Solvang of Tarn."
    facts = {fact.phrase: fact for fact in find_facts([text])}
    assert ask_pair(facts["Brask & Oriel"]).question == "Which firm makes it?"
    assert facts["Solvang of Tarn"].asks == "which engineer"
    assert "LK-218" in facts and "218" not in facts


def test_questions_are_put_as_people_put_them_where_the_sentence_allows() -> None:
    assert natural("Maren Holt designed the Lumen kettle in 2031.", "Maren Holt") >= {
        "Who designed the Lumen kettle in 2031?",
        "What designed the Lumen kettle in 2031?",
    }
    assert "Where is the Lumen kettle made?" in natural("The Lumen kettle is made in Oskvar.", "Oskvar")
    assert "When was the bridge at Harlow opened?" in natural("The bridge at Harlow was opened in 1931.", "1931")
    assert natural("It was opened in 1931 by Anna Voss.", "1931") == set()  # what was?
    assert natural("The old pump moves 40 litres a minute.", "40 litres") == set()  # "does … move" is beyond its form


def test_a_sentence_about_it_is_asked_about_under_the_title() -> None:
    facts = find_facts(["It was opened in 1931 by Anna Voss of Tarn."])
    assert all(pair.question.count("Harlow Bridge:") == 1 for pair in restatements(facts, "Harlow Bridge"))


def test_texts_without_spaces_have_facts_too() -> None:
    assert [fact.phrase for fact in find_facts(["这台水壶可以装1.35升水。它重910克。"])] == ["1.35"]


def test_held_out_questions_are_spread_over_the_chunks() -> None:
    chunks = [
        f"Kettle number {n} holds {n + 2}.5 litres of water and was made by Maren Holt in 20{n:02}." for n in range(60)
    ]
    few = held_out_pairs(find_facts(chunks[:3]), chunks=3)
    assert {pair.passage for pair in few} == {0, 1, 2}
    many = held_out_pairs(find_facts(chunks[:20]), chunks=20)
    assert len(many) <= 48 and all(sum(pair.passage == chunk for pair in many) >= 2 for chunk in range(20))
    most = held_out_pairs(find_facts(chunks), chunks=60)
    asked = {pair.passage for pair in most}
    assert len(most) == 48 and len(asked) == 24 and max(asked) > 50  # two each of every other chunk or so


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=300), max_size=4), st.text(max_size=20))
def test_any_text_gives_pairs_with_text(passages: list[str], title: str) -> None:
    facts = find_facts(passages)
    for pair in [*restatements(facts, title), *held_out_pairs(facts, chunks=len(passages))]:
        assert pair.question.strip() and pair.answer.strip()
        assert 0 <= pair.passage < len(passages)
