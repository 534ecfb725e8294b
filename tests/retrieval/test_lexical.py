"""Lexical search on a real FTS5 table: the right words are looked up, and no text is ever syntax."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridqa.catalog import Catalog
from hybridqa.errors import CollectionNotFoundError
from hybridqa.retrieval.lexical import (
    MAX_WORDS,
    AskedWords,
    LexicalIndex,
    asked_words,
    match_query,
    question_words,
    stem,
    text_words,
)
from hybridqa.types import Filter

HOSTILE = [
    '"',
    '""" OR 1',
    "NEAR(a b, 5)",
    "AND OR NOT",
    "title: fox",
    "fox*",
    "^fox",
    "(fox",
    "{title text}: fox",
    "fox + -hound",
    "'; DROP TABLE passages; --",
    "a\x00fox",
    "\ud800 fox",
    "🦊 🦊🏽‍🚀",
    "狐はどこ",
    "ﷺ İıſß",
    "____",
    "x" * 10_000,
    "fox " * 2_500,
    " ".join(f"word{n}" for n in range(3_000)),
    '"fox" ' * 1_700,
]


@pytest.fixture(scope="module")
def lexical(put_text: Callable[..., None]) -> Iterator[LexicalIndex]:
    with tempfile.TemporaryDirectory() as folder, Catalog.open(Path(folder) / "c.sqlite3", create=True) as catalog:
        texts = ["The quick brown fox jumped.", "A lazy hound sleeps in the café.", "NEAR the river, not far."]
        put_text(catalog, "a", "animals", texts, np.eye(3, dtype=np.float32))
        put_text(catalog, "b", "other", ["A fox of another collection."], np.ones((1, 3), np.float32))
        yield LexicalIndex(catalog)


def found(lexical: LexicalIndex, question: str, collection: str = "a") -> list[str]:
    ids = [passage_id for passage_id, _ in lexical.search(question, 10, collection)]
    passages = lexical._catalog.get_passages(ids)
    return [passages[passage_id].text for passage_id in ids]


@pytest.mark.parametrize("question", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_never_raises(lexical: LexicalIndex, question: str) -> None:
    results = lexical.search(question, 10, "a")
    if "fox" in question.replace("\x00", " ").split():
        assert len(results) >= 1


@given(st.text(max_size=200))
def test_any_text_is_searched(lexical: LexicalIndex, question: str) -> None:
    assert all(score > 0 for _, score in lexical.search(question, 10, "a"))


def test_finds_other_forms_of_a_word_and_words_without_accents(lexical: LexicalIndex) -> None:
    assert found(lexical, "Who is jumping?") == ["The quick brown fox jumped."]
    assert found(lexical, "sleeping at the CAFE") == ["A lazy hound sleeps in the café."]


def test_operators_are_words(lexical: LexicalIndex) -> None:
    assert found(lexical, "NEAR") == ["NEAR the river, not far."]
    assert found(lexical, "fox NOT hound") == found(lexical, "fox hound")


def test_one_collection_never_sees_another(lexical: LexicalIndex) -> None:
    assert found(lexical, "fox", "b") == ["A fox of another collection."]
    assert found(lexical, "hound", "b") == []


@pytest.mark.parametrize("question", ["fox", "", "?!"])
def test_unknown_collection_is_named(lexical: LexicalIndex, question: str) -> None:
    with pytest.raises(CollectionNotFoundError, match="'nowhere'"):
        lexical.search(question, 10, "nowhere")


def test_stopwords_go_unless_there_is_nothing_else() -> None:
    assert question_words("What is the Capital of France?") == ["capital", "france"]
    assert question_words("Who is it?") == ["who", "is", "it"]
    assert match_query(asked_words("The capital's capital")) == '"capital"'


def test_both_ends_of_a_long_question_count() -> None:
    words = match_query(asked_words(" ".join(f"word{n}" for n in range(1_000)))).split(" OR ")
    assert len(words) == MAX_WORDS
    assert words[0] == '"word0"' and words[-1] == '"word999"'


def test_limits_the_number_of_results(lexical: LexicalIndex) -> None:
    assert len(lexical.search("fox hound river", 2, "a")) == 2
    assert lexical.search("fox", 0, "a") == []


def test_asked_words_are_found_whatever_their_endings() -> None:
    asked = AskedWords("Who designs the housed kettle?")
    assert asked.stems == {"design", "hous", "kettl"}
    assert asked.among("Designed in 1931: KETTLES for houses.") == asked.stems
    assert asked.among("A designer's kettledrum in the greenhouse.") == frozenset()
    assert AskedWords("?!").among("anything") == frozenset()


WORDS = st.sampled_from("fox foxes foxing car caring cared bus buses speed spe nest nested e ed café straße".split())


@given(st.lists(WORDS, max_size=8), st.lists(WORDS, max_size=12))
def test_asked_words_agree_with_comparing_stems(question: list[str], text: list[str]) -> None:
    asked = AskedWords(" ".join(question))
    expected = {stem(word) for word in asked_words(" ".join(question))} & {
        stem(word) for word in text_words(" ".join(text))
    }
    assert asked.among(" ".join(text)) == expected


@pytest.mark.parametrize("question", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_looked_for_in_a_text(question: str) -> None:
    assert AskedWords(question).among("a quick fox " * 200) <= AskedWords(question).stems


def test_common_words_are_left_out_where_rarer_ones_match_enough(put_text: Callable[..., None], tmp_path: Path) -> None:
    with Catalog.open(tmp_path / "c.sqlite3", create=True) as catalog:
        texts = [f"report number{n} of the team{n % 20}" for n in range(400)]
        put_text(catalog, "a", "reports", texts, np.eye(400, dtype=np.float32))
        whole, bounded = LexicalIndex(catalog), LexicalIndex(catalog, rows=50)
        question = "Which report did team7 write as number27?"
        assert len(whole.search(question, 400, "a")) == 400
        found = bounded.search(question, 5, "a")
        assert [passage_id for passage_id, _ in found] == [
            passage_id for passage_id, _ in whole.search(question, 5, "a")
        ]
        assert len(bounded.search(question, 400, "a")) == 400  # so many are wanted that rare words are not enough
        assert len(bounded.search(question, 4, "a")) == 4
        assert len(bounded.search("report", 10, "a")) == 10  # there is no rarer word
        assert len(bounded.search(question, 30, "a", Filter(("reports",)))) == 30
