"""An extractor from documents and questions to answers: made, published, served; resumed; refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from towns import text_of, write_towns

from hybridqa import HybridQA
from hybridqa.errors import CollectionNotFoundError, InputError, StoreError, TrainingError
from hybridqa.models import ModelFolder
from hybridqa.modules.adapter import read_adapter
from hybridqa.modules.manifest import Manifest, check_files, read_manifest
from hybridqa.modules.registry import module_id_for
from hybridqa.training.checkpoint import CHECKPOINT
from hybridqa.training.outcome import RefreshEvent, RefreshReport
from hybridqa.types import Module, ModuleKind

MakeAdapter = Callable[..., Path]


def settings_for(model: ModelFolder) -> dict[str, Any]:
    return {
        "model": str(model.path),
        "engine": "reference",
        "max_model_len": 512,
        "context_tokens": 300,
        "passages": 2,
        "max_answer_tokens": 12,
        "learning_rate": 5e-3,
        "module_rank": 4,
        "passage_tokens": 24,
        "train_steps": 60,
    }


@pytest.fixture
def qa(tmp_path: Path, tiny_model: ModelFolder) -> Iterator[HybridQA]:
    with HybridQA.open(tmp_path / "store", create=True, **settings_for(tiny_model)) as store:
        yield store


@pytest.fixture
def towns(tmp_path: Path) -> tuple[Path, Path]:
    return write_towns(tmp_path)


def publish(store: HybridQA, doc_id: str, folder: Path) -> Module:
    """The adapter in `folder` as the module of a document."""
    adapter = read_adapter(folder)
    manifest = Manifest(
        module_id=module_id_for("default", doc_id),
        collection="default",
        documents={doc_id: store.catalog.get_document("default", doc_id).content_hash},
        base_model="tiny",
        base_model_hash=store.model.hash,
        rank=adapter.rank,
        alpha=16,
        targets=["q_proj"],
    )
    return store.registry.publish(folder, manifest, True)


@pytest.fixture
def work(tmp_path: Path, tiny_model: ModelFolder, make_adapter: MakeAdapter) -> Path:
    """A work store whose towns have modules already: random ones, which `refresh` has no reason to make again."""
    folder = tmp_path / "work"
    with HybridQA.open(folder, create=True, **settings_for(tiny_model)) as store:
        for place in range(6):
            store.add_text(f"town-{place}", text_of(place), title=text_of(place).split()[3])
            publish(store, f"town-{place}", make_adapter(tmp_path / "staged", tiny_model, rank=4, seed=place))
    return folder


def test_an_extractor_is_trained_published_and_served(
    qa: HybridQA,
    towns: tuple[Path, Path],
    work: Path,
    tmp_path: Path,
    tiny_model: ModelFolder,
    make_adapter: MakeAdapter,
) -> None:
    events: list[RefreshEvent] = []
    made = qa.train_extractor(*towns, work=work, steps=30, output=tmp_path / "out", on_event=events.append)
    assert made.state == "published" and made.module == "extractor@1" and "better than none" in made.reason
    assert {"add", "skip", "exercises", "train", "gate", "publish"} <= {event.stage for event in events}
    assert "teach" not in {event.stage for event in events}  # the modules were there
    (module,) = qa.modules()
    assert module.kind is ModuleKind.EXTRACTOR and module.current
    manifest = read_manifest(module.path)
    assert manifest.module_weights is not None and len(manifest.module_weights) == 14
    assert manifest.serves["passages"] == 2 and manifest.serves["modules"] == 1
    assert manifest.serves["prompt"] == qa.prompts.fingerprint
    assert manifest.recipe["objective"] == "sft" and manifest.recipe["first_layer"] == 0
    assert manifest.metrics["exercises"] and manifest.metrics["gate"]["passed"] and manifest.hardware
    assert len(manifest.metrics["documents"]["held_out"]) == 2
    outside = read_manifest(tmp_path / "out")
    check_files(tmp_path / "out", outside)
    assert outside == manifest

    qa.add_text("harbour", "The harbour of Lindmoor was dug by Tove Rask in 1877.", title="Lindmoor")
    publish(qa, "harbour", make_adapter(tmp_path / "staged", tiny_model, rank=4, seed=9))
    answer = qa.ask("Who dug the harbour of Lindmoor in 1877?")
    assert answer.extractor is not None and answer.extractor.module.name == "extractor@1"
    assert [choice.weight for choice in answer.modules] == [manifest.module_weights]
    assert qa.ask("Who dug the harbour of Lindmoor in 1877?", extractor=False).extractor is None

    again = qa.train_extractor(*towns, work=work, steps=30)
    assert again.state == "known" and again.module == "extractor@1" and len(qa.modules()) == 2


@pytest.mark.slow
def test_the_fair_comparison_is_trained_on_passages_alone(
    qa: HybridQA, towns: tuple[Path, Path], work: Path, tmp_path: Path
) -> None:
    plain = qa.train_extractor(*towns, work=work, steps=8, modules=False, publish=False, output=tmp_path / "plain")
    assert plain.state == "trained" and plain.module is None and not qa.modules()
    assert set(plain.metrics["exercises"]) <= {"passages", "neither", "unanswerable"}
    plain_manifest = read_manifest(tmp_path / "plain")
    assert plain_manifest.module_weights == {} and plain_manifest.serves["modules"] == 0
    assert plain_manifest.module_id == "extractor-passages"


KILLED = """
import json, sys
from hybridqa import HybridQA
def show(event):
    print(event.stage, event.step, flush=True)
