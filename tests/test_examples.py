"""The examples hold what README says of them: enough words, enough questions, answers that are in the text."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hybridqa.ingest.readers import read_path

EXAMPLES = Path(__file__).parent.parent / "examples"
CORPUS = EXAMPLES / "corpus"
UPDATES = EXAMPLES / "updates"
DOCUMENTS = sorted(CORPUS.iterdir())
MEGABYTE = 1_000_000


def flat_text(path: Path) -> str:
    """The text as hybridqa reads it, with lines joined."""
    return " ".join(read_path(path, max_bytes=MEGABYTE).text.split())


def states(text: str, answer: str) -> bool:
    """Whether the answer stands in the text as whole words."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) is not None


def read_questions(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


QUESTIONS = read_questions(EXAMPLES / "questions.jsonl")
CHANGED = read_questions(UPDATES / "questions.jsonl")


def test_the_corpus_has_five_documents_in_three_formats() -> None:
    assert Counter(path.suffix for path in DOCUMENTS) == {".md": 3, ".txt": 1, ".html": 1}


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, UPDATES / "travel-policy.md"], ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_every_document_has_300_to_700_words(path: Path) -> None:
    assert 300 <= len(flat_text(path).split()) <= 700


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_document_has_at_least_ten_questions(path: Path) -> None:
    assert sum(question["doc_ids"] == [path.name] for question in QUESTIONS) >= 8


@pytest.mark.parametrize("question", QUESTIONS + CHANGED, ids=lambda question: question["qid"])
def test_a_question_is_well_formed(question: dict[str, Any]) -> None:
    assert set(question) == {"qid", "question", "answers", "doc_ids"}
    assert question["question"].endswith("?")
    assert question["answers"]
    for answer in question["answers"]:
        assert 1 <= len(answer.split()) <= 4
        assert not states(question["question"], answer), "the question gives its answer away"


def test_question_ids_are_unique() -> None:
    assert max(Counter(question["qid"] for question in QUESTIONS + CHANGED).values()) == 1


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["qid"])
def test_the_answer_is_in_its_document_and_in_no_other(question: dict[str, Any]) -> None:
    (doc_id,) = question["doc_ids"]
    assert states(flat_text(CORPUS / doc_id), question["answers"][0])
    others = [
        path.name for path in DOCUMENTS if path.name != doc_id and states(flat_text(path), question["answers"][0])
    ]
    assert not others


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["qid"])
def test_a_question_is_no_copy_of_a_sentence(question: dict[str, Any]) -> None:
    """No seven words in a row are the document's, the subject's name aside."""
    text = flat_text(CORPUS / question["doc_ids"][0]).lower()
    words = re.findall(r"[\w'-]+", question["question"].lower())
    text = " ".join(re.findall(r"[\w'-]+", text))
    assert not [run for at in range(len(words) - 6) if (run := " ".join(words[at : at + 7])) in text]


def test_an_update_replaces_a_document_of_the_corpus() -> None:
    names = {path.name for path in UPDATES.iterdir()} - {"questions.jsonl"}
    assert names == {"travel-policy.md"}
    assert names <= {path.name for path in DOCUMENTS}


def test_at_least_six_facts_change() -> None:
    assert len(CHANGED) >= 6


@pytest.mark.parametrize("question", CHANGED, ids=lambda question: question["qid"])
def test_a_changed_answer_is_in_the_new_version_alone(question: dict[str, Any]) -> None:
    (doc_id,) = question["doc_ids"]
    assert states(flat_text(UPDATES / doc_id), question["answers"][0])
    assert not [answer for answer in question["answers"] if states(flat_text(CORPUS / doc_id), answer)]


@pytest.mark.parametrize("question", CHANGED, ids=lambda question: question["qid"])
def test_the_old_answer_to_a_changed_question_is_gone(question: dict[str, Any]) -> None:
    """Each changed question is asked of the corpus too, in the same words, and its old answer left the new version."""
    (old,) = [asked for asked in QUESTIONS if asked["question"] == question["question"]]
    new_text = flat_text(UPDATES / question["doc_ids"][0])
    assert not [answer for answer in old["answers"] if states(new_text, answer)]
