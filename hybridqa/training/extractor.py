"""Makes a collection's extractor: documents with modules of their own, exercises over them, training, the registry.

Knows nothing about losses or tokens. Invariant: it learns from other documents than those that the collection serves,
and is tested on documents that it has not learned from; whatever is killed and whenever, the same call takes up the
documents, modules, checkpoint or finished result that are there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from hybridqa.catalog import Catalog
from hybridqa.config import Settings
from hybridqa.errors import AdapterError, InputError, StoreError, TrainingError
from hybridqa.evaluation.datasets import EvalDocument, read_documents, read_questions
from hybridqa.files import atomic_dir, is_writable, make_folder
from hybridqa.models import ModelFolder
from hybridqa.modules.adapter import WEIGHTS_FILE
from hybridqa.modules.manifest import Manifest, write_manifest
from hybridqa.modules.registry import ModuleRegistry
from hybridqa.provenance import commit, hardware
from hybridqa.training.extractor_job import ExtractorJob
from hybridqa.training.extractor_material import Material, hash_of
from hybridqa.training.extractor_outcome import ExtractorOptions, ExtractorOutcome
from hybridqa.training.outcome import RefreshEvent
from hybridqa.training.process import train
from hybridqa.training.split import Split, split, text_hash
from hybridqa.types import DEFAULT_COLLECTION, Module, ModuleKind

if TYPE_CHECKING:
    from hybridqa.pipeline import HybridQA

MODULE_ID, PLAIN_MODULE_ID = "extractor", "extractor-passages"  # the latter is trained without modules
WORKER = "hybridqa.training.extractor_worker"
DECIDING = ("embedder", "passage_tokens", "passages", "context_tokens", "max_answer_tokens", "passage_threshold")


class ExtractorMaker:
    """Makes extractors for one store."""

    def __init__(
        self,
        catalog: Catalog,
        registry: ModuleRegistry,
        model: ModelFolder,
        settings: Settings,
        open_work: Callable[[Path], HybridQA],
    ) -> None:
        """`open_work` opens or makes a store with the same settings in another folder."""
        self._catalog = catalog
        self._registry = registry
        self._model = model
        self._settings = settings
        self._open_work = open_work

    def run(
        self,
        documents_path: Path,
        questions_path: Path,
        options: ExtractorOptions,
        on_event: Callable[[RefreshEvent], None] | None = None,
    ) -> ExtractorOutcome:
        """See `HybridQA.train_extractor`."""
        started = time.perf_counter()
        tell = on_event or (lambda event: None)
        self._check(options)
        documents = read_documents(documents_path)
        questions = read_questions(questions_path, documents)
        chosen = split(
            documents,
            questions,
            most_documents=options.documents,
            per_document=options.questions_per_document,
            served=self._served(documents, options.collection),
            seed=self._settings.seed,
        )
        work = options.work if options.work is not None else self._work_folder(chosen.documents)
        make_folder(work, "another folder with --work")
        try:
            with FileLock(work / ".extractor.lock", timeout=0):
                metrics, state, module = self._make(work, chosen, options, tell)
        except Timeout as error:
            raise StoreError(
                f"another train-extractor is at work in {str(work)!r}; expected to be the only one there. Wait for it, "
                "or name another folder with --work."
            ) from error
        seconds = time.perf_counter() - started
        return ExtractorOutcome(state, module, metrics["reason"], work, options.output, seconds, metrics)

    def _check(self, options: ExtractorOptions) -> None:
        """Refuses what cannot be, before anything dear is done."""
        self._catalog.require_collection(options.collection)
        if options.steps < 0:
            raise InputError(f"{options.steps!r} steps cannot be trained; expected 0 (by the questions) or more.")
        if not options.publish and options.output is None:
            raise InputError(
                "an extractor that is not published was asked for, and no folder for it; expected one. Name it with "
                "--output, or leave --no-publish out."
            )
        if options.output is not None and (
            options.output.exists() or not is_writable(options.output.absolute().parent)
        ):
            raise InputError(
                f"the extractor cannot be written to {str(options.output)!r}; expected a new folder in one that is "
                "there and can be written in. Name another with --output."
            )
        if options.work is not None and options.work.resolve() == self._settings.store.resolve():
            raise InputError(
                f"{str(options.work)!r} is the store itself; expected another folder: the extractor learns from other "
                "documents than those it serves. Name one with --work, or leave it out."
            )

    def _served(self, documents: Sequence[EvalDocument], collection: str) -> set[str]:
        """Ids of the documents whose text the collection holds, under whatever title."""
        held = {
            text_hash(self._catalog.get_document(collection, document.doc_id).text)
            for document in self._catalog.list_documents(collection)
        }
        return {document.doc_id for document in documents if text_hash(document.text) in held}

    def _work_folder(self, documents: Sequence[EvalDocument]) -> Path:
        settings = self._settings
        contents = sorted(map(hash_of, documents))
        decides = [contents, self._model.hash, settings.embedder, settings.passage_tokens]
        digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:24]
        return settings.module_dir / "work" / f"extractor-{digest}"

    # The work store

    def _make(
        self, work: Path, chosen: Split, options: ExtractorOptions, tell: Callable[[RefreshEvent], None]
    ) -> tuple[dict[str, Any], str, str | None]:
        """Everything behind the choice of documents: the report, the state, the module's name."""
        say = partial(self._tell, tell, options)
        doc_ids = [document.doc_id for document in chosen.documents]
        taught = chosen.with_modules(options.module_documents) if options.modules else []
        with self._open_work(work) as other:  # and closed again: the trainer has no engine beside it
            for place, document in enumerate(chosen.documents):
                say("add", place, len(doc_ids))
                other.add_text(document.doc_id, document.text, title=document.title)
            if taught:
                report = other.refresh(collection=DEFAULT_COLLECTION, doc_ids=taught, on_event=tell)
                if failed := [outcome for outcome in report.outcomes if outcome.state == "failed"]:
                    raise TrainingError(
                        f"{len(failed)} of {len(taught)} modules failed, the first of document {failed[0].doc_id!r}: "
                        f"{failed[0].reason} Run `hybridqa train-extractor` again: it goes on from what is there."
                    )
        with self._open_work(work) as other:
            material = Material.gather(other, chosen, options, lambda done, total: say("exercises", done, total))
            folder = other.settings.module_dir / "work" / material.job.name
        module_id = MODULE_ID if options.modules else PLAIN_MODULE_ID
        module = self._known(options.collection, module_id, material.job)
        if module is not None:
            state, path = "known", module.path
            metrics = {**module.metrics, "reason": f"made before, as {module.name!r}: {module.metrics.get('reason')}"}
        else:
            self._train(material.job, folder, say)
            manifest, passed = self._manifest(material, folder, module_id, options)
            state, path, metrics = "trained", folder / "adapter", dict(manifest.metrics)
            if options.publish:
                module = self._publish(folder, manifest, passed)
                state, path = str(module.status), module.path
            elif options.output is not None:
                write_manifest(path, manifest)
        if options.output is not None:
            with atomic_dir(options.output.absolute()) as target:
                shutil.copytree(path, target, dirs_exist_ok=True)
        say("publish", 1, 1, f"{state}: {metrics['reason']}")
        return metrics, state, module.name if module is not None else None

    def _tell(
        self,
        tell: Callable[[RefreshEvent], None],
        options: ExtractorOptions,
        stage: str,
        step: int,
        total: int,
        message: str = "",
    ) -> None:
        tell(RefreshEvent(options.collection, MODULE_ID, stage, step, total, message))

    # Training and the registry

    def _known(self, collection: str, module_id: str, job: ExtractorJob) -> Module | None:
        """The version that this very job has made before."""
        for module in reversed(self._catalog.list_modules(collection)):
            if module.module_id == module_id and module.metrics.get("job") == job.name:
                with suppress(AdapterError):  # one that is damaged is made anew
                    self._registry.verify(module)
                    return module
        return None

    def _train(self, job: ExtractorJob, folder: Path, say: Callable[..., None]) -> None:
        """Has the trainer's process do the job, unless it is done. Raises `TrainingError`."""
        if (folder / "result.json").is_file() and (folder / "adapter" / WEIGHTS_FILE).is_file():
            return
        job.save(folder)
        for event in train([folder], worker=WORKER, what="extractors", again="hybridqa train-extractor"):
            if event["stage"] == "failed":
                raise TrainingError(
                    f"the extractor could not be trained: {event['reason']}. Run `hybridqa train-extractor` again: it "
                    "goes on from the last checkpoint."
                )
            if event["stage"] != "done":
                say(
                    event["stage"],
                    event["step"],
                    event["total"],
                    f"loss {event['loss']:.3f}" if "loss" in event else "",
                )

    def _manifest(
        self, material: Material, folder: Path, module_id: str, options: ExtractorOptions
    ) -> tuple[Manifest, bool]:
        """The manifest of a finished job, and whether it may serve."""
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        job, settings = material.job, self._settings
        metrics = {**result["metrics"], **material.about, "reason": result["reason"], "job": job.name}
        serves = {
            "passages": settings.passages,
            "context_tokens": settings.context_tokens,
            "modules": int(bool(result["module_weights"])),  # in one stack
            "prompt": job.prompt,
            "shares": material.about["mixture"],
        }
        manifest = Manifest(
            module_id=module_id,
            collection=options.collection,
            kind=ModuleKind.EXTRACTOR,
            base_model=self._model.name,
            base_model_hash=self._model.hash,
            rank=result["rank"],
            alpha=result["alpha"],
            targets=result["targets"],
            recipe=result["recipe"],
            seeds={"train": result["recipe"]["seed"], "split": settings.seed, "exercises": settings.seed},
            settings=settings.model_dump(mode="json", include=set(DECIDING)),
            hardware=hardware(),
            commit=commit(),
            metrics=metrics,
            module_weights=result["module_weights"],
            serves=serves,
        )
        return manifest, bool(result["passed"])

    def _publish(self, folder: Path, manifest: Manifest, passed: bool) -> Module:
        """Makes the result the next version of the extractor; current if it passed."""
        module = self._registry.publish(folder / "adapter", manifest, passed)
        shutil.rmtree(folder, ignore_errors=True)
        return module
