"""The refresher: what it makes of jobs that an earlier one left, and of a document that holds nothing to learn."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.config import Settings
from hybridqa.engine.protocol import Completion, Sampling
from hybridqa.errors import EngineError
from hybridqa.models import ModelFolder, load_tokenizer
from hybridqa.modules.registry import ModuleRegistry, module_id_for
from hybridqa.training.job_folder import DISTILL_LOCK, REFRESH_LOCK, forget_document, made_with
from hybridqa.training.jobs import AT_A_TIME
from hybridqa.training.lesson import Job, job_name
from hybridqa.training.recipe import recipe_for
from hybridqa.training.refresh import Refresher
from hybridqa.types import Document

KETTLE = (
    "The Lumen kettle holds 1.7 litres of water. Maren Holt designed the Lumen kettle in 2031. "
    "The Lumen kettle is made in the town of Oskvar. The Lumen kettle costs 89 euros."
)


class Store:
    """A store with one-passage documents, its refresher, and how often that asked its engine."""

    def __init__(self, folder: Path, model: ModelFolder, documents: dict[str, str]) -> None:
        self.settings = Settings(store=folder, train_steps=1, module_rank=8, max_model_len=512, context_tokens=300)
        self.model = model
        self.asked = 0
        self.calls: int | None = None  # that the engine answers
        self.catalog = Catalog.open(self.settings.catalog_path, create=True, module_dir=self.settings.module_dir)
        for doc_id, text in documents.items():
            document = Document(doc_id, "default", "", text, f"hash of {doc_id}")
            draft = PassageDraft(0, 0, len(text), text, "")
            self.catalog.put_document(document, [draft], np.ones((1, 4), dtype=np.float32), "embedder")
        registry = ModuleRegistry(self.catalog, self.settings.module_dir, model.hash)
        prompts = PromptBuilder(load_tokenizer(model.path), max_model_len=512, context_tokens=300)
        self.refresher = Refresher(self.catalog, registry, model, prompts, self.settings, self.generate)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        self.asked += 1
        if self.calls is not None and self.asked > self.calls:
            raise EngineError("the engine is gone")
        return [Completion("", "stop")] * len(prompts)

    def job_folder(self, doc_id: str) -> Path:
        recipe = asdict(recipe_for(self.settings))
        made = made_with(self.model, self.settings)
        name = job_name(module_id_for("default", doc_id), f"hash of {doc_id}", self.model.hash, recipe, made)
        return self.settings.module_dir / "work" / name


MakeStore = Callable[[dict[str, str]], Store]


@pytest.fixture
def make_store(tmp_path: Path, tiny_model: ModelFolder) -> Iterator[MakeStore]:
    made: list[Store] = []

    def make(documents: dict[str, str]) -> Store:
        made.append(Store(tmp_path / "store", tiny_model, documents))
        return made[-1]

    yield make
    for store in made:
        store.catalog.close()


def finish(
    store: Store, doc_id: str, make_adapter: Callable[..., Path], model: ModelFolder, *, passed: bool = True
) -> None:
    """Leaves what a trainer leaves that was killed before its result was published."""
    folder = store.job_folder(doc_id)
    folder.mkdir(parents=True, exist_ok=True)
    make_adapter(folder / "adapter", model, rank=8)
    recipe = asdict(recipe_for(store.settings))
    result = {"passed": passed, "reason": "good", "metrics": {"seconds": {"total": 1.0}}, "recipe": recipe}
    (folder / "result.json").write_text(json.dumps({**result, "rank": 8, "alpha": 16, "targets": ["q_proj"]}))


def test_a_document_with_nothing_to_learn_is_rejected_without_a_trainer(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store({"empty": "hello"})
    monkeypatch.setattr(sys, "executable", "/no/such/python")  # a trainer's process could not start
    for _ in range(2):
        (outcome,) = store.refresher.run().outcomes
        assert outcome.state == "rejected" and "nothing to learn" in outcome.reason
    asked = store.asked
    store.refresher.run()
    assert store.asked == asked  # nor is the engine asked again


def test_a_damaged_result_costs_its_own_document_only(
    make_store: MakeStore, make_adapter: Callable[..., Path], tiny_model: ModelFolder
) -> None:
    store = make_store({"damaged": KETTLE, "whole": KETTLE})
    for doc_id in ("damaged", "whole"):
        finish(store, doc_id, make_adapter, tiny_model)
    (store.job_folder("damaged") / "adapter" / "adapter_config.json").write_bytes(b"")  # after a power cut
    damaged, whole = store.refresher.run().outcomes
    assert (damaged.doc_id, damaged.state) == ("damaged", "failed")
    assert "cannot be published" in damaged.reason and "adapter_config.json" in damaged.reason
    assert (whole.doc_id, whole.state) == ("whole", "published")
    assert not store.job_folder("damaged").exists()  # the next refresh trains it anew


def test_a_job_taken_up_again_hears_where_the_model_is_now(make_store: MakeStore) -> None:
    store = make_store({"empty": "hello"})  # nothing to learn: no trainer, and the job stays
    store.refresher.run()
    folder = store.job_folder("empty")
    job = Job.load(folder)
    assert job.model_path == str(store.model.path)
    replace(job, model_name="old", model_path="/moved/away", context_tokens=1, max_model_len=2).save(folder)
    store.refresher.run()
    assert Job.load(folder) == job
    (folder / "job.json").write_text("{}")
    asked = store.asked
    store.refresher.run()
    assert Job.load(folder) == job  # a damaged one is written anew
    assert store.asked == asked  # from the curriculum that was kept


def test_curricula_are_kept_some_documents_at_a_time(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store({f"d{number:02}": f"{KETTLE} It is kettle {number}." for number in range(AT_A_TIME + 3)})
    monkeypatch.setattr(sys, "executable", "/no/such/python")  # a trainer's process could not start
    kept: list[Path] = []
    for store.calls in range(100):  # the engine goes away later and later, until the first documents are through
        store.asked = 0
        with pytest.raises(EngineError, match="the engine is gone"):
            store.refresher.run()
        kept = list((store.settings.module_dir / "work" / "curricula").glob("*.json"))
        if kept:
            break
    assert len(kept) == AT_A_TIME


def test_what_is_finished_is_published_whatever_becomes_of_the_rest(
    make_store: MakeStore, make_adapter: Callable[..., Path], tiny_model: ModelFolder
) -> None:
    store = make_store({"a": KETTLE, "b": f"{KETTLE} It is blue."})
    finish(store, "b", make_adapter, tiny_model)
    store.calls = 0
    published, failed = store.refresher.run().outcomes
    assert (published.doc_id, published.state) == ("b", "published")
    assert (failed.doc_id, failed.state) == ("a", "failed") and "the engine is gone" in failed.reason


def test_what_force_has_begun_goes_on_without_it(
    make_store: MakeStore, make_adapter: Callable[..., Path], tiny_model: ModelFolder
) -> None:
    store = make_store({"kettle": KETTLE})

    def state() -> str:
        (outcome,) = store.refresher.run().outcomes
        return outcome.state

    finish(store, "kettle", make_adapter, tiny_model)
    assert (state(), state()) == ("published", "fresh")
    finish(store, "kettle", make_adapter, tiny_model, passed=False)  # by a --force that was killed before it published
    assert state() == "rejected" and not store.job_folder("kettle").exists()
    assert state() == "fresh"  # of the version in service, whatever was rejected after it


def test_nothing_of_a_removed_document_stays(make_store: MakeStore) -> None:
    store = make_store({"empty": "hello", "other": "hello there"})
    store.refresher.run()
    work = store.settings.module_dir / "work"
    job = Job.load(store.job_folder("empty"))
    plugin = replace(job, doc_id="", module_id="style", curriculum=replace(job.curriculum, chunks=("hello",)))
    plugin.save(work / "plugin-0-1")
    with FileLock(work / REFRESH_LOCK), FileLock(work / DISTILL_LOCK):  # another process is at work
        forget_document(work, "default", "empty")
        assert store.job_folder("empty").exists() and (work / "plugin-0-1").exists()
    store.catalog.remove_document("default", "empty")
    store.refresher.run(doc_ids=["other"])  # takes away at its end what it kept from being removed
    assert not store.job_folder("empty").exists() and (work / "plugin-0-1").exists()
    forget_document(work, "default", "empty")
    assert not (work / "plugin-0-1").exists()
    assert store.job_folder("other").exists() and len(list((work / "curricula").glob("*.json"))) == 1
    forget_document(work, "default", "other")
    assert not store.job_folder("other").exists() and not list((work / "curricula").glob("*.json"))
    forget_document(work / "none", "default", "other")
    assert not (work / "none").exists()
