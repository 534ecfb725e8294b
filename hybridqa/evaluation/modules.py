"""The modules of a grid: one for each document and objective, trained by the product's own trainer from one curriculum.

Knows nothing about questions or arms. Invariant: a curriculum is made once for a document, whatever the objectives; a
job that has ended is never trained again, and one that was killed goes on from its checkpoint. The gate's verdict is on
record and decides nothing here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hybridqa.engine.loop import together
from hybridqa.engine.protocol import Sampling
from hybridqa.engine.vllm_args import context_length
from hybridqa.errors import TrainingError
from hybridqa.files import atomic_write_text
from hybridqa.modules.adapter import WEIGHTS_FILE, LoraAdapter, read_adapter
from hybridqa.modules.registry import module_id_for
from hybridqa.pipeline import HybridQA
from hybridqa.training.lesson import Job, chunks, job_name
from hybridqa.training.process import train
from hybridqa.training.recipe import Recipe
from hybridqa.training.refresh import Refresher
from hybridqa.training.synthesis import Synthesiser
from hybridqa.types import DEFAULT_COLLECTION

AT_A_TIME = 8  # documents whose curricula are made together; a kill costs so many
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

    def __init__(self, store: HybridQA, tell: Tell) -> None:
        self._store = store
        self._tell = tell
        self._folder = store.settings.module_dir / "work"
        refresher = Refresher(store.catalog, store.registry, store.model, store.prompts, store.settings, _nothing)
        self.recipe: Recipe = refresher.recipe()

    def chunks(self, doc_id: str) -> list[str]:
        """What a teacher reads at once of a document."""
        passages = self._store.catalog.document_passages(DEFAULT_COLLECTION, doc_id)
        return chunks(passages, lambda text: len(self._store.prompts.encode_plain(text)))

    def make(self, doc_ids: Sequence[str], objectives: Sequence[str]) -> dict[tuple[str, str], GridModule]:
        """A module for each document and objective, by both. Raises `TrainingError` when not one could be trained."""
        self._write_curricula(doc_ids)
        jobs = {(doc_id, objective): self._job(doc_id, objective) for objective in objectives for doc_id in doc_ids}
        failed = self._train(jobs)
        made = {key: self._module(*key, folder, failed.get(folder.name, "")) for key, folder in jobs.items()}
        if made and all(module.adapter is None for module in made.values()):
            first = next(iter(made.values()))
            raise TrainingError(
                f"none of {len(made)} modules could be trained; of document {first.doc_id!r}: "
                f"{first.report['reason']}. Expected documents with facts to ask for."
            )
        return made

    def _write_curricula(self, doc_ids: Sequence[str]) -> None:
        missing = [doc_id for doc_id in doc_ids if not (self._curriculum_folder(doc_id) / "job.json").is_file()]
        synthesiser = Synthesiser(self._complete, seed=self._store.settings.seed)
        for start in range(0, len(missing), AT_A_TIME):
            self._tell("synthesise", start, len(missing))
            batch = missing[start : start + AT_A_TIME]
            began = time.perf_counter()
            documents = [self._store.catalog.get_document(DEFAULT_COLLECTION, doc_id) for doc_id in batch]
            texts = [(document.title, self.chunks(document.doc_id)) for document in documents]
            curricula = synthesiser.run(texts)
            seconds = (time.perf_counter() - began) / len(batch)
            for document, curriculum in zip(documents, curricula, strict=True):
                folder = self._curriculum_folder(document.doc_id)
                folder.mkdir(parents=True, exist_ok=True)
                atomic_write_text(folder / "seconds.json", json.dumps(seconds))
                Job(  # a job without a recipe: each objective's is this one with its own
                    collection=DEFAULT_COLLECTION,
                    doc_id=document.doc_id,
                    content_hash=document.content_hash,
                    module_id=module_id_for(DEFAULT_COLLECTION, document.doc_id),
                    model_name=self._store.model.name,
                    model_path=str(self._store.model.path),
                    model_hash=self._store.model.hash,
                    context_tokens=self._store.settings.context_tokens,
                    max_model_len=self._room(),
                    recipe={},
                    curriculum=curriculum,
                ).save(folder)

    def _complete(self, prompts: Sequence[str], max_tokens: int, stop: str) -> list[str]:
        """Greedy continuations from the engine; empty for a prompt that the model has no room for."""
        encoded = [self._store.prompts.encode_plain(prompt) for prompt in prompts]
        sampling = Sampling(max_tokens=max_tokens, stop=(stop,))

        async def work() -> list[str]:
            engine = await self._store.engine_ready()

            async def one(ids: Sequence[int]) -> str:
                fits = len(ids) + max_tokens <= engine.max_model_len
                return (await engine.generate(ids, sampling)).text if fits else ""

            return await together(one(ids) for ids in encoded)

        return self._store.run(work())

    def _room(self) -> int:
        return context_length(self._store.model.path, self._store.settings.max_model_len)

    def _curriculum_folder(self, doc_id: str) -> Path:
        """Where a document's curriculum is, by what decides it."""
        document = self._store.catalog.get_document(DEFAULT_COLLECTION, doc_id)
        module_id = module_id_for(DEFAULT_COLLECTION, doc_id)
        seed = {"curriculum of seed": self._store.settings.seed}
        name = job_name(module_id, document.content_hash, self._store.model.hash, seed)
        return self._folder / name.replace("job-", "curriculum-")

    def _job(self, doc_id: str, objective: str) -> Path:
        """The job's folder, written if it is new."""
        lesson = Job.load(self._curriculum_folder(doc_id))
        recipe = asdict(replace(self.recipe, objective=objective))
        folder = self._folder / job_name(lesson.module_id, lesson.content_hash, lesson.model_hash, recipe)
        if not (folder / "job.json").is_file():
            replace(lesson, recipe=recipe).save(folder)
        return folder

    def _train(self, jobs: dict[tuple[str, str], Path]) -> dict[str, str]:
        """Trains what is not trained yet; why jobs failed, by their folders' names."""
        failed: dict[str, str] = {}
        todo = []
        for folder in jobs.values():
            if (folder / "result.json").is_file():
                continue
            if Job.load(folder).curriculum.pairs:
                todo.append(folder)
            else:
                failed[folder.name] = "the document holds nothing to learn"
        named = {folder.name: f"{doc_id} · {objective}" for (doc_id, objective), folder in jobs.items()}
        for event in train(todo) if todo else ():
            if event["stage"] == "failed":
                failed[event["job"]] = event["reason"]
            self._tell(f"{event['stage']} {named[event['job']]}", event["step"], event["total"])
        return failed

    def _module(self, doc_id: str, objective: str, folder: Path, failure: str) -> GridModule:
        if failure:
            return GridModule(doc_id, objective, None, {"trained": False, "reason": failure})
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        adapter = read_adapter(folder / "adapter")
        report = {
            "trained": True,
            "passed": result["passed"],
            "reason": result["reason"],
            "seconds": result["metrics"]["seconds"]["total"],
            "synthesis_seconds": json.loads((self._curriculum_folder(doc_id) / "seconds.json").read_text()),
            "mb": (adapter.path / WEIGHTS_FILE).stat().st_size / 1e6,
            "metrics": result["metrics"],
        }
        return GridModule(doc_id, objective, adapter, report)


def _nothing(prompts: Sequence[Sequence[int]], max_tokens: int, stop: str) -> list[str]:
    """A refresher that is asked for its recipe alone generates nothing."""
    raise AssertionError("the grid's refresher does not refresh")
