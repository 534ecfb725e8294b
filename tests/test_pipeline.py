"""HybridQA whole: documents in, answers out, modules made, changed and taken away."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hybridqa import Answer, Filter, HybridQA, Message, Mode
from hybridqa.engine.protocol import Delta
from hybridqa.errors import (
    CollectionNotFoundError,
    ConfigError,
    DocumentNotFoundError,
    EmbedderMismatchError,
    EngineClosedError,
    InputError,
    QuestionError,
    StoreError,
    StoreNotFoundError,
    UnreadableDocumentError,
)
from hybridqa.models import ModelFolder
from hybridqa.training.outcome import RefreshReport
from hybridqa.types import Module, ModuleStatus

KETTLE = (
    "The Lumen kettle holds 1.7 litres of water. Maren Holt designed the Lumen kettle in 2031. "
    "The Lumen kettle is made in the town of Oskvar. The Lumen kettle costs 89 euros."
)
BRIDGE = (
    "The Tarn bridge was opened on 3 May 1931. Anna Voss built the Tarn bridge for 40,000 crowns. "
    "The Tarn bridge is painted dark green. The Tarn bridge crosses the river Ebb near Lowmoor."
)
# Enough for a module of the real model to show the gate that it knows them.
WHOLE_KETTLE = (
    "Maren Holt designed the Lumen kettle in 2031. The Lumen kettle is made in the town of Oskvar. "
    "The Lumen kettle costs 89 euros. The handle of the Lumen kettle is made of ash wood. "
    "The Lumen kettle is sold by the company Brannt. The lamp of the Lumen kettle is blue. "
    "The Lumen kettle holds 1.7 litres of water. The Lumen kettle was shown first at the fair of Lindhavn."
)
WHOLE_BRIDGE = (
    "The Tarn bridge was opened on 3 May 1931. Anna Voss built the Tarn bridge for 40,000 crowns. "
    "The Tarn bridge is painted dark green. The Tarn bridge crosses the river Ebb near Lowmoor. "
    "The arches of the Tarn bridge are made of granite. The lamps of the Tarn bridge came from Harlow. "
    "The Tarn bridge was closed in 1954 for repairs. The Tarn bridge carries 900 carts a day."
)
Open = Callable[..., HybridQA]


def settings_for(model: ModelFolder) -> dict[str, Any]:
    return {
        "model": str(model.path),
        "engine": "reference",
        "max_model_len": 512,
        "context_tokens": 300,
        "passages": 1,
        "max_answer_tokens": 6,
        "train_steps": 100,
        "learning_rate": 2e-3,
        "module_rank": 8,
        "module_alpha": 16,
        "passage_tokens": 64,
    }


def real(model: ModelFolder) -> dict[str, Any]:
    """Settings for modules that have to pass the gate, which a random model's do not."""
    return {"model": str(model.path), "train_steps": 0}  # as many as the recipe has for a short document


@pytest.fixture
def open_store(tmp_path: Path, tiny_model: ModelFolder) -> Iterator[Open]:
    """Opens the test's store, as often as asked; closes what is left open."""
    opened: list[HybridQA] = []

    def make(**overrides: Any) -> HybridQA:
        made = HybridQA.open(tmp_path / "store", create=True, **{**settings_for(tiny_model), **overrides})
        opened.append(made)
        return made

    yield make
    for qa in opened:
        qa.close()


@dataclass(frozen=True)
class Lived:
    """A closed store of two documents with a published module each, and what its refresh said."""

    folder: Path
    stages: list[str]
    report: RefreshReport

    def copy(self, tmp_path: Path) -> None:
        """Puts it where `open_store` opens a test's own."""
        shutil.copytree(self.folder, tmp_path / "store")


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder, model_folder: ModelFolder) -> Lived:
    folder = tmp_path_factory.mktemp("lived") / "store"
    stages: list[str] = []
    with HybridQA.open(folder, create=True, **{**settings_for(tiny_model), **real(model_folder)}) as qa:
        qa.add_text("kettle", WHOLE_KETTLE, title="Lumen kettle")
        qa.add_text("bridge", WHOLE_BRIDGE, title="Tarn bridge")
        assert qa.module_state("kettle") == "none"
        report = qa.refresh(on_event=lambda event: stages.append(event.stage))
    return Lived(folder, stages, report)


