"""Other modules beside the one under training: which jobs hear of them, what is loaded, and that it is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.models import ModelFolder
from hybridqa.modules.manifest import Manifest
from hybridqa.modules.registry import ModuleRegistry, module_id_for
from hybridqa.training.beside import begin_beside, load_beside
from hybridqa.training.lesson import CHECKPOINT, Job
from hybridqa.training.others import JUDGES, others_of, tell_others
from hybridqa.training.pairs import Pair
from hybridqa.training.recipe import Recipe
from hybridqa.training.synthesis import Curriculum
from hybridqa.training.trainer import Trainer
from hybridqa.training.worker import main
from hybridqa.types import Document

MakeAdapter = Callable[..., Path]
RECIPE = Recipe(
    rank=2,
    alpha=4,
    steps=6,
    first_layer=0.0,
    retention=0.0,
    reading=0.0,
    objective="sft",
    distracted=1.0,
    dtype="float32",
)
PAIRS = tuple(
    Pair(f"Which town has the {word}?", word.title(), "ask", 0, -1) for word in ("tower", "lake", "inn", "mill")
)
CURRICULUM = Curriculum("Towns", ("A text.",), PAIRS, PAIRS, {})


class Store:
    """A catalog of documents in two collections, with a registry that publishes random modules."""

    def __init__(self, folder: Path, model: ModelFolder, make_adapter: MakeAdapter) -> None:
        self.folder, self.model, self._make_adapter = folder, model, make_adapter
        self.catalog = Catalog.open(folder / "catalog.sqlite3", create=True, module_dir=folder / "modules")
        self.registry = ModuleRegistry(self.catalog, folder / "modules", model.hash)

    def add(self, doc_id: str, collection: str = "default") -> None:
        text = f"The {doc_id} stands in the town of Oskvar. The {doc_id} was built in 1931 by Maren Holt."
        document = Document(doc_id, collection, doc_id, text, f"hash of {doc_id}")
        draft = PassageDraft(0, 0, len(text), text, "")
        self.catalog.put_document(document, [draft], np.ones((1, 4), dtype=np.float32), "embedder")

    def publish(self, doc_id: str, collection: str = "default", passed: bool = True) -> Path:
        """A module of the document, in service if it `passed`."""
        staged = self._make_adapter(self.folder / "staged", self.model, rank=2, alpha=4, seed=len(doc_id))
        manifest = Manifest(
            module_id=module_id_for(collection, doc_id),
            collection=collection,
            documents={doc_id: f"hash of {doc_id}"},
            base_model="tiny",
            base_model_hash=self.model.hash,
            rank=2,
            alpha=4,
            targets=["q_proj"],
        )
        return self.registry.publish(staged, manifest, passed).path.absolute()

    def job(self, folder: Path, doc_id: str = "new", **changes: Any) -> Job:
        """A job for a document, written into `folder`."""
        made = Job(
            collection="default",
            doc_id=doc_id,
            content_hash="x",
            module_id=doc_id,
            model_name="tiny",
            model_path=str(self.model.path),
            model_hash=self.model.hash,
            context_tokens=256,
            max_model_len=512,
            recipe=asdict(RECIPE),
            curriculum=CURRICULUM,
        )
        made = replace(made, **changes)
        made.save(folder)
        return made


@pytest.fixture
def store(tmp_path: Path, tiny_model: ModelFolder, make_adapter: MakeAdapter) -> Iterator[Store]:
    made = Store(tmp_path, tiny_model, make_adapter)
    yield made
    made.catalog.close()


def test_a_job_hears_of_its_own_collection_alone(store: Store) -> None:
    for doc_id in ("mill", "tower", "lake", "barn"):
        store.add(doc_id)
    store.add("secret", "private")
    mill, tower = store.publish("mill"), store.publish("tower")
    store.publish("barn", passed=False)
    store.publish("secret", "private")
    recipe = Recipe()
    told = others_of(store.catalog, "default", "mill", store.model.hash, recipe)
    assert told["companions"] == (str(tower),)  # neither its own, nor a rejected one, nor another collection's
    text = " ".join(question + answer for question, answer in told["off_topic"])
    assert "tower" in text and "lake" in text and "mill" not in text and "secret" not in text
    assert told == others_of(store.catalog, "default", "mill", store.model.hash, recipe)
    assert set(others_of(store.catalog, "default", "lake", store.model.hash, recipe)["companions"]) == {
        str(mill),
        str(tower),
    }
    assert others_of(store.catalog, "default", "lake", "another model", recipe)["companions"] == ()
    alone = others_of(store.catalog, "private", "secret", store.model.hash, recipe)
    assert alone == {"companions": (), "off_topic": ()}


def test_later_jobs_hear_of_modules_published_meanwhile_and_begun_ones_go_on_as_they_began(store: Store) -> None:
    folders = [store.folder / f"job-{place}" for place in range(4)]
    for place, folder in enumerate(folders):
        store.add(f"document {place}")
        store.job(folder, f"document {place}")
    published = str(store.publish("document 0"))
    assert begin_beside(folders[1], Job.load(folders[1])) == ()  # it is under way while the first is published
    tell_others(store.catalog, folders, {"stage": "train", "job": "job-0"})
    assert Job.load(folders[2]).companions == ()
    tell_others(store.catalog, folders, {"stage": "done", "job": "job-0"})
    assert [Job.load(folder).companions for folder in folders] == [(), (), (published,), ()]
    (folders[3] / CHECKPOINT).write_bytes(b"")
    tell_others(store.catalog, folders, {"stage": "done", "job": "job-1"})
    assert Job.load(folders[3]).companions == ()
    tell_others(store.catalog, folders, {"stage": "done", "job": "job-3"})  # there is none after it
    told = replace(Job.load(folders[2]), off_topic=(("Who?", "Ann"),))
    told.save(folders[2])
    assert Job.load(folders[2]) == told


def test_jobs_of_the_next_batch_hear_of_every_module_of_this_one(store: Store) -> None:
    folders = [store.folder / f"job-{place}" for place in range(6)]
    for place, folder in enumerate(folders):
        store.add(f"document {place}")
        store.job(folder, f"document {place}")
    published = []
    for place in range(2):
        begin_beside(folders[place], Job.load(folders[place]))
    for place in range(2):
        published.append(str(store.publish(f"document {place}")))
        tell_others(store.catalog, folders, {"stage": "done", "job": f"job-{place}", "together": 2})
    assert [set(Job.load(folder).companions) for folder in folders[:4]] == [set(), set(), *[set(published)] * 2]


def test_a_job_taken_up_again_has_the_modules_that_it_began_with(store: Store) -> None:
    folder = store.folder / "job"
    store.add("lake")
    store.job(folder, "lake")
    replace(Job.load(folder), companions=("one",)).save(folder)
    assert begin_beside(folder, Job.load(folder)) == ("one",)
    (folder / CHECKPOINT).write_bytes(b"")
    assert begin_beside(folder, replace(Job.load(folder), companions=("another",))) == ("one",)
    (folder / CHECKPOINT).unlink()  # killed before it came so far: it begins anew, beside what is there by then
    assert begin_beside(folder, replace(Job.load(folder), companions=("another",))) == ("another",)


def test_what_cannot_stand_beside_is_left_out_with_a_note(store: Store) -> None:
    names = ("mill", "tower", "lake", "barn", "inn", "gate")
    for doc_id in names:
        store.add(doc_id)
    folders = [store.publish(doc_id) for doc_id in names]
    trainer = Trainer(store.model.path, device="cpu")
    trainer.attach(RECIPE)
    beside = load_beside(trainer, [str(folder) for folder in folders], store.model.hash)
    assert len(beside.judges) == JUDGES and len(beside.distractors) == 4 + 2  # alone, and sums of two and of three
    ranks = [next(iter(companion.factors.values()))[0].shape[0] for companion in beside.distractors]
    assert ranks == [2, 2, 2, 2, 4, 6]
    assert beside.record["trained_beside"] == 4 and len(beside.record["modules"]) == 6
    weights = folders[0] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    shutil.rmtree(folders[1])
    some = load_beside(trainer, [str(folder) for folder in folders[:3]], store.model.hash)
    assert len(some.distractors) == len(some.judges) == 1  # the one that is left serves both
    assert sorted(some.record["skipped"].values()) == ["CorruptModuleError"] * 2
    assert str(store.folder) not in json.dumps(some.record)
    foreign = load_beside(trainer, [str(folders[2])], "another model")
    assert not foreign.distractors and list(foreign.record["skipped"].values()) == ["of another base model"]
    assert load_beside(trainer, [], store.model.hash).record == {}


def test_a_job_trains_and_is_judged_beside_the_modules_that_it_names(store: Store) -> None:
    store.add("mill")
    published = str(store.publish("mill"))
    weights, results = [], []
    for place, companions in enumerate(((), (published,), (published, str(store.folder / "gone")))):
        folder = store.folder / f"job-{place}"
        store.job(folder, companions=companions)
        assert main([str(folder)]) == 0
        weights.append(load_file(folder / "adapter" / "adapter_model.safetensors"))
        results.append(json.loads((folder / "result.json").read_text())["metrics"])
    same = [
        all((one == other).all() for one, other in zip(weights[1].values(), side.values(), strict=True))
        for side in (weights[0], weights[2])
    ]
    assert same == [False, True]  # it trained beside the module, and what is gone stops nothing
    assert "beside" not in results[0] and results[0]["gate"]["composes"] == "not checked: no other module"
    assert results[1]["gate"]["composition_modules"] == 1 and results[1]["gate"]["composes"] in ("passed", "failed")
    assert list(results[2]["beside"]["modules"]) == list(results[1]["beside"]["modules"])
    assert results[2]["beside"]["skipped"]


@pytest.mark.parametrize("objective", ["dcd", "next-token"])
def test_every_objective_can_leave_the_rest_alone(store: Store, objective: str) -> None:
    tokens = []
    for place, share in enumerate((0.0, 0.5)):
        folder = store.folder / f"job-{place}"
        recipe = replace(RECIPE, objective=objective, retention=share)
        store.job(folder, recipe=asdict(recipe), off_topic=(("Who built the mill?", "Maren Holt"),))
        assert main([str(folder)]) == 0
        tokens.append(json.loads((folder / "result.json").read_text())["metrics"]["train"]["tokens"])
    assert tokens[1] > tokens[0]
