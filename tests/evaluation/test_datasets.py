"""Data sets: good lines come through, a bad line is named with its field and what was expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridqa.errors import InputError
from hybridqa.evaluation.datasets import (
    EvalDocument,
    EvalQuestion,
    cluster_of,
    draw,
    first_versions,
    read_documents,
    read_questions,
    sample,
    version_of,
)
from hybridqa.types import Message

QUESTION = {"qid": "q", "question": "Who?", "answers": ["Ann"], "doc_ids": ["a"]}


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_good_lines_come_through(tmp_path: Path) -> None:
    documents = read_documents(
        write(
            tmp_path / "d", [{"doc_id": "a", "text": "Ann.", "meta": 1}, "", {"doc_id": "b", "title": "B", "text": "x"}]
        )
    )
    assert documents == [EvalDocument("a", "", "Ann."), EvalDocument("b", "B", "x")]
    nothing = {"qid": "none", "question": "Why?", "unanswerable": True}
    questions = read_questions(write(tmp_path / "q", [{**QUESTION, "options": [1]}, nothing]), documents)
    assert questions == [
        EvalQuestion("q", "Who?", ("Ann",), ("a",)),
        EvalQuestion("none", "Why?", (), (), unanswerable=True),
    ]
    assert [cluster_of(question) for question in questions] == ["a", ""]
    homeless = [{**QUESTION, "doc_ids": []}, {**nothing, "doc_ids": ["lost"]}]  # neither is asked about a document
    assert [question.doc_ids for question in read_questions(write(tmp_path / "h", homeless), documents)] == [
        (),
        ("lost",),
    ]


def test_a_document_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    (question,) = read_questions(write(tmp_path / "questions.jsonl", [{**QUESTION, "doc_ids": ["b", "a", "b"]}]))
    assert question.doc_ids == ("b", "a")


def test_documents_of_an_answered_question_have_to_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "questions.jsonl", [{"qid": "q", "question": "Who?", "answers": ["Ann"]}])
    with pytest.raises(InputError, match="'doc_ids' is missing"):
        read_questions(path, [EvalDocument("a", "", "Ann.")])


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"qid": 7}, "qid", "a text"),
        ({"question": "  "}, "question", "not empty"),
        ({"answers": []}, "answers", "one or more texts"),
        ({"answers": "Ann"}, "answers", "a list"),
        ({"answers": ["Ann", ""]}, "answers", "none of them empty"),
        ({"doc_ids": None}, "doc_ids", "a list of texts"),
        ({"doc_ids": [""]}, "doc_ids", "none of them empty"),
        ({"doc_ids": ["lost"]}, "doc_ids", "'lost' is none of them"),
        ({"unanswerable": "no"}, "unanswerable", "true or false"),
        ({"qid": "first"}, "qid", "no line before it has"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, change: dict[str, Any], field: str, expected: str) -> None:
    path = write(tmp_path / "questions.jsonl", [{**QUESTION, "qid": "first"}, {**QUESTION, **change}])
    with pytest.raises(InputError) as caught:
        read_questions(path, [EvalDocument("a", "", "Ann.")])
    text = str(caught.value)
    assert str(path) in text and "line 2" in text and repr(field) in text and expected in text


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "no JSON"), ("[1]", "list"), ('{"doc_id": "a"}', "'text' is missing"), ('{"text": "x"}', "'doc_id'")],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(InputError, match="line 1") as caught:
        read_documents(write(tmp_path / "d.jsonl", [line]))
    assert said in str(caught.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'{"doc_id": "\xe9"}')
    (tmp_path / "empty").write_bytes(b"\n")
    for name, said in (("lost", "cannot be read"), ("latin", "UTF-8"), ("empty", "holds nothing")):
        with pytest.raises(InputError, match=said):
            read_documents(tmp_path / name)


def test_a_sample_is_the_same_again_and_bounded() -> None:
    questions = [EvalQuestion(f"{doc}{n}", "?", ("x",), (doc,)) for doc in "abc" for n in range(10)]
    chosen = sample(questions, 4, seed=1)
    assert chosen == sample(questions, 4, seed=1) != sample(questions, 4, seed=2)
    assert [question.doc_ids[0] for question in chosen] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert sample(questions, 0, seed=1) == sample(questions, 10, seed=1) == questions
    alone = [question for question in questions if question.doc_ids == ("b",)]
    assert sample(alone, 4, seed=1) == [question for question in chosen if question.doc_ids == ("b",)]
    with pytest.raises(InputError):
        sample(questions, -1, seed=0)


def test_what_a_question_may_have_comes_through(tmp_path: Path) -> None:
    turns = [{"role": "user", "text": "Who?"}, {"role": "assistant", "text": "Ann."}]
    line = {**QUESTION, "history": turns, "meta": {"kind": "follow-up"}, "options": ["Ann", "Bo"]}
    [question] = read_questions(write(tmp_path / "q", [line]))
    assert question.history == (Message("user", "Who?"), Message("assistant", "Ann."))
    assert question.meta == {"kind": "follow-up"} and question.options == ("Ann", "Bo")
    [document] = read_documents(write(tmp_path / "d", [{"doc_id": "a", "text": "x", "meta": {"date": "2031-03-08"}}]))
    assert document.meta == {"date": "2031-03-08"}


@pytest.mark.parametrize("history", ["Who?", [{"role": "user"}], [{"role": "user", "text": 3}], ["Who?"]])
def test_turns_that_are_none_are_named(history: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"field 'history' .* expected a list of turns with 'role' and 'text'"):
        read_questions(write(tmp_path / "q", [{**QUESTION, "history": history}]))


def test_of_several_versions_the_first_that_is_there_is_kept() -> None:
    names = ["a@v2", "a@v1", "b", "c@v3", "c@v2", "d@vx"]
    kept = first_versions([EvalDocument(name, "", "x") for name in names])
    assert [document.doc_id for document in kept] == ["a@v1", "b", "c@v2", "d@vx"]
    assert [version_of(name) for name in ("a@v12", "a", "@v1")] == [("a", 12), ("a", 1), ("", 1)]


def test_a_draw_keeps_the_order_and_hangs_on_the_seed() -> None:
    numbers = list(range(100))
    drawn = draw(numbers, 10, 3)
    assert drawn == sorted(drawn) and len(set(drawn)) == 10
    assert drawn == draw(numbers, 10, 3) != draw(numbers, 10, 4)
    assert draw(numbers, 0, 3) == numbers == draw(numbers, 100, 3)
    with pytest.raises(InputError, match="-1 questions"):
        draw(numbers, -1, 3)