docs, questions, store, work, settings = sys.argv[1:]
with HybridQA.open(store, create=True, **json.loads(settings)) as qa:
    qa.train_extractor(docs, questions, work=work, steps=3000, on_event=show)
"""


@pytest.mark.slow
def test_a_killed_run_is_taken_up(
    towns: tuple[Path, Path], work: Path, tmp_path: Path, tiny_model: ModelFolder
) -> None:
    settings = settings_for(tiny_model)
    arguments = [*map(str, towns), str(tmp_path / "store"), str(work), json.dumps(settings)]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folders: list[Path] = []
    for _ in process.stdout:
        folders = list((work / "modules" / "default" / "work").glob("extractor-*"))
        if folders and (folders[0] / CHECKPOINT).exists():
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (folder,) = folders
    assert (folder / CHECKPOINT).exists() and not (folder / "result.json").exists()
    first: list[int] = []

    def note(event: RefreshEvent) -> None:
        if event.stage == "train" and not first:
            first.append(event.step)
            raise KeyboardInterrupt  # enough was seen

    with (
        HybridQA.open(tmp_path / "store", create=True, **settings) as qa,
        pytest.raises(KeyboardInterrupt),
    ):
        qa.train_extractor(*towns, work=work, steps=3000, on_event=note)
    assert first[0] > 1


def test_bad_input_is_refused_before_anything_is_done(qa: HybridQA, towns: tuple[Path, Path], tmp_path: Path) -> None:
    docs, questions = towns
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(InputError, match="holds nothing"):
        qa.train_extractor(docs, empty)
    with pytest.raises(InputError, match="cannot be read"):
        qa.train_extractor(tmp_path / "none.jsonl", questions)
    less = tmp_path / "less.jsonl"
    less.write_text(docs.read_text().split("\n", 1)[1])
    with pytest.raises(InputError, match="'town-0' is none of them"):
        qa.train_extractor(less, questions)
    with pytest.raises(InputError, match="at least 3: one to learn from"):
        qa.train_extractor(docs, questions, documents=2)
    with pytest.raises(InputError, match="steps"):
        qa.train_extractor(docs, questions, steps=-1)
    with pytest.raises(InputError, match="no folder for it"):
        qa.train_extractor(docs, questions, publish=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="another folder with --work"):
        qa.train_extractor(docs, questions, work=tmp_path / "file")
    with pytest.raises(InputError, match="questions per document"):
        qa.train_extractor(docs, questions, questions_per_document=-1)
    with pytest.raises(InputError, match="expected a new folder"):
        qa.train_extractor(docs, questions, output=tmp_path)
    with pytest.raises(InputError, match="the store itself"):
        qa.train_extractor(docs, questions, work=qa.settings.store)
    with pytest.raises(CollectionNotFoundError):
        qa.train_extractor(docs, questions, collection="none")
    assert not (qa.settings.module_dir / "work").exists()


def test_documents_that_are_served_are_left_out(qa: HybridQA, towns: tuple[Path, Path]) -> None:
    for place in range(4):
        entry = json.loads(towns[0].read_text().splitlines()[place])
        qa.add_text(f"other-id-{place}", entry["text"], title=entry["title"] if place else "Annual report")
    with pytest.raises(InputError, match="4 of them left out because the collection serves them"):
        qa.train_extractor(*towns)


def test_without_any_module_there_is_nothing_to_stand_beside(
    qa: HybridQA, towns: tuple[Path, Path], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HybridQA.open(work, **settings_for(qa.model)) as store:
        for module in store.modules():
            store.catalog.set_current("default", module.module_id, None)
    monkeypatch.setattr(HybridQA, "refresh", lambda *_, **__: RefreshReport((), 0.0))  # as when every gate says no
    with pytest.raises(TrainingError, match=r"passed its gate.*--no-modules"):
        qa.train_extractor(*towns, work=work)


@pytest.mark.slow
def test_a_module_that_fails_stops_it_with_its_reason(tmp_path: Path, tiny_model: ModelFolder) -> None:
    towns = write_towns(tmp_path, count=3)
    settings = {**settings_for(tiny_model), "learning_rate": 1e30, "train_steps": 4}
    with (
        HybridQA.open(tmp_path / "store", create=True, **settings) as qa,
        pytest.raises(TrainingError, match=r"3 of 3 modules failed, the first of document 'town-0': .*loss became nan"),
    ):
        qa.train_extractor(*towns)


def test_two_at_once_are_refused(qa: HybridQA, towns: tuple[Path, Path], work: Path) -> None:
    from filelock import FileLock

    with FileLock(work / ".extractor.lock"), pytest.raises(StoreError, match="another train-extractor"):
        qa.train_extractor(*towns, work=work)


@pytest.mark.slow  # a real model: a random one knows no document, and its modules pass no gate
def test_the_work_store_makes_its_own_modules(tmp_path: Path, model_folder: ModelFolder) -> None:
    towns = write_towns(tmp_path, count=3)
    with HybridQA.open(tmp_path / "real", create=True, model=str(model_folder.path), engine="reference") as qa:
        made = qa.train_extractor(*towns, steps=2)
        assert made.work.parent == qa.settings.module_dir / "work" and made.metrics["modules"] >= 1
        assert made.state in ("published", "rejected")
        assert qa.catalog.check() == []