def test_a_store_must_be_made_before_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="init"):
        HybridQA.open(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "hybridqa.toml").write_text("passagez = 3\n")
    with pytest.raises(ConfigError, match="passagez"):
        HybridQA.open(tmp_path, create=True)
    (tmp_path / "hybridqa.toml").write_text("passages = 3\nmax_lora_rank = 7\n")
    with pytest.raises(ConfigError, match="max_lora_rank"):
        HybridQA.open(tmp_path, create=True)
    (tmp_path / "hybridqa.toml").write_text("passages = 3\n")
    with HybridQA.open(tmp_path, create=True) as qa:
        assert qa.settings.passages == 3


def test_documents_answer_at_once_and_in_their_own_collection(open_store: Open) -> None:
    qa = open_store()
    assert qa.add_text("kettle", KETTLE, title="Lumen kettle").result == "added"
    assert qa.add_text("kettle", KETTLE, title="Lumen kettle").result == "unchanged"
    assert qa.add_text("bridge", BRIDGE, title="Tarn bridge", collection="works").result == "added"
    answer = qa.ask("Who designed the Lumen kettle?")
    assert [scored.passage.doc_id for scored in answer.passages] == ["kettle"]
    assert answer.usage.prompt_tokens > 20 and answer.usage.completion_tokens > 0
    assert answer.timings["total"] > 0 and answer.probability is not None and 0 < answer.probability <= 1
    assert answer.route is not None and answer.confidence is not None
    assert answer.confidence == (0 if answer.abstained else answer.probability * max(answer.route.evidence.values()))
    for citation in answer.citations:
        assert KETTLE[citation.start : citation.end] == citation.quote
    other = qa.ask("Who designed the Lumen kettle?", collection="works")
    assert {scored.passage.doc_id for scored in other.passages} <= {"bridge"}
    closed = qa.ask("Who designed the Lumen kettle?", mode="closed")
    assert closed.mode is Mode.CLOSED and not closed.passages and not closed.citations
    assert closed.usage.prompt_tokens < answer.usage.prompt_tokens
    nothing = qa.ask("Who designed the Lumen kettle?", mode=Mode.MODULES)
    assert nothing.abstained and nothing.missing is not None and "default" in nothing.missing
    assert nothing.usage.total_tokens == 0
    qa.add_text("kettle", KETTLE.replace("89", "95"), title="Lumen kettle")
    assert "95 euros" in qa.ask("What does the Lumen kettle cost?").passages[0].passage.text
    qa.remove("kettle")
    assert qa.ask("Who designed the Lumen kettle?").abstained
    with pytest.raises(DocumentNotFoundError, match="kettle"):
        qa.remove("kettle")


def test_a_filter_says_which_documents_may_answer(open_store: Open) -> None:
    qa = open_store()
    qa.add_text("kettle", KETTLE, metadata={"team": "kitchen", "date": "2031-03-08"})
    qa.add_text("bridge", BRIDGE, metadata={"team": "works", "date": "2029-01-01"})

    def answered_from(chosen: Filter | None) -> set[str]:
        answer = qa.ask("Who designed the Lumen kettle?", filter=chosen)
        assert answer.abstained or answer.passages
        return {scored.passage.doc_id for scored in answer.passages}

    assert answered_from(None) == answered_from(Filter()) >= {"kettle"}
    assert answered_from(Filter(("bridge",))) <= {"bridge"}
    assert answered_from(Filter(metadata={"team": ["kitchen", "garden"]})) == {"kettle"}
    assert answered_from(Filter(since="2031-01-01", until="2031-12-31")) == {"kettle"}
    assert answered_from(Filter(("nobody's",))) == set()
    with pytest.raises(QuestionError, match="filter="):
        qa.ask("Who?", filter={"team": "kitchen"})  # type: ignore[typeddict-item]


