"""The modules of a grid: one for each document and objective, trained by the product's own trainer from one curriculum.

Each is trained beside those of documents before it that are done, as in a store that is refreshed. Knows nothing
about the questions that are asked or about arms. Invariant: a curriculum is made once for a document, whatever the
objectives; a job that has ended is never trained again, and one that was killed goes on from its checkpoint. The gate's
verdict is on record and decides nothing here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybridqa.errors import TrainingError
from hybridqa.files import atomic_write_text
from hybridqa.modules.adapter import WEIGHTS_FILE, LoraAdapter, read_adapter
from hybridqa.modules.manifest import MANIFEST_FILE, write_manifest
from hybridqa.pipeline import HybridQA
from hybridqa.training.job_folder import RESULT, result_manifest
from hybridqa.training.jobs import AT_A_TIME, JobDocument, JobWriter, job_document
from hybridqa.training.lesson import Job, chunks
from hybridqa.training.others import next_jobs, questions_about_others, some_of, tell_job
from hybridqa.training.process import train
from hybridqa.training.recipe import Recipe, recipe_for
from hybridqa.types import DEFAULT_COLLECTION

SECONDS_FILE = "seconds.json"  # in a job: what its synthetic data took
BEHIND = 2  # a job hears of the documents before it but the last: by then that one's successor is under way
Tell = Callable[[str, int, int], None]  # what is being done, how far, of how much


@dataclass(frozen=True, slots=True)
class GridModule:
    """What became of one document's module for one objective."""

    doc_id: str
    objective: str
    adapter: LoraAdapter | None  # None: it could not be trained, its document is asked about without one
    report: dict[str, Any]


