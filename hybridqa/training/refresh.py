"""Brings modules up to date: which documents need one, the trainer's process, what becomes of its results.

Knows nothing about losses or prompts. Invariant: a result is published only while the document is still what it was
distilled from; whatever is killed and whenever, a later refresh takes up the checkpoint, or the finished result.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.catalog import Catalog, DocumentSummary
from hybridqa.config import Settings
from hybridqa.errors import HybridQAError, StorageFullError, StoreError
from hybridqa.files import make_folder
from hybridqa.models import ModelFolder
from hybridqa.modules.registry import ModuleRegistry, module_id_for
from hybridqa.training.gate import LIMITS
from hybridqa.training.generator import Complete
from hybridqa.training.job_folder import REFRESH_LOCK, RESULT, begun, result_manifest
from hybridqa.training.jobs import JobDocument, JobWriter, job_document
from hybridqa.training.lesson import Job
from hybridqa.training.others import others_of, tell_others
from hybridqa.training.outcome import RefreshEvent, RefreshOutcome, RefreshReport, settled
from hybridqa.training.process import train
from hybridqa.training.recipe import Recipe, recipe_for
from hybridqa.types import Module, ModuleKind

BATCH = 32  # documents whose jobs are written, trained and published before those of others


class Refresher:
    """Refreshes the modules of one store with one base model."""

    def __init__(
        self,
        catalog: Catalog,
        registry: ModuleRegistry,
        model: ModelFolder,
        prompts: PromptBuilder,
        settings: Settings,
        generate: Complete,
    ) -> None:
        self._catalog = catalog
        self._registry = registry
        self._model = model
        self._settings = settings
        self._work_dir = settings.module_dir / "work"
        self._jobs = JobWriter(self._work_dir, model, prompts, settings, generate)

    def run(
        self,
        *,
        collection: str | None = None,
        doc_ids: Sequence[str] | None = None,
        force: bool = False,
        on_event: Callable[[RefreshEvent], None] | None = None,
    ) -> RefreshReport:
        """See `HybridQA.refresh`."""
        started = time.perf_counter()
        tell = on_event or (lambda event: None)
        make_folder(self._work_dir)
        documents = self._documents(collection, doc_ids)
        try:
            with FileLock(self._work_dir / REFRESH_LOCK, timeout=0):
                try:
                    outcomes = self._run(documents, force, tell)
                finally:
                    self._remove_outdated(())
        except Timeout as error:
            raise StoreError(
                f"another refresh is at work on {str(self._settings.module_dir)!r}; expected to be the only one. "
                "Wait for it, then run `hybridqa refresh` again."
            ) from error
        return RefreshReport(tuple(outcomes), time.perf_counter() - started)

    def _documents(self, collection: str | None, doc_ids: Sequence[str] | None) -> list[DocumentSummary]:
        if collection is not None:
            self._catalog.require_collection(collection)
        documents = self._catalog.list_documents(collection)
        if doc_ids is None:
            return documents
        for doc_id in doc_ids:  # an unknown one is an error, not a silent nothing
            if not any(document.doc_id == doc_id for document in documents):
                self._catalog.get_document(collection or "default", doc_id)
        return [document for document in documents if document.doc_id in doc_ids]

    def _remove_outdated(self, wanted: Iterable[str]) -> None:
        self._jobs.remove_outdated((self._work_dir / name for name in wanted), self._is_current)

    def _run(
        self, documents: Sequence[DocumentSummary], force: bool, tell: Callable[[RefreshEvent], None]
    ) -> list[RefreshOutcome]:
        def told(document: JobDocument, step: int, total: int) -> None:
            tell(RefreshEvent(document.collection, document.doc_id, "synthesise", step, total))

        def others(document: JobDocument, recipe: Recipe) -> dict[str, Any]:
            return others_of(self._catalog, document.collection, document.doc_id, self._model.hash, recipe)

        recipe = recipe_for(self._settings)
        outcomes: list[RefreshOutcome] = []
        todo: dict[str, DocumentSummary] = {}
        modules = self._modules_of(documents)
        for document in documents:
            module_id = module_id_for(document.collection, document.doc_id)
            folder = self._jobs.folder(module_id, document.content_hash, recipe)
            if force:
                shutil.rmtree(folder, ignore_errors=True)
            elif not begun(folder):  # what --force has begun goes on, whatever there is beside it
                known = self._known(document, modules[document.collection, document.doc_id], asdict(recipe))
                if known is not None:
                    outcomes.append(known)
                    tell(RefreshEvent(document.collection, document.doc_id, "skip", message=known.reason))
                    continue
            todo[folder.name] = document
        self._remove_outdated(todo)
        finished = [name for name in todo if (self._work_dir / name / RESULT).is_file()]  # these wait for nothing
        ended = set(finished)
        rest = [name for name in todo if name not in ended]
        batches = [finished, *(rest[start : start + BATCH] for start in range(0, len(rest), BATCH))]
        try:
            for names in batches:
                some = {name: todo[name] for name in names}
                self._jobs.write_jobs(
                    [job_document(self._catalog, document) for document in some.values()], [recipe], told, others
                )
                for name, event in self._train(some):
                    document = some[name]
                    if event["stage"] in ("done", "failed", "empty"):
                        outcomes.append(self._finish(name, document, event, tell))
                    else:
                        loss = f"loss {event['loss']:.3f}" if "loss" in event else ""
                        at = (event["stage"], event["step"], event["total"], loss)
                        tell(RefreshEvent(document.collection, document.doc_id, *at))
        except HybridQAError as error:
            done = {(outcome.collection, outcome.doc_id) for outcome in outcomes}
            if not done:
                raise
            for document in todo.values():
                if (document.collection, document.doc_id) not in done:
                    outcomes.append(self._failed(document, str(error), tell))
        return outcomes

    def _modules_of(self, documents: Sequence[DocumentSummary]) -> dict[tuple[str, str], list[Module]]:
        """The modules of the documents' collections with this base model, by collection and document, oldest first."""
        found: dict[tuple[str, str], list[Module]] = defaultdict(list)
        for collection in {document.collection for document in documents}:
            for module in self._catalog.list_modules(collection):
                if module.kind is ModuleKind.DOCUMENT and module.base_model_hash == self._model.hash:
                    for doc_id in module.documents:
                        found[collection, doc_id].append(module)
        return found

    def _known(
        self, document: DocumentSummary, modules: Sequence[Module], recipe: dict[str, Any]
    ) -> RefreshOutcome | None:
        """The outcome of a document that needs no work: it has a fresh module, or this recipe failed on it before."""
        versions = [module for module in modules if module.documents[document.doc_id] == document.content_hash]
        known = settled(versions, recipe, "its module is fresh")
        if known is None:
            return None
        module, state, reason = known
        return RefreshOutcome(
            document.collection, document.doc_id, module.name, state, reason, 0.0, dict(module.metrics)
        )

    def _is_current(self, collection: str, doc_id: str, content_hash: str) -> bool:
        document = self._catalog.find_document(collection, doc_id)
        return document is not None and document.content_hash == content_hash

    def _train(self, todo: dict[str, DocumentSummary]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Events of the trainer's process; jobs that need none, finished by an earlier one or empty, come first."""
        open_jobs = []
        for folder in (self._work_dir / name for name in todo):
            if (folder / RESULT).is_file():
                yield folder.name, {"stage": "done"}
            elif reason := _nothing_to_learn(Job.load(folder)):  # the folder stays: the next refresh knows at once
                yield folder.name, {"stage": "empty", "reason": reason}
            else:
                open_jobs.append(folder)
        for event in train(open_jobs, together=self._settings.train_together) if open_jobs else ():
            yield event["job"], event
            tell_others(self._catalog, open_jobs, event)

    def _finish(
        self, name: str, document: DocumentSummary, event: dict[str, Any], tell: Callable[[RefreshEvent], None]
    ) -> RefreshOutcome:
        """Publishes a finished job, or says why not."""
        collection, doc_id = document.collection, document.doc_id
        folder = self._work_dir / name
        if event["stage"] == "failed":
            return self._failed(document, event["reason"], tell)
        if event["stage"] == "empty":
            tell(RefreshEvent(collection, doc_id, "skip", message=event["reason"]))
            return RefreshOutcome(collection, doc_id, None, "rejected", event["reason"])
        if not self._is_current(collection, doc_id, document.content_hash):
            shutil.rmtree(folder, ignore_errors=True)
            return RefreshOutcome(collection, doc_id, None, "changed", "the document changed meanwhile; refresh again")
        try:
            return self._publish(folder, document, tell)
        except StorageFullError:
            raise
        except (HybridQAError, ValueError, KeyError) as error:
            if not isinstance(error, StoreError):  # a store that refuses now may take the same result later
                shutil.rmtree(folder, ignore_errors=True)
            return self._failed(document, f"its trained module cannot be published: {error}", tell)

    def _failed(self, document: DocumentSummary, reason: str, tell: Callable[[RefreshEvent], None]) -> RefreshOutcome:
        tell(RefreshEvent(document.collection, document.doc_id, "failed", message=reason))
        return RefreshOutcome(document.collection, document.doc_id, None, "failed", reason)

    def _publish(self, folder: Path, document: DocumentSummary, tell: Callable[[RefreshEvent], None]) -> RefreshOutcome:
        """Makes the result in `folder` the next version of the document's module."""
        collection, doc_id = document.collection, document.doc_id
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        manifest = result_manifest(
            result,
            self._model,
            self._settings.seed,
            {},
            module_id=module_id_for(collection, doc_id),
            collection=collection,
            documents={doc_id: document.content_hash},
        )
        module = self._registry.publish(folder / "adapter", manifest, result["passed"])
        shutil.rmtree(folder, ignore_errors=True)
        seconds = result["metrics"]["seconds"]["total"]
        state = "published" if result["passed"] else "rejected"
        tell(RefreshEvent(collection, doc_id, "publish", 1, 1, f"{state}: {result['reason']}"))
        return RefreshOutcome(collection, doc_id, module.name, state, result["reason"], seconds, dict(manifest.metrics))


def _nothing_to_learn(job: Job) -> str:
    """Why no module could be made of this document that passes its gate; nothing where one might."""
    if not job.curriculum.pairs:
        return "the document holds nothing to learn: no fact to ask for and no summary that the critic let pass"
    if (questions := len(job.curriculum.held_out)) < LIMITS.questions:
        return (
            f"the document holds too little to test a module with: {questions} held-out questions, expected at least "
            f"{LIMITS.questions}"
        )
    return ""
