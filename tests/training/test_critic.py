"""The critic: what it drops, by what name, and what it lets pass; each reason with a text that has only that fault."""

from __future__ import annotations

import pytest

from hybridqa.engine.protocol import Completion
from hybridqa.training.critic import Critic, is_self_contained, normalised, unsupported, whole_sentences

TEXT = (
    "The Lumen kettle holds 1.7 litres of water. Maren Holt designed the Lumen kettle in 2031. "
    "It is made in Oskvar by three workers, because the springs there are soft. It costs 1,200 crowns."
)
SENTENCE = "The Lumen kettle holds 1.7 litres of water."


def done(text: str, reason: str = "stop") -> Completion:
    return Completion(text, reason)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("How much water does the Lumen kettle hold?", ""),
        ("How much water does the Lumen kettle", "no whole question"),
        ("Does the Lumen kettle hold 1.7 litres of water?", "gives its answer away"),
        ("How many litres, 1.7 or so, does the Lumen kettle hold?", "gives its answer away"),
        ("What does the Berlin kettle hold of water?", "says what its source does not"),
        ("How much water did the Lumen kettle hold in 2030?", "says what its source does not"),
        ("How much do people earn there?", "not about its source"),
        ("According to the text, what does the Lumen kettle hold?", "not self-contained"),
        ("What does this passage say about the Lumen kettle?", "not self-contained"),
    ],
)
def test_questions(question: str, reason: str) -> None:
    critic = Critic("")
    kept = critic.question(done(f" {question}\n\nText:"), "1.7 litres", SENTENCE)
    assert kept == ("" if reason else question)
    assert dict(critic.dropped) == ({f"question: {reason}": 1} if reason else {})


def test_a_question_that_was_cut_off_is_told_from_one_that_is_none() -> None:
    critic = Critic("")
    assert not critic.question(done("How much water does the", "length"), "1.7 litres", SENTENCE)
    assert dict(critic.dropped) == {"question: cut off": 1}


def test_a_question_without_a_subject_is_mended_by_the_title_or_dropped() -> None:
    written = done("How much water does it hold?")
    assert (
        Critic("Lumen kettle").question(written, "1.7 litres", SENTENCE) == "Lumen kettle: How much water does it hold?"
    )
    untitled = Critic("")
    assert untitled.question(written, "1.7 litres", SENTENCE) == ""
    assert dict(untitled.dropped) == {"question: not self-contained": 1}
    titled = Critic("Lumen kettle")  # no title mends this one
    assert titled.question(done("How much water does the text give the kettle?"), "1.7 litres", SENTENCE) == ""


def test_a_question_comes_once() -> None:
    critic = Critic("")
    critic.know(["Where is the Lumen kettle made?"])
    assert not critic.question(done("where is the lumen kettle made ?"), "Oskvar", TEXT)
    assert critic.question(done("Who designed the Lumen kettle?"), "Maren Holt", TEXT)
    assert not critic.question(done("Who designed the Lumen kettle?"), "Maren Holt", TEXT)
    assert dict(critic.dropped) == {"question: repeated": 2}


def test_an_answer_that_is_not_in_the_source_makes_a_question_unanswerable() -> None:
    critic = Critic("")
    assert not critic.question(done("Where is the Lumen kettle sold?"), "hardware shops", TEXT)
    assert dict(critic.dropped) == {"question: not in its source": 1}


