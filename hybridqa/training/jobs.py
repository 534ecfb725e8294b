"""Writes training jobs: each document's curriculum, made once and kept, and one job folder for each recipe.

Knows nothing about losses, adapters or the registry. Invariants: a curriculum is kept by all that decides it, so that
several recipes of one document share one; what has changed since gets other names, and `remove_outdated` takes the old
ones away. A folder with `result.json` is finished and never written again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridqa.answering.prompt import PromptBuilder, messages_for
from hybridqa.catalog import Catalog, DocumentSummary
from hybridqa.config import Settings
from hybridqa.engine.vllm_args import context_length
from hybridqa.models import ModelFolder
from hybridqa.modules.registry import module_id_for
from hybridqa.training.curricula import CurriculumCache
from hybridqa.training.endpoint import EndpointGenerator
from hybridqa.training.generator import Complete, EngineGenerator, Generator
from hybridqa.training.job_folder import circumstances, made_with, remove_jobs, take_up
from hybridqa.training.lesson import Job, chunks, job_name
from hybridqa.training.recipe import Recipe
from hybridqa.training.sampled import with_sampled
from hybridqa.training.synthesis import Curriculum, Plan, Synthesiser
from hybridqa.types import Document, Passage

SAMPLING_OBJECTIVES = frozenset(("prompt-distillation",))  # these learn from the engine's own answers
AT_A_TIME = 8  # documents whose curricula are made together; a kill costs so many
QUESTION_ROOM = 192  # tokens left for a question and its answer beside two chunks

IsCurrent = Callable[[str, str, str], bool]  # whether a collection's document still has this content hash


def _silent(document: JobDocument, step: int, total: int) -> None:
    """Tells nobody."""


def _alone(document: JobDocument, recipe: Recipe) -> dict[str, Any]:
    """No other document is known."""
    return {}


@dataclass(frozen=True, slots=True)
class JobDocument:
    """One document to make a module of."""

    collection: str
    doc_id: str
    title: str
    content_hash: str
    module_id: str
    passages: tuple[Passage, ...]


def job_document(catalog: Catalog, document: Document | DocumentSummary) -> JobDocument:
    """A document of the catalog as it is now."""
    return JobDocument(
        collection=document.collection,
        doc_id=document.doc_id,
        title=document.title,
        content_hash=document.content_hash,
        module_id=module_id_for(document.collection, document.doc_id),
        passages=tuple(catalog.document_passages(document.collection, document.doc_id)),
    )


class JobWriter:
    """Writes the jobs of one store and base model into a work folder."""

    def __init__(
        self, work_dir: Path, model: ModelFolder, prompts: PromptBuilder, settings: Settings, complete: Complete
    ) -> None:
        self._work_dir = work_dir
        self._kept = CurriculumCache(work_dir)
        self._model = model
        self._prompts = prompts
        self._settings = settings
        self._max_model_len = context_length(model.path, settings.max_model_len)
        identity = f"{settings.engine} {settings.dtype} {model.hash}"
        self._engine = EngineGenerator(complete, prompts, max_model_len=self._max_model_len, identity=identity)

    def folder(self, module_id: str, content_hash: str, recipe: Recipe) -> Path:
        """Where the job of a document version and a recipe is, or would be."""
        made = made_with(self._model, self._settings)
        return self._work_dir / job_name(module_id, content_hash, self._model.hash, asdict(recipe), made)

    def write_jobs(
        self,
        documents: Iterable[JobDocument],
        recipes: Sequence[Recipe],
        tell: Callable[[JobDocument, int, int], None] = _silent,
        others: Callable[[JobDocument, Recipe], dict[str, Any]] = _alone,
    ) -> list[Path]:
        """The job folders of every document with every recipe, documents first; those that are missing are written.

        A finished job stays as it is, and an unfinished one goes on from its checkpoint. `tell` hears of each document
        whose curriculum has to be made, of which there are `total`; `others` gives what a new job is told of other
        documents, as `others_of` does. Raises what the generator raises.
        """
        documents = list(documents)
        pairs = [(document, recipe) for document in documents for recipe in recipes]
        folders = [self.folder(document.module_id, document.content_hash, recipe) for document, recipe in pairs]
        now = circumstances(self._model, self._settings)
        new = [(*pair, folder) for pair, folder in zip(pairs, folders, strict=True) if not take_up(folder, now)]
        if not new:  # no generator is needed then, nor asked for
            return folders
        curricula = self.curricula(list(dict.fromkeys(document for document, _, _ in new)), tell)
        wanted = [document for document, recipe, _ in new if _needs_samples(recipe)]
        sampled = self._sampled({document: curricula[document] for document in wanted})
        for document, recipe, folder in new:
            curriculum = (sampled if _needs_samples(recipe) else curricula)[document]
            self._job(document, recipe, curriculum, others(document, recipe)).save(folder)
        return folders

    def curricula(
        self,
        documents: Sequence[JobDocument],
        tell: Callable[[JobDocument, int, int], None] = _silent,
    ) -> dict[JobDocument, Curriculum]:
        """The curriculum of each document: the kept one, or a new one."""
        texts = {document: (document.title, self._chunks(document.passages)) for document in documents}
        remote = bool(self._settings.generator_url)
        generator: Generator = EndpointGenerator.from_settings(self._settings) if remote else self._engine
        plan = Plan.for_generator(generator)
        synthesiser = Synthesiser(generator, plan=plan, seed=self._settings.seed, fits=self._fits)
        names = {document: self._name(*text, asdict(plan), generator.identity) for document, text in texts.items()}
        return self._cached(names, lambda missing: synthesiser.run([texts[document] for document in missing]), tell)

    def remove_outdated(self, wanted: Iterable[Path], is_current: IsCurrent) -> None:
        """Deletes jobs and curricula of documents that have changed or gone, and what cannot be read; not `wanted`."""
        kept = {folder.name for folder in wanted}
        folders = [folder for folder in self._work_dir.glob("job-*") if folder.name not in kept]
        remove_jobs(folders, lambda job: not is_current(job.collection, job.doc_id, job.content_hash))
        self._kept.remove(lambda *owner: not is_current(*owner))

    def _sampled(self, curricula: dict[JobDocument, Curriculum]) -> dict[JobDocument, Curriculum]:
        """The curricula with the engine's own answers, kept like the curricula themselves."""
        names = {
            document: self._name("sampled", asdict(curriculum), self._engine.identity)
            for document, curriculum in curricula.items()
        }

        def make(missing: list[JobDocument]) -> list[Curriculum]:
            plain = [curricula[document] for document in missing]
            return with_sampled(plain, self._engine.answer, stop=self._prompts.stop, seed=self._settings.seed)

        return self._cached(names, make)

    def _job(self, document: JobDocument, recipe: Recipe, curriculum: Curriculum, others: dict[str, Any]) -> Job:
        return Job(
            collection=document.collection,
            doc_id=document.doc_id,
            content_hash=document.content_hash,
            module_id=document.module_id,
            model_hash=self._model.hash,
            recipe=asdict(recipe),
            curriculum=curriculum,
            **others,
            **circumstances(self._model, self._settings),
        )

    def _chunks(self, passages: Sequence[Passage]) -> tuple[str, ...]:
        return tuple(chunks(passages, lambda text: len(self._prompts.encode_plain(text))))

    def _fits(self, sources: Sequence[str]) -> bool:
        """Whether a prompt holds these sources, as it would when it serves."""
        if sum(len(self._prompts.encode_plain(source)) for source in sources) > self._settings.context_tokens:
            return False
        return len(self._prompts.encode(messages_for("?", sources))) + QUESTION_ROOM <= self._max_model_len

    def _name(self, *decided: Any) -> str:
        """The name of what these decide, together with the model, the seed and the prompts' room."""
        room = [self._settings.context_tokens, self._max_model_len]
        return self._kept.name([self._model.hash, self._settings.seed, room, *decided])

    def _cached(
        self,
        names: Mapping[JobDocument, str],
        make: Callable[[list[JobDocument]], Sequence[Curriculum]],
        tell: Callable[[JobDocument, int, int], None] = _silent,
    ) -> dict[JobDocument, Curriculum]:
        """The kept curricula of these names; the missing ones are made, some at a time, and kept."""
        found = {document: kept for document, name in names.items() if (kept := self._kept.load(name)) is not None}
        missing = [document for document in names if document not in found]
        for start in range(0, len(missing), AT_A_TIME):
            some = missing[start : start + AT_A_TIME]
            for step, document in enumerate(some, start):
                tell(document, step, len(missing))
            for document, curriculum in zip(some, make(some), strict=True):
                owner = (document.collection, document.doc_id, document.content_hash)
                self._kept.keep(names[document], curriculum, *owner)
                found[document] = curriculum
        return found


def _needs_samples(recipe: Recipe) -> bool:
    return getattr(recipe, "objective", "dcd") in SAMPLING_OBJECTIVES