class GridModules:
    """Makes the modules of one grid's store."""

    def __init__(self, store: HybridQA, work: Path, tell: Tell, recipe: Recipe | None = None) -> None:
        """`work` is the grid's folder, for who is told to go on with it."""
        self._store = store
        self._work = work
        self._tell = tell
        folder = store.settings.module_dir / "work"
        self._jobs = JobWriter(folder, store.model, store.prompts, store.settings, store.generate_many)
        self.recipe = recipe or recipe_for(store.settings)

    def chunks(self, doc_id: str) -> list[str]:
        """What a teacher reads at once of a document."""
        passages = self._store.catalog.document_passages(DEFAULT_COLLECTION, doc_id)
        return chunks(passages, lambda text: len(self._store.prompts.encode_plain(text)))

    def make(self, doc_ids: Sequence[str], objectives: Sequence[str]) -> dict[tuple[str, str], GridModule]:
        """A module for each document and objective, by both. Raises `TrainingError` when not one could be trained."""
        recipes = [replace(self.recipe, objective=objective) for objective in objectives]
        jobs: dict[tuple[str, str], Path] = {}
        for start in range(0, len(doc_ids), AT_A_TIME):
            self._tell("synthesise", start, len(doc_ids))
            jobs |= self._write(doc_ids[start : start + AT_A_TIME], recipes)
        failed = self._train(jobs)
        made = {key: self._module(*key, folder, failed.get(folder.name, "")) for key, folder in jobs.items()}
        if made and all(module.adapter is None for module in made.values()):
            first = next(iter(made.values()))
            raise TrainingError(
                f"none of {len(made)} modules could be trained; of document {first.doc_id!r}: "
                f"{first.report['reason']}. Expected documents with facts to ask for; without modules there are the "
                "arms closed, RAG and gold: give them with --arms."
            )
        return made

    def _write(self, doc_ids: Sequence[str], recipes: Sequence[Recipe]) -> dict[tuple[str, str], Path]:
        """The jobs of some documents, written where they are not there yet."""
        began = time.perf_counter()
        catalog = self._store.catalog
        documents = [job_document(catalog, catalog.get_document(DEFAULT_COLLECTION, doc_id)) for doc_id in doc_ids]
        made: set[str] = set()  # documents whose curricula were not there

        def told(document: JobDocument, step: int, total: int) -> None:
            made.add(document.doc_id)

        folders = iter(self._jobs.write_jobs(documents, recipes, told, others=self._others))
        jobs = {(doc_id, recipe.objective): next(folders) for doc_id in doc_ids for recipe in recipes}
        seconds = (time.perf_counter() - began) / max(1, len(made))
        for (doc_id, _), folder in jobs.items():
            if not (folder / SECONDS_FILE).is_file():
                known = [jobs[doc_id, recipe.objective] / SECONDS_FILE for recipe in recipes]
                known = [path for path in known if doc_id not in made and path.is_file()]
                took = json.loads(known[0].read_text()) if known else seconds if doc_id in made else None
                atomic_write_text(folder / SECONDS_FILE, json.dumps(took))
        return jobs

    def _others(self, document: JobDocument, recipe: Recipe) -> dict[str, Any]:
        asked = questions_about_others(self._store.catalog, document.collection, document.doc_id, recipe)
        return {"off_topic": asked}

    def _tell_of_others(self, jobs: dict[tuple[str, str], Path], doc_id: str, objective: str) -> None:
        """Has a job hear of the modules that the documents before its own have by now."""

        def choose(job: Job) -> tuple[str, ...]:
            before = list(dict.fromkeys(name for name, _ in jobs))
            before = before[: max(0, before.index(doc_id) + 1 - BEHIND)]
            ready = [jobs[name, objective] for name in before if (jobs[name, objective] / RESULT).is_file()]
            for other in ready:
                self._write_manifest(other)
            return some_of([str((other / "adapter").absolute()) for other in ready], doc_id, Recipe(**job.recipe))

        tell_job(jobs[doc_id, objective], choose)

    def _write_manifest(self, folder: Path) -> None:
        """What a published module has; other modules are trained beside nothing without one."""
        if (folder / "adapter" / MANIFEST_FILE).is_file():
            return
        job = Job.load(folder)
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        owner = {job.doc_id: job.content_hash}
        about = {"module_id": job.module_id, "collection": job.collection, "documents": owner}
        write_manifest(
            folder / "adapter", result_manifest(result, self._store.model, self._store.settings.seed, {}, **about)
        )

    def _train(self, jobs: dict[tuple[str, str], Path]) -> dict[str, str]:
        """Trains what is not trained yet; why jobs failed, by their folders' names."""
        failed: dict[str, str] = {}
        todo: dict[str, tuple[str, str]] = {}
        for key, folder in jobs.items():
            if (folder / RESULT).is_file():
                continue
            if Job.load(folder).curriculum.pairs:
                todo[folder.name] = key
            else:
                failed[folder.name] = "the document holds nothing to learn"
        order = [jobs[key] for key in todo.values()]
        for folder in order:
            self._tell_of_others(jobs, *todo[folder.name])
        places = {name: place for place, name in enumerate(todo)}
        together = self._store.settings.train_together
        again = f"hybridqa eval grid … --work {self._work}"
        for event in train(order, together=together, again=again) if todo else ():
            if event["stage"] == "done":
                # Several of one objective train together, and those of another one may come between.
                for folder in order if event.get("together", 1) > 1 else next_jobs(order, event):
                    self._tell_of_others(jobs, *todo[folder.name])
            if event["stage"] == "failed":
                failed[event["job"]] = event["reason"]
            number = f"module {1 + places[event['job']]} of {len(todo)}"
            self._tell(f"{number}: {event['stage']} {' · '.join(todo[event['job']])}", event["step"], event["total"])
        return failed

    def _module(self, doc_id: str, objective: str, folder: Path, failure: str) -> GridModule:
        if failure:
            return GridModule(doc_id, objective, None, {"trained": False, "reason": failure})
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        adapter = read_adapter(folder / "adapter")
        report = {
            "trained": True,
            "passed": result["passed"],
            "reason": result["reason"],
            "seconds": result["metrics"]["seconds"]["total"],
            "synthesis_seconds": json.loads((folder / SECONDS_FILE).read_text()),
            "mb": (adapter.path / WEIGHTS_FILE).stat().st_size / 1e6,
            "metrics": result["metrics"],
        }
        return GridModule(doc_id, objective, adapter, report)