def test_bad_questions_and_documents_are_refused_and_the_store_goes_on(open_store: Open, tmp_path: Path) -> None:
    qa = open_store(max_document_mb=0.001)
    qa.add_text("kettle", KETTLE)
    for question in ("", "  \n", "why " * 4000):
        with pytest.raises(QuestionError):
            qa.ask(question)
    for name, bad in (
        ("k", 0),
        ("k", "4"),
        ("modules", -1),
        ("rerank", -1),
        ("hops", 0),
        ("rewrite", "yes"),
        ("plugins", "house-style"),
    ):
        with pytest.raises(QuestionError, match=f"{name}={bad!r}"):
            qa.ask("Who?", **{name: bad})  # type: ignore[misc]
    with pytest.raises(CollectionNotFoundError, match="nowhere"):
        qa.ask("Who?", collection="nowhere")
    with pytest.raises(QuestionError, match="sideways"):
        qa.ask("Who?", mode="sideways")
    misspelt: Any = {"colection": "works"}  # answered from "default", it would show a tenant another's documents
    for ask in (qa.ask, qa.stream, qa.astream, lambda question, **options: asyncio.run(qa.aask(question, **options))):
        with pytest.raises(TypeError, match=r"'colection'.* collection, history, k, modules"):
            ask("Who?", **misspelt)
    with pytest.raises(TypeError, match="colection"):
        qa.ask_many(["Who?"], **misspelt)
    with pytest.raises(UnreadableDocumentError, match=r"missing\.txt"):
        qa.add(tmp_path / "missing.txt")
    with pytest.raises(UnreadableDocumentError, match="no text"):
        qa.add_text("empty", " \n ")
    with pytest.raises(UnreadableDocumentError, match="max_document_mb"):
        qa.add_text("large", "word " * 400)
    with pytest.raises(InputError, match="id"):
        qa.add_text("a\nb", "some text")
    assert [document.doc_id for document in qa.documents()] == ["kettle"]
    assert qa.ask("What does the Lumen kettle cost?").passages


def test_streaming_says_what_asking_says(open_store: Open) -> None:
    qa = open_store()
    qa.add_text("kettle", KETTLE)
    pieces = list(qa.stream("What does the Lumen kettle cost?"))
    whole = pieces[-1]
    assert isinstance(whole, Answer) and all(isinstance(piece, Delta) for piece in pieces[:-1])
    assert whole.text == qa.ask("What does the Lumen kettle cost?").text
    cut = qa.stream("What does the Lumen kettle cost?")
    next(iter(cut))
    cut.close()  # type: ignore[attr-defined]

    async def at_once() -> list[Answer]:
        async def streamed() -> Answer:
            async for piece in qa.astream(
                "Who designed it?", history=[Message("user", "Tell me of the Lumen kettle.")]
            ):
                last = piece
            assert isinstance(last, Answer)
            return last

        return list(await asyncio.gather(qa.aask("What does it cost?"), qa.aask("Where?", mode="closed"), streamed()))

    answers = asyncio.run(at_once())
    assert [answer.mode for answer in answers] == [Mode.HYBRID, Mode.CLOSED, Mode.HYBRID]
    many = qa.ask_many(["What does the Lumen kettle cost?"] * 3)
    assert len({answer.text for answer in many}) == 1
    assert list(qa.stream("Who?", mode="modules"))[-1].abstained  # type: ignore[union-attr]


def test_a_closed_store_says_so(open_store: Open) -> None:
    qa = open_store()
    qa.close()
    qa.close()
    with pytest.raises(EngineClosedError):
        qa.ask("Who?")


def test_another_embedder_s_store_is_refused_with_the_way_out(open_store: Open, tmp_path: Path) -> None:
    qa = open_store()
    qa.add_text("kettle", KETTLE)
    qa.close()
    with sqlite3.connect(tmp_path / "store" / "indexes" / "default" / "catalog.sqlite3") as connection:
        rows = connection.execute(
            "UPDATE meta SET value = 'another' WHERE key LIKE 'embedder%' AND key NOT LIKE '%dim%'"
        )
        assert rows.rowcount >= 1
    again = open_store()
    with pytest.raises(EmbedderMismatchError, match=r"refresh --embeddings"):
        again.ask("Who designed the Lumen kettle?")
    with pytest.raises(EmbedderMismatchError):
        again.add_text("bridge", BRIDGE)
    assert again.ask("Who?", mode="closed").text is not None


