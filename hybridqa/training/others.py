"""What a job is told of the other documents of its collection: their modules, and questions about them.

Knows nothing about training. Invariant: all of it is of the document's own collection, and the same store, document and
seed give the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybridqa.catalog import Catalog
from hybridqa.training.facts import find_facts
from hybridqa.training.job_folder import RESULT
from hybridqa.training.lesson import BESIDE, CHECKPOINT, Job
from hybridqa.training.pairs import held_out_pairs
from hybridqa.training.recipe import Recipe
from hybridqa.types import ModuleKind

JUDGES = 2  # modules that the gate has beside the one it judges
QUESTIONS = 32  # about other documents, at most
QUESTIONS_EACH = 4  # about one of them
PASSAGES_EACH = 12  # of one of them, that are read for questions


def others_of(catalog: Catalog, collection: str, doc_id: str, model_hash: str, recipe: Recipe) -> dict[str, Any]:
    """A job's `companions` and `off_topic`: drawn by the recipe's seed from what the collection holds now."""
    return {
        "companions": companions_of(catalog, collection, doc_id, model_hash, recipe),
        "off_topic": questions_about_others(catalog, collection, doc_id, recipe),
    }


def companions_of(catalog: Catalog, collection: str, doc_id: str, model_hash: str, recipe: Recipe) -> tuple[str, ...]:
    """Folders of other documents' modules in service: some to train beside, and `JUDGES` more."""
    folders = [
        str(module.path.absolute())
        for module in catalog.list_modules(collection)
        if module.current
        and module.kind is ModuleKind.DOCUMENT
        and module.base_model_hash == model_hash
        and doc_id not in module.documents
    ]
    return some_of(folders, doc_id, recipe)


def some_of(folders: Sequence[str], doc_id: str, recipe: Recipe) -> tuple[str, ...]:
    """As many of the others' folders as a document's job takes, drawn by the recipe's seed."""
    drawn = list(folders)
    random.Random(f"{recipe.seed} {doc_id}").shuffle(drawn)
    return tuple(drawn[: recipe.distractors + JUDGES])


def questions_about_others(
    catalog: Catalog, collection: str, doc_id: str, recipe: Recipe
) -> tuple[tuple[str, str], ...]:
    """Questions about other documents, a few about each, with the answers that stand there."""
    documents = [document for document in catalog.list_documents(collection) if document.doc_id != doc_id]
    random.Random(f"{recipe.seed} {doc_id}").shuffle(documents)
    questions: list[tuple[str, str]] = []
    for document in documents[: QUESTIONS // QUESTIONS_EACH if recipe.retention else 0]:
        texts = [passage.text for passage in catalog.document_passages(collection, document.doc_id)[:PASSAGES_EACH]]
        pairs = held_out_pairs(find_facts(texts), chunks=len(texts), most=QUESTIONS_EACH, seed=recipe.seed)
        questions.extend((pair.question, pair.answer) for pair in pairs)
    return tuple(questions)


def tell_others(catalog: Catalog, folders: Sequence[Path], event: Mapping[str, Any]) -> None:
    """When a job of `folders` is done, has those that may begin next hear of the modules that are in service now.

    These are the ones behind its batch, where several train together; those that have begun stay with what they have.
    """
    if event["stage"] != "done":
        return
    for folder in next_jobs(folders, event):
        tell_job(
            folder,
            lambda job: companions_of(catalog, job.collection, job.doc_id, job.model_hash, Recipe(**job.recipe)),
        )


def next_jobs(folders: Sequence[Path], event: Mapping[str, Any]) -> list[Path]:
    """Of jobs that are done in order, those that may begin in the next batch when the one that the event names ends."""
    first = [folder.name for folder in folders].index(event["job"]) + 1
    return list(folders[first : first + 2 * int(event.get("together", 1))])


def tell_job(folder: Path, choose: Callable[[Job], tuple[str, ...]]) -> None:
    """Gives a job the companions that are chosen for it, unless it has begun with others, or ended."""
    if any((folder / name).exists() for name in (BESIDE, CHECKPOINT, RESULT)):
        return
    job = Job.load(folder)
    companions = choose(job)
    if companions != job.companions:
        replace(job, companions=companions).save(folder)
