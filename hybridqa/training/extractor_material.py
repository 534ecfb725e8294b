"""What an extractor is trained on, gathered from the store of its documents: exercises, modules, the recipe.

Knows nothing about training or the registry that the extractor goes to. Invariant: no exercise to learn from is about a
held-out document or has one's module plugged in, and equal stores and options give equal jobs.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hybridqa.answering.prompt import UNKNOWN
from hybridqa.config import Settings
from hybridqa.engine.vllm_args import context_length
from hybridqa.errors import InputError, TrainingError
from hybridqa.evaluation.datasets import EvalDocument, EvalQuestion
from hybridqa.ingest.library import content_hash
from hybridqa.ingest.source import normalise, one_line
from hybridqa.modules.adapter import WEIGHTS_FILE
from hybridqa.modules.manifest import read_manifest
from hybridqa.training.exercises import Exercise, ExerciseWriter
from hybridqa.training.extractor_gate import documents_tested
from hybridqa.training.extractor_job import ExtractorJob
from hybridqa.training.extractor_outcome import ExtractorOptions
from hybridqa.training.mixture import Mixture
from hybridqa.training.recipe import Recipe
from hybridqa.training.split import MIN_HELD_OUT, Split
from hybridqa.types import DEFAULT_COLLECTION, Mode, Module, ScoredPassage

if TYPE_CHECKING:
    from hybridqa.pipeline import HybridQA

PACK_TOKENS = 2048  # two or three prompts with passages; what a step holds in memory grows with it
FOUND_PASSAGES = 8  # that an exercise's may be of
TURNS = 2  # of each question, each time in a configuration drawn anew; what comes out the same again is left out
EPOCHS = 1.0  # over all of them
B_RATIO = 8.0
ABSTAINING = 0.1  # share of the exercises, at most: of many right answers none is as likely as one and the same refusal
RATE = 0.15  # of the setting `learning_rate`, which suits small packs and adapters of half the layers
Told = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Material:
    """A job, and what is worth knowing about how it came to be."""

    job: ExtractorJob
    about: dict[str, Any]

    @classmethod
    def gather(cls, work: HybridQA, chosen: Split, options: ExtractorOptions, tell: Told) -> Material:
        """The material of a split from the store that holds its documents, with the modules that passed their gates.

        Raises `TrainingError` when modules are wanted and there is none, `InputError` when no question can be asked.
        """
        taught = chosen.with_modules(options.module_documents) if options.modules else []
        modules = _modules(work, chosen, set(taught)) if options.modules else {}
        mixture = options.mixture if options.modules else options.mixture.without_modules()
        learned = [name for name in modules if name not in chosen.held_out]
        exercises, dropped = _draw(_writer(work, learned), chosen.train, mixture, tell, work.settings.seed)
        tester = _writer(work, list(modules))
        held_out = [exercise for question in chosen.test for exercise in tester.every(question)]
        if (tested := documents_tested(held_out)) < MIN_HELD_OUT:
            raise InputError(
                f"held-out questions about {tested} documents can be answered from their passages or modules; expected "
                f"at least {MIN_HELD_OUT}, or nothing would be tested. Give more documents, with questions whose "
                "answers stand in them word for word."
            )
        used = sorted({exercise.module for exercise in (*exercises, *held_out) if exercise.module is not None})
        model, settings = work.model, work.settings
        job = ExtractorJob(
            model_name=model.name,
            model_path=str(model.path),
            model_hash=model.hash,
            prompt=work.prompts.fingerprint,
            context_tokens=settings.context_tokens,
            max_model_len=context_length(model.path, settings.max_model_len),
            recipe=asdict(extractor_recipe(settings, options.steps)),
            exercises=tuple(exercises),
            held_out=tuple(held_out),
            modules={name: read_manifest(modules[name].path).files[WEIGHTS_FILE] for name in used},
            folders={name: str(modules[name].path) for name in used},
        )
        about = {
            "documents": {"train": len(chosen.documents) - len(chosen.held_out), "held_out": list(chosen.held_out)},
            "modules": len(modules),
            "exercises": dict(Counter(exercise.configuration for exercise in exercises)),
            "abstaining": sum(exercise.target == UNKNOWN for exercise in exercises),
            "dropped": dropped,
            "mixture": asdict(mixture),
        }
        return cls(job, about)


def extractor_recipe(settings: Settings, steps: int) -> Recipe:
    """What an extractor is trained by: all layers, on answers alone."""
    return Recipe(
        objective="sft",
        rank=settings.module_rank,
        alpha=settings.module_alpha,
        first_layer=0.0,
        learning_rate=settings.learning_rate * RATE,
        b_ratio=B_RATIO,
        memory_mb=settings.train_memory_mb,
        epochs=EPOCHS,
        steps=steps,
        pack_tokens=PACK_TOKENS,
        seed=settings.seed,
    )


def hash_of(document: EvalDocument) -> str:
    """What a catalog calls this document's content, once it is added as a text."""
    return content_hash(one_line(normalise(document.title)), normalise(document.text))