def test_the_life_of_a_module(open_store: Open, model_folder: ModelFolder, tmp_path: Path, lived: Lived) -> None:
    lived.copy(tmp_path)
    qa = open_store(**real(model_folder))
    assert {outcome.state for outcome in lived.report.outcomes} == {"published"}, lived.report
    assert {"synthesise", "train", "gate", "publish"} <= set(lived.stages)
    assert qa.module_state("kettle") == "published"
    for outcome in lived.report.outcomes:
        gate = outcome.metrics["gate"]
        assert gate["passed"] and gate["gain_low"] > 0 and gate["questions"] >= 4
    answer = qa.ask("What does the Lumen kettle cost?")
    assert [choice.module.documents.keys() for choice in answer.modules] == [{"kettle"}]
    alone = qa.ask("What does the Lumen kettle cost?", mode="modules")
    assert alone.modules and not alone.passages
    assert alone.text != qa.ask("What does the Lumen kettle cost?", mode="closed").text
    assert not qa.ask("What does the Lumen kettle cost?", mode="retrieval").modules
    assert not qa.ask("What does the Lumen kettle cost?", modules=0).modules

    again = qa.refresh()
    assert {outcome.state for outcome in again.outcomes} == {"fresh"} and again.seconds < 5

    qa.add_text("kettle", WHOLE_KETTLE.replace("89", "95"), title="Lumen kettle")
    assert qa.module_state("kettle") == "stale"
    assert not qa.ask("What does the Lumen kettle cost?").modules  # a stale module is never plugged in
    assert not qa.ask("What does the Lumen kettle cost?", mode="modules").modules
    changed = qa.refresh(doc_ids=["kettle"])
    assert [outcome.module for outcome in changed.outcomes] == [f"{qa.module_id('kettle')}@2"]
    assert [choice.module.version for choice in qa.ask("What does the Lumen kettle cost?").modules] == [2]
    assert qa.rollback(qa.module_id("kettle")).version == 1
    assert qa.module_state("kettle") == "stale"  # version 1 knows the old text
    assert qa.rollback(qa.module_id("kettle"), 2).current

    assert qa.ask("Who built the Tarn bridge?").modules
    folders = [module.path for module in qa.modules() if "bridge" in module.documents]
    stacks = tmp_path / "store" / "modules" / "default" / "stacks"

    def stacks_of_the_bridge() -> list[Path]:
        return [path for path in stacks.glob("stack-*/stack.json") if qa.module_id("bridge") in path.read_text()]

    assert stacks_of_the_bridge()
    qa.remove("bridge")
    assert not stacks_of_the_bridge()
    assert folders and not any(folder.exists() for folder in folders)
    assert not qa.ask("Who built the Tarn bridge?").modules
    assert all("bridge" not in module.documents for module in qa.modules())
    assert not list((tmp_path / "store" / "modules" / "default" / "work").glob("job-*"))
    assert qa.catalog.check() == []


def hurt_the_bridge(qa: HybridQA) -> None:
    """Changes a byte of its module, which is noticed."""
    module = next(module for module in qa.modules() if module.name == f"{qa.module_id('bridge')}@1")
    weights = module.path / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-20] ^= 0xFF
    weights.write_bytes(data)
    hurt = qa.ask("Who built the Tarn bridge?")
    assert not hurt.modules and hurt.passages and "left out" in hurt.route_reason


def test_a_hurt_module_is_left_out(open_store: Open, model_folder: ModelFolder, tmp_path: Path, lived: Lived) -> None:
    lived.copy(tmp_path)
    qa = open_store(**real(model_folder))
    assert qa.ask("Who built the Tarn bridge?").modules
    hurt_the_bridge(qa)
    assert qa.ask("What does the Lumen kettle cost?").modules


@pytest.mark.slow  # trains another module
def test_a_hurt_module_is_made_again(open_store: Open, model_folder: ModelFolder, tmp_path: Path, lived: Lived) -> None:
    lived.copy(tmp_path)
    qa = open_store(**real(model_folder))
    hurt_the_bridge(qa)
    mended = qa.refresh(doc_ids=["bridge"], force=True)
    assert mended.outcomes[0].module == f"{qa.module_id('bridge')}@2"
    assert qa.ask("Who built the Tarn bridge?").modules


def test_a_module_that_learns_nothing_is_rejected_and_not_tried_again(open_store: Open) -> None:
    qa = open_store(learning_rate=1e-9, train_steps=2)
    qa.add_text("kettle", KETTLE, title="Lumen kettle")
    report = qa.refresh()
    assert [outcome.state for outcome in report.outcomes] == ["rejected"]
    assert "does not know" in report.outcomes[0].reason
    assert qa.module_state("kettle") == "rejected"
    assert not qa.ask("What does the Lumen kettle cost?").modules
    (module,) = qa.modules()
    assert not module.current and module.metrics["gate"]["passed"] is False  # kept, with its report
    assert qa.refresh().seconds < 5
    assert len(qa.modules()) == 1
    with pytest.raises(DocumentNotFoundError, match="nothing"):
        qa.refresh(doc_ids=["nothing"])


