"""What a grid is asked to do, checked before any model is loaded.

Knows nothing about how it is done. Invariant: a `Plan` can be carried out: its files were read, its arms exist, its
extractors are whole, its ranks fit one stack, its folders can be written.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridqa.config import LORA_RANKS, Settings
from hybridqa.errors import ConfigError
from hybridqa.evaluation.arms import COMPARED, Arm, check_objectives, choose_arms
from hybridqa.evaluation.datasets import (
    EvalDocument,
    EvalQuestion,
    cluster_of,
    read_documents,
    read_questions,
    sample,
)
from hybridqa.evaluation.extractors import Extractor, bundled

ROUTES = ("gold", "router")
OWN_SETTINGS = frozenset({"store", "name", "max_lora_rank", "passages", "max_answer_tokens", "seed"})


@dataclass(frozen=True, slots=True)
class GridOptions:
    """What was asked for."""

    docs: Path
    questions: Path
    arms: Sequence[str] | None = None  # None: all that can be had
    objectives: Sequence[str] | None = None  # the first is the main one; None: those of the comparison
    extractor: Path | None = None  # None: the one that comes with the package for the model, if any
    extractor_rag: Path | None = None  # trained without modules: for RAG+KE
    no_extractor: bool = False
    route: str = "gold"  # whose module a question gets: its gold document's, or the "router"'s choice
    passages: Sequence[int] = ()  # none: the setting's; with several each arm that retrieves is asked with each
    compose: Sequence[int] = ()
    documents: int = 0  # 0: all
    max_words: int = 0  # of a document that is asked about; 0: any length
    questions_per_document: int = 20  # 0: all
    max_answer_tokens: int = 32
    seed: int | None = None  # None: the setting's


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done."""

    options: GridOptions
    settings: dict[str, Any]  # of the grid's own store
    seed: int
    documents: list[EvalDocument]  # all of them: they are searched
    questions: list[EvalQuestion]  # those that are asked
    unanswerable: int  # questions that no arm is asked: without an answer,
    without_document: int  # and with one, but about no document
    doc_ids: list[str]  # gold documents of the questions asked: these get modules
    objectives: tuple[str, ...]
    arms: list[Arm]
    absent: dict[str, str]  # arms that were asked for and cannot be, and why
    extractor: Extractor | None
    extractor_rag: Extractor | None

    @property
    def trained(self) -> tuple[str, ...]:
        """The objectives whose modules some arm plugs in."""
        used = {arm.objective for arm in self.arms}
        return tuple(objective for objective in self.objectives if objective in used)


def make_plan(options: GridOptions, settings: Settings) -> Plan:
    """The plan of a grid with a user's settings. Raises `ConfigError`, `InputError` or an `AdapterError`."""
    _check_numbers(options)
    objectives = check_objectives(COMPARED if options.objectives is None else options.objectives)
    if options.extractor_rag is not None and options.extractor is None:
        raise ConfigError("--extractor-rag was given without --extractor; expected both, or --extractor alone.")
    if options.extractor is not None and options.no_extractor:
        raise ConfigError("--extractor was given with --no-extractor; expected one of them.")
    folders = (options.extractor, options.extractor_rag)
    if options.extractor is None and not options.no_extractor:
        folders = bundled(settings.model)
    arms, absent = choose_arms(
        options.arms, objectives, options.compose, options.passages, extractor=folders[0] is not None
    )
    extractor, extractor_rag = (None if folder is None else Extractor.load(folder) for folder in folders)
    if not any(arm.extractor for arm in arms):
        extractor = extractor_rag = None
    documents = read_documents(options.docs)
    every = read_questions(options.questions, documents)
    seed = settings.seed if options.seed is None else options.seed
    usable = [question for question in every if question.doc_ids and not question.unanswerable]
    asked = _choose(usable, documents, options, seed)
    doc_ids = list(dict.fromkeys(doc_id for question in asked for doc_id in question.doc_ids))
    most = max(options.compose, default=1)
    if len(doc_ids) < most:
        raise ConfigError(
            f"--compose {most} needs {most} documents with questions; {len(doc_ids)} are asked about. "
            "Give a smaller number, or more documents."
        )
    own: dict[str, Any] = {name: getattr(settings, name) for name in settings.model_fields_set - OWN_SETTINGS}
    own |= {
        "passages": max(options.passages, default=settings.passages),
        "max_answer_tokens": options.max_answer_tokens,
        "seed": seed,
        "max_lora_rank": _enough_rank(settings, arms, asked, (extractor, extractor_rag)),
    }
    return Plan(
        options=options,
        settings=own,
        seed=seed,
        documents=documents,
        questions=asked,
        unanswerable=sum(question.unanswerable for question in every),
        without_document=sum(not question.doc_ids and not question.unanswerable for question in every),
        doc_ids=doc_ids,
        objectives=objectives,
        arms=arms,
        absent=absent,
        extractor=extractor,
        extractor_rag=extractor_rag,
    )


def _check_numbers(options: GridOptions) -> None:
    if options.route not in ROUTES:
        raise ConfigError(f"--route is {options.route!r}; expected one of {', '.join(ROUTES)}.")
    least = (
        ("--documents", options.documents, 0),
        ("--max-words", options.max_words, 0),
        ("--questions-per-document", options.questions_per_document, 0),
        ("--max-answer-tokens", options.max_answer_tokens, 1),
        ("--passages", min(options.passages, default=1), 1),
        ("--seed", options.seed or 0, 0),
    )
    for name, value, lowest in least:
        if value < lowest:
            raise ConfigError(f"{name} is {value!r}; expected {lowest} or more.")


def _choose(
    questions: Sequence[EvalQuestion], documents: Sequence[EvalDocument], options: GridOptions, seed: int
) -> list[EvalQuestion]:
    """The questions to be asked: those of the documents chosen by length and seed, so many of each."""
    if not questions:
        raise ConfigError(
            f"{str(options.questions)!r} has no question with an answer and a document; expected at least one."
        )
    if options.max_words:
        short = {document.doc_id for document in documents if len(document.text.split()) <= options.max_words}
        questions = [question for question in questions if short.issuperset(question.doc_ids)]
        if not questions:
            raise ConfigError(
                f"--max-words {options.max_words} leaves no question: all are about longer documents. Give a larger "
                "number."
            )
    clusters = list(dict.fromkeys(cluster_of(question) for question in questions))
    if options.documents:
        random.Random(seed).shuffle(clusters)
        clusters = clusters[: options.documents]
    kept = [question for question in questions if cluster_of(question) in clusters]
    return sample(kept, options.questions_per_document, seed)


def _enough_rank(
    settings: Settings, arms: Sequence[Arm], questions: Sequence[EvalQuestion], extractors: Sequence[Extractor | None]
) -> int:
    """The smallest `max_lora_rank` that takes the largest stack, not below the setting."""
    gold = max(len(question.doc_ids) for question in questions)
    extractor = max((found.adapter.rank for found in extractors if found is not None), default=0)
    needed = settings.max_lora_rank
    for arm in arms:
        modules = 0 if arm.objective is None else max(gold, settings.modules)
        stacked = gold + arm.stacked - 1 if arm.stacked is not None else modules
        needed = max(needed, stacked * settings.module_rank + (extractor if arm.extractor else 0))
    enough = [rank for rank in LORA_RANKS if rank >= needed]
    if not enough:
        raise ConfigError(
            f"the largest stack has rank {needed}; expected at most {LORA_RANKS[-1]}. Give a smaller --compose, or "
            "a smaller module_rank."
        )
    return enough[0]