def _draw(
    writer: ExerciseWriter, questions: Sequence[EvalQuestion], mixture: Mixture, tell: Told, seed: int
) -> tuple[list[Exercise], dict[str, int]]:
    """Each question in its configurations, and how many exercises cannot be had, by reason."""
    exercises: list[Exercise] = []
    abstaining: list[Exercise] = []
    dropped: Counter[str] = Counter()
    seen: set[tuple[str, Exercise | str]] = set()
    for place, (turn, question) in enumerate(itertools.product(range(TURNS), questions)):
        if place % 10 == 0:
            tell(place, TURNS * len(questions))
        written = writer.draw(question, mixture, turn)
        if (question.qid, written) in seen:
            continue
        seen.add((question.qid, written))
        if not isinstance(written, Exercise):
            dropped[written] += 1
        elif written.target == UNKNOWN:
            abstaining.append(written)
        else:
            exercises.append(written)
    share = max(ABSTAINING, mixture.neither)
    room = max(1, round(len(exercises) * share / (1 - share))) if share < 1 else len(abstaining)
    if len(abstaining) > room:
        dropped["enough others have no answer in their passages"] = len(abstaining) - room
        abstaining = random.Random(seed).sample(abstaining, room)
    exercises += abstaining
    if not exercises:
        why = "; ".join(f"of {count}, {reason}" for reason, count in dropped.items())
        raise InputError(
            f"none of {len(questions)} questions can be asked ({why}); expected questions whose "
            "answers stand in their documents. Give others with --questions."
        )
    return exercises, dict(dropped)


def _modules(work: HybridQA, chosen: Split, taught: Collection[str]) -> dict[str, Module]:
    """The fresh module in service of each document that has one, of those in `taught`."""
    found: dict[str, Module] = {}
    for document in chosen.documents:
        if document.doc_id not in taught:
            continue
        for module in work.catalog.modules_for_documents(DEFAULT_COLLECTION, [document.doc_id]):
            fresh = module.documents.get(document.doc_id) == hash_of(document)
            if fresh and module.base_model_hash == work.model.hash:
                work.registry.verify(module)
                found[document.doc_id] = module
    if not found:
        raise TrainingError(
            f"none of the modules of {len(taught)} documents passed its gate; expected at least one to stand "
            "beside the extractor. Give longer documents, or train it on passages alone with --no-modules."
        )
    return found


def _writer(work: HybridQA, modules: Sequence[str]) -> ExerciseWriter:
    """A writer that finds passages as an answer's are found."""
    settings = work.settings
    wanted = max(settings.passages, FOUND_PASSAGES)
    router = work.router

    def find(question: str) -> Sequence[ScoredPassage]:
        found = work.searcher.search(question, k=wanted, collection=DEFAULT_COLLECTION)
        return router.route(found, Mode.RETRIEVAL, DEFAULT_COLLECTION).passages

    return ExerciseWriter(
        find,
        lambda doc_id: work.catalog.document_passages(DEFAULT_COLLECTION, doc_id),
        work.prompts,
        modules=modules,
        passages=settings.passages,
        max_answer_tokens=settings.max_answer_tokens,
        seed=settings.seed,
    )
