"""Distils a context that is no document, such as a style guide, into a plug-in: job, trainer's process, publication.

Knows nothing about losses or prompts. Invariant: the same content makes a module once; whatever is killed and whenever,
the same command takes up the checkpoint, or the finished result.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.catalog import Catalog
from hybridqa.config import Settings
from hybridqa.engine.vllm_args import context_length
from hybridqa.errors import InputError, StoreError, TrainingError
from hybridqa.files import make_folder
from hybridqa.models import ModelFolder
from hybridqa.modules.registry import ModuleRegistry
from hybridqa.training.asks import Ask, Retrieve, choose_asks, document_asks
from hybridqa.training.behaviours import BehaviourWriter
from hybridqa.training.context_files import Context, Scratchpad
from hybridqa.training.gate import LIMITS
from hybridqa.training.generator import Complete
from hybridqa.training.job_folder import DISTILL_LOCK, RESULT, begun, circumstances, made_with, result_manifest, take_up
from hybridqa.training.lesson import Job, job_name
from hybridqa.training.outcome import RefreshEvent, settled
from hybridqa.training.process import train
from hybridqa.training.recipe import Recipe
from hybridqa.types import ModuleKind

COUNT = 96  # pairs to learn
DOCUMENTS = 40  # of a collection, at most, to ask about


@dataclass(frozen=True, slots=True)
class DistillOutcome:
    """What became of a context."""

    collection: str
    module_id: str
    kind: ModuleKind
    module: str | None  # `Module.name` of the version made, or of the one that is there already
    state: str  # "published", "rejected" or "fresh"
    reason: str
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)


class Distiller:
    """Makes plug-ins for one store with one base model."""

    def __init__(
        self,
        catalog: Catalog,
        registry: ModuleRegistry,
        model: ModelFolder,
        prompts: PromptBuilder,
        settings: Settings,
        complete: Complete,
        retrieve: Callable[[str, str], str | None],
    ) -> None:
        """`retrieve` finds the source that a question in a collection would be served with, if there is any."""
        self._catalog = catalog
        self._registry = registry
        self._model = model
        self._prompts = prompts
        self._settings = settings
        self._complete = complete
        self._retrieve = retrieve
        self._work_dir = settings.module_dir / "work"

    def run(
        self,
        context: Context,
        module_id: str,
        collection: str,
        recipe: Recipe,
        *,
        questions: Sequence[str] = (),
        count: int = COUNT,
        force: bool = False,
        on_event: Callable[[RefreshEvent], None] | None = None,
    ) -> DistillOutcome:
        """See `HybridQA.distill`; the collection exists, and `count` is at least 1."""
        self._check_id(module_id, context.kind, collection)
        decided = [collection, context.digest, list(questions), count]
        content = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()
        tell = on_event or (lambda event: None)
        folder = self._folder(module_id, collection, content, recipe)
        known = self._known(context.kind, module_id, collection, content, recipe)
        # What --force has begun goes on, beside what there is.
        if known is not None and not force and not begun(folder):
            tell(RefreshEvent(collection, module_id, "skip", message=known.reason))
            return known
        make_folder(self._work_dir)
        try:
            with FileLock(self._work_dir / DISTILL_LOCK, timeout=0):
                self._remove_others(folder, force)
                if not take_up(folder, circumstances(self._model, self._settings)):
                    tell(RefreshEvent(collection, module_id, "synthesise"))
                    self._write_job(folder, context, module_id, collection, questions, count, content, recipe)
                return self._train(folder, tell)
        except Timeout as error:
            raise StoreError(
                f"another distillation is at work on {str(self._settings.module_dir)!r}; expected to be the only one. "
                "Wait for it, then run `hybridqa distill` again."
            ) from error

    def _check_id(self, module_id: str, kind: ModuleKind, collection: str) -> None:
        for module in self._catalog.list_modules(collection):
            if module.module_id == module_id and module.kind is not kind:
                raise InputError(
                    f"module {module_id!r} of collection {collection!r} is of kind '{module.kind}'; expected one of "
                    f"'{kind}', or none of this id. Give another with --id, or remove it with `hybridqa modules rm`."
                )

    def _known(
        self, kind: ModuleKind, module_id: str, collection: str, content: str, recipe: Recipe
    ) -> DistillOutcome | None:
        """The outcome where there is nothing to do: this content is the current version's, or failed before."""
        versions = [
            module
            for module in self._catalog.list_modules(collection)
            if module.module_id == module_id
            and module.base_model_hash == self._model.hash
            and module.metrics.get("content") == content
            and module.metrics.get("recipe", {}).get("objective") == recipe.objective
        ]
        known = settled(versions, asdict(recipe), "the same content is its current version")
        if known is None:
            return None
        module, state, reason = known
        return DistillOutcome(collection, module_id, kind, module.name, state, reason, metrics=dict(module.metrics))

    # The job

    def _folder(self, module_id: str, collection: str, content: str, recipe: Recipe) -> Path:
        """The job's folder."""
        decided = [module_id, collection]
        owner = hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:12]
        made = [*made_with(self._model, self._settings), self._settings.max_answer_tokens]
        name = job_name(module_id, content, self._model.hash, asdict(recipe), made).removeprefix("job-")
        return self._work_dir / f"plugin-{owner}-{name}"

    def _remove_others(self, folder: Path, force: bool) -> None:
        """Deletes the jobs of other contents of the same module; with `force`, this one too."""
        owner, _, _ = folder.name.rpartition("-")
        for other in self._work_dir.glob(f"{owner}-*"):
            if other != folder or force:
                shutil.rmtree(other, ignore_errors=True)

    def _write_job(
        self,
        folder: Path,
        context: Context,
        module_id: str,
        collection: str,
        questions: Sequence[str],
        count: int,
        content: str,
        recipe: Recipe,
    ) -> None:
        """Has the engine answer with the context in its prompt."""
        if context.kind is ModuleKind.SCRATCHPAD:  # to a question without reasoning it is written
            asked = {pad.question for pad in context.scratchpads}
            more = (Scratchpad(question) for question in questions if question not in asked)
            context = replace(context, scratchpads=(*context.scratchpads, *more))
        asks = choose_asks(
            context, questions, self._document_asks(collection), self._finder(collection), seed=recipe.seed
        )
        writer = BehaviourWriter(
            self._complete,
            self._prompts,
            max_model_len=context_length(self._model.path, self._settings.max_model_len),
            max_answer_tokens=self._settings.max_answer_tokens,
            seed=recipe.seed,
        )
        Job(
            collection=collection,
            doc_id="",
            content_hash=content,
            module_id=module_id,
            model_hash=self._model.hash,
            recipe=asdict(recipe),
            curriculum=writer.write(context, asks, count),
            **circumstances(self._model, self._settings),
        ).save(folder)

    def _document_asks(self, collection: str) -> list[Ask]:
        documents = self._catalog.list_documents(collection)[:DOCUMENTS]
        passages = [self._catalog.document_passages(collection, document.doc_id) for document in documents]
        return document_asks(passages, most=COUNT, seed=self._settings.seed)

    def _finder(self, collection: str) -> Retrieve:
        if not self._catalog.list_documents(collection):
            return lambda question: None
        return lambda question: self._retrieve(question, collection)

    # The trainer

    def _train(self, folder: Path, tell: Callable[[RefreshEvent], None]) -> DistillOutcome:
        job = Job.load(folder)
        lesson = job.curriculum
        if not lesson.pairs or len(lesson.held_out) < LIMITS.questions:
            shutil.rmtree(folder, ignore_errors=True)  # it hangs on more than its name: on the documents, for one
            said = ", ".join(f"{count} {reason}" for reason, count in lesson.dropped.items() if count) or "none"
            reason = (
                f"there is too little to learn from: {len(lesson.pairs)} answers to learn and {len(lesson.held_out)} "
                f"to test with, expected at least 1 and {LIMITS.questions}; dropped: {said}. Give more questions or "
                "examples, or raise max_answer_tokens where answers are cut off, then run `hybridqa distill` again"
            )
            tell(RefreshEvent(job.collection, job.module_id, "skip", message=reason))
            return DistillOutcome(job.collection, job.module_id, lesson.kind, None, "rejected", reason)
        for event in self._events(folder):
            if event["stage"] == "failed":
                raise TrainingError(
                    f"module {job.module_id!r} could not be distilled: {event['reason']}. Mend what it names, then run "
                    "`hybridqa distill` again."
                )
            loss = f"loss {event['loss']:.3f}" if "loss" in event else ""
            if event["stage"] != "done":
                tell(RefreshEvent(job.collection, job.module_id, event["stage"], event["step"], event["total"], loss))
        return self._publish(folder, job, tell)

    def _events(self, folder: Path) -> Iterator[dict[str, Any]]:
        return iter(()) if (folder / RESULT).is_file() else train([folder], again="hybridqa distill")

    def _publish(self, folder: Path, job: Job, tell: Callable[[RefreshEvent], None]) -> DistillOutcome:
        """Makes the result in `folder` the next version of the plug-in."""
        started = time.perf_counter()
        kind = job.curriculum.kind
        try:
            result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
            manifest = result_manifest(
                result,
                self._model,
                self._settings.seed,
                {"content": job.content_hash},
                module_id=job.module_id,
                collection=job.collection,
                kind=kind,
            )
            module = self._registry.publish(folder / "adapter", manifest, result["passed"])
        except (ValueError, KeyError, FileNotFoundError) as error:
            shutil.rmtree(folder, ignore_errors=True)  # a result that cannot be read; a full disk leaves it for later
            raise TrainingError(
                f"the trained module {job.module_id!r} cannot be published: {error}. Run `hybridqa distill` again."
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
        state = "published" if result["passed"] else "rejected"
        seconds = manifest.metrics["seconds"]["total"] + time.perf_counter() - started
        tell(RefreshEvent(job.collection, job.module_id, "publish", 1, 1, f"{state}: {result['reason']}"))
        return DistillOutcome(
            job.collection, job.module_id, kind, module.name, state, result["reason"], seconds, dict(manifest.metrics)
        )
