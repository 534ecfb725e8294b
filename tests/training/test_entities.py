"""Questions about names: extractive, self-contained, and across chunks only where both fit one prompt."""

from __future__ import annotations

from hybridqa.training.critic import is_self_contained
from hybridqa.training.entities import LONGEST, cross_pairs, entity_pairs, split_rounds
from hybridqa.training.facts import find_facts

CHUNKS = [
    "The Lumen kettle was designed by Maren Holt in 2031. In her youth, Maren Holt built 12 clocks for the town of "
    "Tarn. The Roman roads of the town are old. The Roman walls of the town are older.",
    "The springs of Oskvar are soft. In 2040, the prize of the guild went to Maren Holt for a lamp.",
]


def test_what_is_said_of_a_name_is_the_documents_own_words() -> None:
    pairs = entity_pairs(find_facts(CHUNKS), "Kettles")
    about = {pair.question: pair for pair in pairs if "Maren Holt" in pair.question}
    assert len(about) == 1
    (pair,) = about.values()
    assert pair.passage == 0 and pair.kind == "entity"
    assert pair.answer == CHUNKS[0].split(" The Roman")[0]
    assert not any("Roman" in pair.question for pair in pairs)  # it names roads and walls, nothing by itself
    assert all(len(pair.answer.split()) <= LONGEST for pair in pairs)


def test_of_a_long_sentence_only_the_clause_with_the_name_is_taken() -> None:
    long = (
        "The springs of the valley had been soft for as long as anyone could remember and nobody had thought much "
        "about it, but Maren Holt built her first lamp there. In the end Maren Holt sold it."
    )
    (pair,) = entity_pairs(find_facts([long]), "")
    assert pair.answer == "Maren Holt built her first lamp there. In the end Maren Holt sold it."


def test_two_chunks_are_asked_about_together_by_a_name_in_both() -> None:
    facts = find_facts(CHUNKS)
    (pair,) = cross_pairs(facts, "Kettles")
    assert pair.kind == "cross" and (pair.passage, pair.also) == (0, (1,))
    assert pair.question.startswith("Maren Holt: ") and is_self_contained(pair.question)
    first, second = pair.answer.split(". ", 1)
    assert first in CHUNKS[0] and second in CHUNKS[1]
    assert cross_pairs(facts, "Kettles", lambda one, other: False) == []
    assert cross_pairs(facts, "Maren Holt") == []  # all of it is about the title


def test_a_first_round_has_one_a_chunk() -> None:
    (pair,) = cross_pairs(find_facts(CHUNKS), "Kettles")
    assert split_rounds([pair, pair], 2) == ([pair], [pair])


def test_texts_without_names_give_none() -> None:
    facts = find_facts(["这台水壶可以装1.35升水。它重910克。", "it rains in 1931 and in 1932. it rains."])
    assert entity_pairs(facts, "") == cross_pairs(facts, "") == []
