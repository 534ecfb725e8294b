"""Documents and questions with gold answers, read from JSON lines and checked line by line.

Knows nothing about stores or models. Invariant: every question that is handed out has a text, at least one gold answer
unless it is marked unanswerable, and gold documents, each once, that exist where the documents were given.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hybridqa.errors import InputError
from hybridqa.types import Message

T = TypeVar("T")
_VERSION = re.compile(r"@v(\d+)$")  # at the end of the id of one of several versions of a document


@dataclass(frozen=True, slots=True)
class EvalDocument:
    """A document to be asked about."""

    doc_id: str
    title: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """A question, its gold answers (any one of them is right) and the documents that hold them."""

    qid: str
    question: str
    answers: tuple[str, ...]
    doc_ids: tuple[str, ...]
    unanswerable: bool = False  # its documents do not hold an answer; `answers` may then be empty
    history: tuple[Message, ...] = ()  # earlier turns of its conversation, oldest first
    meta: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()  # of a multiple-choice question; `answers` holds the right one


def read_documents(path: Path) -> list[EvalDocument]:
    """The documents of a JSON lines file with `doc_id`, `text` and perhaps `title` and `meta`; others are ignored.

    Raises `InputError` that names the file, the line, the field and what was expected.
    """
    return _read(path, _document, lambda document: document.doc_id, "doc_id")


def read_questions(path: Path, documents: Collection[EvalDocument] | None = None) -> list[EvalQuestion]:
    """The questions of a JSON lines file with `qid`, `question`, `answers`, `doc_ids` and what a question may have.

    These are `unanswerable`, `history` (turns with `role` and `text`) and `meta`; others are ignored. Raises
    `InputError` as `read_documents` does, and for a question whose gold document is not among `documents`, when those
    are given.
    """
    known = None if documents is None else {document.doc_id for document in documents}
    return _read(path, lambda line: _question(line, known), lambda question: question.qid, "qid")


def sample(questions: Sequence[EvalQuestion], per_document: int, seed: int) -> list[EvalQuestion]:
    """At most `per_document` questions (0: all) for each first gold document, in their own order.

    A document's choice hangs on the seed and on its own questions alone, so that other documents do not change it.
    """
    if per_document < 0:
        raise InputError(f"{per_document!r} questions per document cannot be chosen; expected 0 (all) or more.")
    if per_document == 0:
        return list(questions)
    by_document: dict[str, list[str]] = {}
    for question in questions:
        by_document.setdefault(cluster_of(question), []).append(question.qid)
    chosen: set[str] = set()
    for doc_id, qids in by_document.items():
        rng = random.Random(f"{seed}\0{doc_id}")  # a text seeds alike in every process, a tuple would not
        chosen.update(qids if len(qids) <= per_document else rng.sample(sorted(qids), per_document))
    return [question for question in questions if question.qid in chosen]


def draw(questions: Sequence[T], most: int, seed: int) -> list[T]:
    """At most `most` of them (0: all), chosen by seed, in their own order."""
    if most < 0:
        raise InputError(f"{most!r} questions cannot be chosen; expected 0 (all) or more.")
    if most == 0 or len(questions) <= most:
        return list(questions)
    return [questions[place] for place in sorted(random.Random(seed).sample(range(len(questions)), most))]


def version_of(doc_id: str) -> tuple[str, int]:
    """The document's name and its version: `('a', 2)` of 'a@v2', version 1 of an id that names none."""
    found = _VERSION.search(doc_id)
    return (doc_id[: found.start()], int(found.group(1))) if found else (doc_id, 1)


def first_versions(documents: Sequence[EvalDocument]) -> list[EvalDocument]:
    """The documents without the later versions of those that there are several of: a store holds one at a time."""
    versions = [version_of(document.doc_id) for document in documents]
    first: dict[str, int] = {}
    for name, version in versions:
        first[name] = min(version, first.get(name, version))
    return [document for document, (name, version) in zip(documents, versions, strict=True) if version == first[name]]


def cluster_of(question: EvalQuestion) -> str:
    """The document that a question counts for: its first gold document."""
    return question.doc_ids[0] if question.doc_ids else ""


class _Line:
    """One JSON object of a file, whose fields are asked for by name and kind."""

    def __init__(self, where: str, data: dict[str, Any]) -> None:
        self.where = where
        self._data = data

    def text(self, name: str, default: str | None = None) -> str:
        value = self._data.get(name, default)
        if not isinstance(value, str) or not (value.strip() or default is not None):
            raise self.wrong(name, "a text that is not empty" if default is None else "a text")
        return value

    def texts(self, name: str, *, empty: bool, missing: bool = False) -> tuple[str, ...]:
        value = self._data.get(name, [] if missing else None)
        good = isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value)
        if not good or not (value or empty):
            raise self.wrong(name, f"a list of {'' if empty else 'one or more '}texts, none of them empty")
        return tuple(value or ())

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._data.get(name)
        return value if isinstance(value, dict) else {}

    def turns(self, name: str) -> tuple[Message, ...]:
        value = self._data.get(name) or []
        if not isinstance(value, list) or not all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("text"), str)
            for turn in value
        ):
            raise self.wrong(name, "a list of turns with 'role' and 'text'")
        return tuple(Message(turn["role"], turn["text"]) for turn in value)

    def options(self, name: str) -> tuple[str, ...]:
        value = self._data.get(name)
        good = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return tuple(value) if good and value else ()

    def flag(self, name: str) -> bool:
        value = self._data.get(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def wrong(self, name: str, expected: str) -> InputError:
        found = f"is {self._data[name]!r:.80}" if name in self._data else "is missing"
        return InputError(f"{self.where}: field {name!r} {found}; expected {expected}.")


def _document(line: _Line) -> EvalDocument:
    return EvalDocument(line.text("doc_id"), line.text("title", ""), line.text("text"), line.mapping("meta"))


def _question(line: _Line, known: Collection[str] | None) -> EvalQuestion:
    unanswerable = line.flag("unanswerable")
    question = EvalQuestion(
        qid=line.text("qid"),
        question=line.text("question"),
        answers=line.texts("answers", empty=unanswerable, missing=unanswerable),
        doc_ids=tuple(dict.fromkeys(line.texts("doc_ids", empty=True, missing=unanswerable))),
        unanswerable=unanswerable,
        history=line.turns("history"),
        meta=line.mapping("meta"),
        options=line.options("options"),
    )
    missing = [doc_id for doc_id in question.doc_ids if known is not None and doc_id not in known]
    if missing and not unanswerable:  # which is asked of nothing
        raise line.wrong("doc_ids", f"ids of documents that were given, and {missing[0]!r} is none of them")
    return question


def _read(path: Path, make: Callable[[_Line], T], key: Callable[[T], str], name: str) -> list[T]:
    """Every line of the file as an item; no two with the same key."""
    items: dict[str, T] = {}
    for line in _lines(path):
        item = make(line)
        if key(item) in items:
            raise line.wrong(name, "one that no line before it has")
        items[key(item)] = item
    if not items:
        raise InputError(f"{str(path)!r} holds nothing; expected a JSON object on each line.")
    return list(items.values())


def _lines(path: Path) -> Iterator[_Line]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                where = f"{str(path)!r} line {number}"
                try:
                    data = json.loads(text)
                except ValueError as error:
                    raise InputError(f"{where} is no JSON: {error}; expected one JSON object.") from error
                if not isinstance(data, dict):
                    raise InputError(f"{where} is {type(data).__name__}; expected one JSON object.")
                yield _Line(where, data)
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not in UTF-8: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}; expected a file of JSON lines.") from error
