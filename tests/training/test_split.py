"""Documents and questions to learn from, and those to be tested on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hybridqa.errors import InputError
from hybridqa.evaluation.datasets import EvalDocument, EvalQuestion
from hybridqa.training.split import TEST_QUESTIONS, split

DOCUMENTS = [EvalDocument(f"d{number}", "", f"text {number}") for number in range(20)]
QUESTIONS = [
    EvalQuestion(f"{document.doc_id}-{number}", "Who?", ("me",), (document.doc_id,))
    for document in DOCUMENTS
    for number in range(30)
]


def test_no_document_is_on_both_sides() -> None:
    found = split(DOCUMENTS, QUESTIONS, per_document=5)
    learned = {doc_id for question in found.train for doc_id in question.doc_ids}
    tested = {doc_id for question in found.test for doc_id in question.doc_ids}
    assert tested == set(found.held_out) and len(found.held_out) == 4
    assert learned == {document.doc_id for document in DOCUMENTS} - tested
    assert len(found.train) == 16 * 5 and len(found.test) == 4 * 5
    assert found == split(DOCUMENTS, QUESTIONS, per_document=5)
    assert found.held_out != split(DOCUMENTS, QUESTIONS, per_document=5, seed=1).held_out
    assert len(split(DOCUMENTS, QUESTIONS).test) == 4 * TEST_QUESTIONS


def test_a_question_about_documents_of_both_sides_is_in_neither() -> None:
    held_out = split(DOCUMENTS, QUESTIONS).held_out
    learned = next(document.doc_id for document in DOCUMENTS if document.doc_id not in held_out)
    both = EvalQuestion("both", "Who?", ("me",), (learned, held_out[0]))
    found = split(DOCUMENTS, [*QUESTIONS, both])
    assert both not in (*found.train, *found.test)


def test_equal_texts_stay_on_one_side() -> None:
    copies = [replace(document, doc_id=f"copy of {document.doc_id}", title="Copy") for document in DOCUMENTS]
    asked = [replace(question, doc_ids=(f"copy of {question.doc_ids[0]}",)) for question in QUESTIONS]
    found = split([*DOCUMENTS, *copies], [*QUESTIONS, *asked])
    assert len(found.held_out) == 8
    assert {f"copy of {name}" for name in found.held_out if "copy" not in name} < set(found.held_out)
    with pytest.raises(InputError, match="2 documents have questions, equal texts counted once"):
        split([*DOCUMENTS[:2], *copies[:2]], [*QUESTIONS[:60], *asked[:60]])


def test_fewer_documents_and_none_that_is_served() -> None:
    found = split(DOCUMENTS, QUESTIONS, most_documents=6, served={"d0", "d1"})
    names = {document.doc_id for document in found.documents}
    assert len(names) == 6 and not names & {"d0", "d1"}
    assert {question.doc_ids[0] for question in (*found.train, *found.test)} == names


def test_modules_are_for_the_shortest_of_both_sides() -> None:
    documents = [replace(document, text="word " * (20 - place)) for place, document in enumerate(DOCUMENTS)]
    found = split(documents, QUESTIONS)
    names = [document.doc_id for document in documents]
    chosen = found.with_modules(10)
    assert chosen == [name for name in names if name in chosen] and len(chosen) == 10
    tested = [name for name in names if name in found.held_out][-2:]  # the later, the shorter
    learned = [name for name in names if name not in found.held_out][-8:]
    assert set(chosen) == {*tested, *learned}
    assert found.with_modules(None) == found.with_modules(20) == names
    with pytest.raises(InputError, match="2 documents with modules are too few"):
        found.with_modules(2)


def test_too_little_is_refused() -> None:
    with pytest.raises(InputError, match=r"2 documents are too few.*at least 3"):
        split(DOCUMENTS, QUESTIONS, most_documents=2)
    with pytest.raises(InputError, match=r"18 of them left out because the collection serves them.*2 documents have"):
        split(DOCUMENTS, QUESTIONS, served={document.doc_id for document in DOCUMENTS[2:]})
    with pytest.raises(InputError, match="0 documents have questions"):
        split(DOCUMENTS, [])
    tied = [EvalQuestion("all", "Who?", ("me",), tuple(document.doc_id for document in DOCUMENTS))]
    with pytest.raises(InputError, match="to learn from have 0 questions"):
        split(DOCUMENTS, tied)
