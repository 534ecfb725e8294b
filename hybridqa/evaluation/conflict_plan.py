"""Documents that change and questions whose answer changes with them: what a measurement of conflicts is about.

Knows nothing about stores or models. Invariant: the old answer stands in the old text alone and the new one in the new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridqa.config import Settings
from hybridqa.errors import InputError
from hybridqa.evaluation.datasets import (
    EvalDocument,
    EvalQuestion,
    draw,
    first_versions,
    read_documents,
    read_questions,
    version_of,
)
from hybridqa.evaluation.metrics import contains
from hybridqa.evaluation.stores import own_settings


@dataclass(frozen=True, slots=True)
class Change:
    """A question whose answer changes with its document."""

    question: EvalQuestion
    before: EvalDocument
    after: EvalDocument
    old: str  # the answer before, as it stands in the text
    new: str

    @property
    def doc_id(self) -> str:
        """The document's id in the store, whatever its version."""
        return version_of(self.before.doc_id)[0]


@dataclass(frozen=True, slots=True)
class ConflictPlan:
    """What is measured."""

    docs: Path
    questions_file: Path
    documents: list[EvalDocument]  # all of the store, in their first version
    changes: list[Change]
    seed: int
    extractor: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def make_plan(
    docs: Path,
    questions: Path,
    settings: Settings,
    *,
    documents: int = 12,
    seed: int = 0,
    extractor: Path | None = None,
) -> ConflictPlan:
    """At most `documents` changes (0: all), one for a document, among the first versions of all documents.

    Raises `InputError` where no question has `meta.answers_v2` and a document `ID@v1` with an `ID@v2`.
    """
    versions = read_documents(docs)
    first = first_versions(versions)
    found = _changes(versions, first, read_questions(questions, versions))
    if not found:
        raise InputError(
            f"{str(questions)!r} has no question whose answer changes with a document of {str(docs)!r}; expected "
            "'doc_ids' of one 'ID@v1' with an 'ID@v2' beside it, an answer that stands in the first, and "
            "'meta': {'answers_v2': [...]} with one that stands in the second."
        )
    named = [
        EvalDocument(version_of(document.doc_id)[0], document.title, document.text, document.meta) for document in first
    ]
    chosen = draw(found, documents, seed)
    return ConflictPlan(docs, questions, named, chosen, seed, extractor, own_settings(settings))


def _changes(
    versions: Sequence[EvalDocument], first: Sequence[EvalDocument], questions: Sequence[EvalQuestion]
) -> list[Change]:
    by_name = {version_of(document.doc_id)[0]: document for document in first}
    later: dict[str, EvalDocument] = {}
    for document in sorted(versions, key=lambda document: version_of(document.doc_id)[1]):
        name = version_of(document.doc_id)[0]
        if document is not by_name[name]:
            later.setdefault(name, document)
    found: dict[str, Change] = {}
    for question in questions:
        names = {version_of(doc_id)[0] for doc_id in question.doc_ids}
        if question.unanswerable or len(names) != 1 or question.doc_ids[0] != by_name[name := names.pop()].doc_id:
            continue
        before, after = by_name[name], later.get(name)
        answers = question.meta.get("answers_v2")
        if after is None or name in found or not isinstance(answers, list):
            continue
        old = _standing(question.answers, before.text, unlike=after.text)
        new = _standing([text for text in answers if isinstance(text, str)], after.text, unlike=before.text)
        if old is not None and new is not None:
            found[name] = Change(question, before, after, old, new)
    return list(found.values())


def _standing(answers: Sequence[str], text: str, *, unlike: str) -> str | None:
    """The first of the answers that the text has and the other version has not."""
    return next((answer for answer in answers if contains(text, [answer]) and not contains(unlike, [answer])), None)
