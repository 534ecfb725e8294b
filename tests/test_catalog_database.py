"""The catalog's file under Ctrl-C, other writers, values that it cannot hold, and little room on its disk."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from hybridqa import HybridQA, catalog_database
from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.errors import CorruptStoreError, InputError, StoreError
from hybridqa.types import Document


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.sqlite3", create=True) as opened:
        opened.create_collection("c")
        yield opened


@pytest.fixture
def writer(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """Another process, as far as SQLite can tell, in the middle of its writing."""
    monkeypatch.setattr(catalog_database, "BUSY_SECONDS", 0.1)
    connection = sqlite3.connect(catalog.path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


def put(catalog: Catalog, doc_id: str, words: int) -> None:
    text = f"{doc_id} " * words
    document = Document(doc_id, "c", "", text, text)
    catalog.put_document(document, [PassageDraft(0, 0, len(text), text)], np.ones((1, 4), np.float32), "e")


def test_ctrl_c_while_waiting_for_the_lock_leaves_no_transaction_open(catalog: Catalog) -> None:
    """SQLite waits in C: Python raises when BEGIN has succeeded."""
    writer = sqlite3.connect(catalog.path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    timers = [
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)),
        threading.Timer(0.5, writer.execute, ("ROLLBACK",)),
    ]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            for timer in timers:
                timer.start()
            catalog.create_collection("x")
    finally:
        for timer in timers:
            timer.join()
        signal.signal(signal.SIGINT, before)
    writer.execute("BEGIN IMMEDIATE")  # nobody holds the lock
    writer.close()
    catalog.create_collection("y")
    assert catalog.list_collections() == ["c", "y"]


def test_a_connection_left_in_a_transaction_is_not_used_again(catalog: Catalog) -> None:
    with catalog._database.connection() as connection:
        connection.execute("BEGIN IMMEDIATE")
    catalog.create_collection("y")
    assert catalog.list_collections() == ["c", "y"]


def test_a_store_opens_while_another_process_writes(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_database, "BUSY_SECONDS", 0.1)
    HybridQA.open(tmp_path, create=True).close()
    writer = sqlite3.connect(tmp_path / "indexes" / "default" / "catalog.sqlite3", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with HybridQA.open(tmp_path) as qa:
        assert qa.documents() == []
        assert qa.catalog.check_rows() == []
        with pytest.raises(StoreError, match="locked by another writer"):
            qa.catalog.check_full_text()
    writer.close()


def test_a_catalog_that_cannot_be_made_ready_is_closed(
    catalog: Catalog, writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Path] = []
    monkeypatch.setattr(Catalog, "close", lambda opened: closed.append(opened.path))
    with pytest.raises(StoreError, match="locked"):
        Catalog.open(catalog.path, collection="new")
    assert closed == [catalog.path]


@pytest.mark.parametrize(
    "call",
    [
        lambda catalog: catalog.require_collection("\udcff"),
        lambda catalog: catalog.remove_document("c", "\udcff"),
        lambda catalog: catalog.find_document("\ud800", "d"),
        lambda catalog: catalog.get_module("c", "m", 10**20),
    ],
)
def test_what_sqlite_cannot_hold_is_refused(catalog: Catalog, call: Callable[[Catalog], object]) -> None:
    with pytest.raises(InputError, match=r"lone surrogate|too large"):
        call(catalog)


def test_damage_is_mended_with_the_log_moved_away(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite3").write_bytes(b"no database at all " * 300)
    with pytest.raises(CorruptStoreError, match=r"no process using the store.*-wal' and .*-shm'.*put a backup"):
        Catalog.open(tmp_path / "catalog.sqlite3")


@pytest.mark.parametrize("free", [0, 10**12])
def test_compacting_needs_room_for_the_copy(catalog: Catalog, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    for number in range(20):
        put(catalog, f"d{number}", 2000)
    for number in range(19):
        catalog.remove_document("c", f"d{number}")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    catalog.compact()
    size = catalog.path.stat().st_size
    assert (size < 200_000) == (free > 0)
    assert Path(f"{catalog.path}-wal").stat().st_size == 0
    assert catalog.check() == []


def test_compacting_empties_the_log_even_when_it_fails(catalog: Catalog, writer: sqlite3.Connection) -> None:
    put_log = Path(f"{catalog.path}-wal")
    assert put_log.stat().st_size > 0
    writer.execute("ROLLBACK")
    writer.execute("DROP TABLE fts_1")
    with pytest.raises(StoreError, match="fts_1"):
        catalog.compact()
    assert put_log.stat().st_size == 0
