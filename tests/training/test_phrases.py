"""Key phrases: not overlapping, bounded in number, and near to what people's questions ask for."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridqa.ingest.sentences import split_sentences
from hybridqa.training.facts import find_facts
from hybridqa.training.phrases import MAX_PHRASES, PhraseFinder

DATA = Path(__file__).parents[3] / "shared" / "data"


def phrases(sentence: str, *others: str) -> dict[str, str]:
    """The phrases of a sentence in a document with other sentences too, and what asks for them."""
    text = " ".join([sentence, *others])
    finder = PhraseFinder([text], len(split_sentences(text)))
    return {sentence[found.start : found.end]: found.asks for found in finder.find(sentence)}


def test_a_thing_is_taken_without_the_verb_behind_it() -> None:
    others = ("It can drain the hills.", "They drain everything.")
    assert "hail" not in phrases("Eighteen people fled.")
    assert "mountain rivers" in phrases("The mountain rivers drain the western hills of the state.", *others)


def test_numbers_in_words_and_their_units() -> None:
    assert phrases("Only seventeen sheep came back from the hills that year.")["seventeen sheep"] == "how many sheep"
    assert phrases("About two hundred sheep came back from the hills.")["two hundred sheep"] == "how many sheep"
    assert phrases("The trip took 6 weeks and cost 40 euros.") == {
        "6 weeks": "how many weeks",
        "40 euros": "how many euros",
    }


def test_labels_and_entities_are_no_numbers() -> None:
    found = phrases("As Figure 7 shows, the &#34;old&#34; pump of Tarn failed again [12].")
    assert not {"7", "7 shows", "34", "12"} & set(found)


def test_reasons_and_means_are_phrases() -> None:
    assert (
        phrases("The greenhouse lost power because the pump in the cellar failed.")["the pump in the cellar failed"]
        == "why"
    )
    assert (
        phrases("They cool the hall by opening the northern doors at night.")["opening the northern doors at night"]
        == "how"
    )


def test_a_plain_word_that_begins_a_sentence_is_no_name() -> None:
    assert "Hence" not in phrases("Hence the pump of Tarn failed.", "It was hence sold.")
    assert "Morally" not in phrases("Morally the firm was at fault, said Voss.")


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=400))
def test_phrases_are_few_apart_and_not_empty(sentence: str) -> None:
    found = PhraseFinder([sentence], 1).find(sentence)
    assert len(found) <= MAX_PHRASES
    for phrase in found:
        assert sentence[phrase.start : phrase.end].strip() and phrase.ask_start <= phrase.start
    for one, other in pairwise(found):
        assert one.end <= other.start


def words(text: str) -> list[str]:
    return re.sub(r"\b(?:a|an|the)\b", " ", re.sub(r"[^\w\s]", " ", text.lower())).split()


def overlap(one: str, other: str) -> float:
    """Token F1."""
    shared = sum((Counter(words(one)) & Counter(words(other))).values())
    return 2 * shared / (len(words(one)) + len(words(other))) if shared else 0.0


@pytest.mark.skipif(not (DATA / "newwiki_train.docs.jsonl").is_file(), reason="no development data here")
def test_people_ask_for_most_of_the_phrases_that_are_found() -> None:
    lines = (DATA / "newwiki_train.docs.jsonl").read_text(encoding="utf-8").splitlines()
    document = json.loads(lines[0])
    paragraphs = document["text"].split("\n\n")
    facts = find_facts(paragraphs)
    asked = [json.loads(line) for line in (DATA / "newwiki_train.questions.jsonl").read_text().splitlines()]
    near = [
        max(
            overlap(gold, fact.phrase)
            for fact in facts
            for gold in question["answers"]
            if fact.passage == question["meta"]["paragraph"]
        )
        for question in asked
        if question["doc_ids"] == [document["doc_id"]]
    ]
    assert sum(score >= 0.5 for score in near) / len(near) > 0.65
    assert len(facts) < 0.18 * len(document["text"].split())