@pytest.mark.parametrize(
    ("question", "alone"),
    [
        ("When was it founded?", False),
        ("When was founded?", False),
        ("Why did they leave?", False),
        ("What is this method called?", False),
        ("What happened to these?", False),
        ("What is mentioned above about springs?", False),
        ("When was the Harlow Bridge opened?", True),
        ("Why did the greenhouse lose its power?", True),
        ("Who said that Voss sold her house?", True),
        ("How are springs found?", True),
        ("水壶可以装多少升水？", True),
    ],
)
def test_self_contained(question: str, alone: bool) -> None:
    assert is_self_contained(question) is alone


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The Lumen kettle, designed by Maren Holt, holds 1.7 litres.", ""),
        ("The kettle is made by 3 workers. They work in Oskvar.", ""),
        ("The kettle costs 1200 crowns.", ""),
        ("The kettle costs 120 crowns.", "says what its source does not"),
        ("The kettle is made in Paris.", "says what its source does not"),
        ("The text is about the Lumen kettle.", "not self-contained"),
        ("Boiling soup takes patience and good company always.", "not in its source"),
        ("The Lumen kettle holds", "cut off"),
    ],
)
def test_prose(text: str, reason: str) -> None:
    critic = Critic("")
    assert critic.prose("summary", done(text, "length"), TEXT) == ("" if reason else text)
    assert dict(critic.dropped) == ({f"summary: {reason}": 1} if reason else {})


def test_a_sentence_that_was_cut_off_costs_itself_alone() -> None:
    assert whole_sentences(" The kettle holds 1.7 litres. It is made in Osk") == "The kettle holds 1.7 litres."
    assert whole_sentences("这台水壶可以装1.35升水。它重") == "这台水壶可以装1.35升水。"
    assert whole_sentences("The kettle holds") == whole_sentences("") == ""


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("Maren Holt designed it [1].", "stop", ""),
        ("Maren Holt", "length", "cut off"),
        ("I don't know.", "stop", "no answer"),
        ("Anna Voss", "stop", ""),  # a first name that begins a sentence … and a second one that is nowhere: below
    ],
)
def test_answers(text: str, finish: str, reason: str) -> None:
    critic = Critic("")
    kept = critic.answer(done(text, finish), "Who designed the Lumen kettle?", TEXT)
    if text == "Anna Voss":
        assert kept == "" and dict(critic.dropped) == {"sampled: says what its source does not": 1}
    else:
        assert kept == ("" if reason else "Maren Holt designed it.")
        assert dict(critic.dropped) == ({f"sampled: {reason}": 1} if reason else {})


def test_numbers_are_compared_whole_and_across_their_spellings() -> None:
    assert unsupported("It holds 7 litres.", "It holds 1.7 litres.")
    assert unsupported("It was in 19.", "It was in 1986.")
    assert not unsupported("Three came.", "There were 3.")
    assert not unsupported("It has 12,000 rooms.", "It has 12000 rooms.")


def test_normalised_texts_differ_in_words_only() -> None:
    assert normalised("Where is  it, then?") == normalised("where is it then")


@pytest.mark.parametrize(
    ("text", "source", "fault"),
    [
        ("Le pont était édifié en granit.", "Le pont édifié en granit était à Lowmoor.", False),
        ("Мост построила Анна Восс.", "Анна Восс построила мост через реку.", False),
        ("Мост построила Мария Восс.", "Анна Восс построила мост через реку.", True),
        ("桥是安娜建造的。", "安娜建造的桥是绿色的。", False),
    ],
)
def test_names_are_capitalised_whatever_the_script(text: str, source: str, fault: bool) -> None:
    assert unsupported(text, source) is fault


def test_the_documents_own_words_about_itself_are_no_fault() -> None:
    source = "Anna Voss is the author of the story. The story is set in Lowmoor."
    critic = Critic("The Tarn bridge")
    assert critic.answer(done("The author of the story is Anna Voss."), "Who wrote it?", source)
    asked = critic.question(done("Who is the author of the story?"), "Anna Voss", source)
    assert asked == "The Tarn bridge: Who is the author of the story?"
    assert not critic.answer(done("The text says Anna Voss is the author."), "Who wrote it?", source)
    assert critic.dropped == {"sampled: not self-contained": 1}
    assert Critic("").question(done("من صمم الغلاية Lumen؟"), "Maren Holt", "صمم Maren Holt الغلاية Lumen.")
