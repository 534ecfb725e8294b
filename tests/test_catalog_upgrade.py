"""A catalog of an older hybridqa is brought up to date when it is opened: wholly, once, and with nothing lost."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hybridqa import catalog_database
from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.errors import StoreError
from hybridqa.types import Document, Module, ModuleKind, ModuleStatus

ROOT = Path(__file__).parent.parent
MODULES_OF_SCHEMA_1 = (
    "CREATE TABLE modules (module_row INTEGER PRIMARY KEY, collection_id INTEGER NOT NULL REFERENCES collections, "
    "module_id TEXT NOT NULL, version INTEGER NOT NULL, path TEXT NOT NULL, base_model_hash TEXT NOT NULL, "
    "rank INTEGER NOT NULL, status TEXT NOT NULL, current INTEGER NOT NULL DEFAULT 0, created_at TEXT NOT NULL, "
    "metrics TEXT NOT NULL, UNIQUE (module_id, version))"
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A catalog of schema 1 with a document and its module."""
    path = tmp_path / "catalog.sqlite3"
    make_old(path)
    return path


def make_old(path: Path) -> None:
    with Catalog.open(path, create=True) as catalog:
        document = Document("d", "c", "", "some text", "h1")
        catalog.put_document(document, [PassageDraft(0, 0, 9, "some text")], np.ones((1, 4), np.float32), "e")
        catalog.add_module(module("m", {"d": "h1"}))
        catalog.set_current("c", "m", 1)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE keys")
        connection.execute("DROP INDEX one_current_extractor")
        connection.execute("ALTER TABLE modules DROP COLUMN kind")
        connection.execute("UPDATE meta SET value = 1 WHERE key = 'schema_version'")
        written = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'modules'").fetchone()[0]
    connection.close()
    assert written == MODULES_OF_SCHEMA_1


def module(module_id: str, documents: dict[str, str], kind: ModuleKind = ModuleKind.DOCUMENT) -> Module:
    path = Path("/modules") / module_id
    return Module(module_id, 1, "c", path, documents, "base", 8, ModuleStatus.PUBLISHED, False, kind=kind)


def schema(path: Path) -> tuple[int, list[str]]:
    connection = sqlite3.connect(path)
    version = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()[0]
    columns = [row[1] for row in connection.execute("PRAGMA table_info (modules)")]
    indexes = connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'one_current_extractor'").fetchone()
    keys = connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'keys'").fetchone()
    connection.close()
    return version, [*columns[11:], *["index"] * indexes[0], *["keys"] * keys[0]]


def kinds_in(path: Path) -> list[ModuleKind]:
    with Catalog.open(path) as catalog:
        return [found.kind for found in catalog.list_modules()]


OLD, NEW = (1, []), (3, ["kind", "index", "keys"])


def test_an_old_catalog_is_brought_up_to_date_with_its_modules(old: Path, tmp_path: Path) -> None:
    assert schema(old) == OLD
    for _ in range(2):
        with Catalog.open(old) as catalog:
            assert catalog.check() == []
            [kept] = catalog.modules_for_documents("c", ["d"])
            assert (kept.kind, kept.name, kept.documents) == (ModuleKind.DOCUMENT, "m@1", {"d": "h1"})
        assert schema(old) == NEW
    with Catalog.open(old) as catalog:
        catalog.add_module(module("style", {}, ModuleKind.INSTRUCTIONS))
        assert catalog.get_module("c", "style", 1).kind is ModuleKind.INSTRUCTIONS
    Catalog.open(tmp_path / "new", create=True).close()
    assert schema(tmp_path / "new") == NEW


def test_many_that_open_it_at_once(old: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: kinds_in(old), range(16)))
    assert found == [[ModuleKind.DOCUMENT]] * 16
    assert schema(old) == NEW


KILLED = """
import os, sys
from hybridqa.catalog_database import Database
from hybridqa.catalog import Catalog
from pathlib import Path
left = int(sys.argv[2])
connect = Database._connect
def watched(self):
    connection = connect(self)
    def seen(statement):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
    connection.set_trace_callback(seen)
    return connection
Database._connect = watched
Catalog.open(Path(sys.argv[1])).close()
"""


def test_killed_before_any_of_its_statements_it_is_old_or_new(tmp_path: Path) -> None:
    ends = []
    for statement in range(40):
        path = tmp_path / f"{statement}.sqlite3"
        make_old(path)
        command = [sys.executable, "-c", KILLED, str(path), str(statement)]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        assert code in (0, 9)
        assert schema(path) == (NEW if code == 0 else OLD)
        with Catalog.open(path) as catalog:
            assert [m.name for m in catalog.list_modules("c", current_only=True)] == ["m@1"]
        ends.append(code)
        if code == 0:
            break
    assert len(ends) >= 6 and ends[-1] == 0


def test_one_that_may_not_be_written_says_what_is_to_be_done(open_folder: Path) -> None:
    path = open_folder / "catalog.sqlite3"
    make_old(path)
    path.chmod(0o444)
    with pytest.raises(StoreError, match=r"schema 1 of an older hybridqa and cannot be written.*hybridqa ls"):
        Catalog.open(path)
    for file in open_folder.iterdir():  # SQLite gives its working files the permissions of the file
        file.chmod(0o644)
    Catalog.open(path).close()
    path.chmod(0o444)
    with Catalog.open(path) as catalog:  # once brought up to date it is read as before
        assert [m.name for m in catalog.list_modules()] == ["m@1"]


def test_one_that_is_locked_is_waited_for_and_then_named(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_database, "BUSY_SECONDS", 0.1)
    writer = sqlite3.connect(old, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked by another writer"):
        Catalog.open(old)
    writer.close()
    assert schema(old) == OLD
