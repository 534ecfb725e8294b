"""Facts as whole sentences: their own, or of a long one the clauses around the phrase."""

from __future__ import annotations

import pytest

from hybridqa.training.facts import LONGEST_STATEMENT, Fact, find_facts

FILL = "and so " * LONGEST_STATEMENT


def a_fact(sentence: str, phrase: str) -> Fact:
    start = sentence.index(phrase)
    return Fact(0, 0, sentence, start, start + len(phrase), "what", start)


@pytest.mark.parametrize(
    ("sentence", "phrase", "statement"),
    [
        ("The kettle holds 1.7 litres.", "1.7 litres", "The kettle holds 1.7 litres."),
        ("The kettle holds 1.7 litres", "1.7 litres", "The kettle holds 1.7 litres."),
        ("Kettles:", "Kettles", "Kettles."),
        ("«Où est-elle ?»", "elle", "«Où est-elle ?»."),
        ("水壶的容量是1.7升。", "1.7升", "水壶的容量是1.7升。"),
        (f"The kettle is red; {FILL}on, and the lamp is blue", "red", "The kettle is red."),
        (f"The kettle is red; {FILL}on, and the lamp is blue", "blue", "The lamp is blue."),
        (f"The kettle is red, but the cup is not; {FILL}on", "cup", "The kettle is red, but the cup is not."),
        (f"The kettle {FILL}is red", "red", f"The kettle {FILL}is red."),  # one clause: it stays whole
    ],
)
def test_a_fact_is_told_as_a_sentence(sentence: str, phrase: str, statement: str) -> None:
    assert a_fact(sentence, phrase).statement == statement


def test_a_statement_holds_its_phrase() -> None:
    text = f"The Lumen kettle holds 1.7 litres, and {FILL}on; Maren Holt designed it in 2031, but {FILL}on in Oskvar."
    facts = find_facts([text, "The Lumen kettle is made in the town of Oskvar."])
    assert len(facts) > 3 and all(fact.phrase in fact.statement for fact in facts)