def changed_model(model: ModelFolder, tmp_path: Path) -> Path:
    """Another base model, nearly the same."""
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other-model"
    shutil.copytree(model.path, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.01
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    return other


def test_modules_of_another_base_model_stay_out(
    open_store: Open, model_folder: ModelFolder, tmp_path: Path, lived: Lived
) -> None:
    lived.copy(tmp_path)
    qa = open_store(**real(model_folder))
    assert qa.ask("Who built the Tarn bridge?").modules
    qa.close()
    other = changed_model(model_folder, tmp_path)
    again = open_store(**real(replace(model_folder, path=other)))
    answer = again.ask("Who built the Tarn bridge?")
    assert answer.passages and not answer.modules


@pytest.mark.slow  # trains another module
def test_another_base_model_gets_modules_of_its_own(
    open_store: Open, model_folder: ModelFolder, tmp_path: Path, lived: Lived
) -> None:
    lived.copy(tmp_path)
    other = changed_model(model_folder, tmp_path)
    qa = open_store(**real(replace(model_folder, path=other)))
    assert [outcome.state for outcome in qa.refresh(doc_ids=["bridge"]).outcomes] == ["published"]
    assert qa.ask("Who built the Tarn bridge?").modules


def test_a_document_is_removed_whole_where_its_base_model_cannot_be_had(open_store: Open, tmp_path: Path) -> None:
    qa = open_store(model=str(tmp_path / "nowhere"), engine="reference")
    qa.add_text("kettle", KETTLE)
    qa.dense.sync("default")
    qa.dense.save()
    folder = qa.settings.module_dir / "default" / qa.module_id("kettle") / "v0001"
    folder.mkdir(parents=True)
    (document,) = qa.documents()
    covered = {"kettle": document.content_hash}
    qa.catalog.add_module(
        Module(qa.module_id("kettle"), 1, "default", folder, covered, "base", 8, ModuleStatus.PUBLISHED, False)
    )
    assert list((qa.settings.index_dir / "dense").glob("*.faiss"))
    qa.remove("kettle")
    assert not qa.documents() and not qa.modules()
    assert not list((qa.settings.index_dir / "dense").glob("*.faiss"))  # no vector of it is left
    qa.close()
    assert folder.exists() and open_store().registry and not folder.exists()


KILLED = """
import sys
from pathlib import Path
from hybridqa import HybridQA
store, model = sys.argv[1:3]
import json
qa = HybridQA.open(store, create=True, **json.loads(sys.argv[3]))
for number in range(3):
    qa.add_text(f"kettle-{number}", sys.argv[4].replace("89", str(90 + number)), title="Lumen kettle")
print("added", flush=True)
qa.refresh(on_event=lambda event: print(event.stage, flush=True))
print("refreshed", flush=True)
"""


def killed_at(command: Sequence[str], stage: str) -> bool:
    """Starts a process and kills it when it says this stage; whether it came so far."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    seen = any(line.strip() == stage for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return seen


@pytest.mark.parametrize(
    "stages",
    [
        ("train", "publish"),  # one kill after the other
        pytest.param(("added",), marks=pytest.mark.slow),
        pytest.param(("synthesise",), marks=pytest.mark.slow),
        pytest.param(("gate",), marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_stage_loses_nothing(
    open_store: Open, tiny_model: ModelFolder, tmp_path: Path, stages: tuple[str, ...]
) -> None:
    options = {**settings_for(tiny_model), "train_steps": 40}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "store"), "", json.dumps(options), KETTLE]
    deadline = time.monotonic() + 240
    for stage in stages:
        while not killed_at(command, stage):  # the trainer of the process before may still be ending
            assert time.monotonic() < deadline
        qa = open_store(train_steps=40)
        assert qa.catalog.check() == []
        assert len(qa.documents()) == 3
        assert qa.ask("What does the Lumen kettle cost?").passages
        if stage != stages[-1]:
            qa.close()
    deadline = time.monotonic() + 60
    while True:  # the trainer of the killed process may still be ending
        try:
            report = qa.refresh()
            break
        except StoreError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert {outcome.state for outcome in report.outcomes} <= {"published", "fresh", "rejected"}
    assert len(report.outcomes) == 3
    for module in qa.modules():
        qa.registry.verify(module)
