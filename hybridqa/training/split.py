"""Which documents and questions an extractor learns from, and which it is tested on.

Knows nothing about stores or prompts. Invariant: no document, and no text, is on both sides, no question is asked of a
side that does not hold all of its documents, and equal data, numbers and seed give equal sides.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hybridqa.errors import InputError
from hybridqa.evaluation.datasets import EvalDocument, EvalQuestion, sample
from hybridqa.ingest.library import content_hash
from hybridqa.ingest.source import normalise

HELD_OUT = 0.2  # share of the documents, at least MIN_HELD_OUT of them
MIN_HELD_OUT = 2  # fewer documents give no interval
TEST_QUESTIONS = 12  # of each held-out document, at most; each is asked in every configuration


@dataclass(frozen=True, slots=True)
class Split:
    """Both sides."""

    documents: tuple[EvalDocument, ...]  # of both, in their own order
    held_out: tuple[str, ...]  # ids of documents
    train: tuple[EvalQuestion, ...]
    test: tuple[EvalQuestion, ...]

    def with_modules(self, most: int | None) -> list[str]:
        """Ids of the documents that get modules, in order: all, or `most` of them, the shortest, on both sides alike.

        What a module takes grows with its document's length. The held-out ones among them are `HELD_OUT` of all,
        `MIN_HELD_OUT` at least. Raises `InputError` when `most` is too small for both sides.
        """
        names = [document.doc_id for document in self.documents]
        if most is None or most >= len(names):
            return names
        if most < MIN_HELD_OUT + 1:
            raise InputError(
                f"{most!r} documents with modules are too few; expected at least {MIN_HELD_OUT + 1}: one to learn from "
                f"and {MIN_HELD_OUT} to be tested on. Give more with --module-documents."
            )
        shortest = sorted(self.documents, key=lambda document: len(document.text))
        tested = [document.doc_id for document in shortest if document.doc_id in self.held_out]
        tested = tested[: max(MIN_HELD_OUT, round(HELD_OUT * most))]
        learned = [document.doc_id for document in shortest if document.doc_id not in self.held_out]
        chosen = {*tested, *learned[: most - len(tested)]}
        return [name for name in names if name in chosen]


def text_hash(text: str) -> str:
    """The same for equal texts, whatever their titles and headings."""
    return content_hash("", normalise(text))


def split(
    documents: Sequence[EvalDocument],
    questions: Sequence[EvalQuestion],
    *,
    most_documents: int | None = None,
    per_document: int = 0,
    served: Collection[str] = (),
    seed: int = 0,
) -> Split:
    """Splits by document: at most `most_documents` of those with questions, `per_document` (0: all) questions of each.

    Documents whose ids are in `served` are left out with their questions. Raises `InputError` when too little is left.
    """
    if most_documents is not None and most_documents < MIN_HELD_OUT + 1:
        raise InputError(
            f"{most_documents!r} documents are too few; expected at least {MIN_HELD_OUT + 1}: one to learn from and "
            f"{MIN_HELD_OUT} to be tested on."
        )
    usable = {document.doc_id for document in documents} - set(served)
    kept = [question for question in questions if question.doc_ids and usable.issuperset(question.doc_ids)]
    asked = {doc_id for question in kept for doc_id in question.doc_ids}
    names = [document.doc_id for document in documents if document.doc_id in asked]
    rng = random.Random(seed)
    if most_documents is not None and len(names) > most_documents:
        chosen = set(rng.sample(names, most_documents))
        names = [name for name in names if name in chosen]
    hashes = {document.doc_id: text_hash(document.text) for document in documents}
    first_of: dict[str, str] = {}  # by a text's hash, the first document that has it
    first = {name: first_of.setdefault(hashes[name], name) for name in names}
    firsts = list(first_of.values())  # equal texts stay on one side
    if len(firsts) < MIN_HELD_OUT + 1:
        left = f", {len(set(served))} of them left out because the collection serves them" if served else ""
        raise InputError(
            f"{len(documents)} documents and {len(questions)} questions were given{left}, and {len(firsts)} documents "
            f"have questions, equal texts counted once; expected at least {MIN_HELD_OUT + 1}: one to learn from and "
            f"{MIN_HELD_OUT} to be tested on. Give more in --docs and --questions, about other documents than those of "
            "the collection."
        )
    drawn = set(rng.sample(firsts, max(MIN_HELD_OUT, round(HELD_OUT * len(firsts)))))
    held_out = {name for name in names if first[name] in drawn}
    rest = set(names) - held_out
    train = sample([question for question in kept if rest.issuperset(question.doc_ids)], per_document, seed)
    most = min(TEST_QUESTIONS, per_document or TEST_QUESTIONS)
    test = sample([question for question in kept if held_out.issuperset(question.doc_ids)], most, seed)
    if not train or not test:
        raise InputError(
            f"the {len(rest)} documents to learn from have {len(train)} questions and the {len(held_out)} held-out "
            f"ones {len(test)}; expected some of both. A question about several documents counts only where all "
            "of these are on one side: give more, or raise --documents."
        )
    return Split(
        tuple(document for document in documents if document.doc_id in rest | held_out),
        tuple(name for name in names if name in held_out),
        tuple(train),
        tuple(test),
    )
