"""The catalog: one SQLite file (WAL) that is the truth of a store; what else there is can be rebuilt from it.

Knows nothing about FAISS, models or the files of a module. Invariant: every change is one durable transaction, whoever
makes it (any thread, any process) and wherever it is killed; collections never see one another.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import TracebackType

from hybridqa import catalog_documents as documents
from hybridqa.catalog_database import Database
from hybridqa.catalog_documents import DocumentTable
from hybridqa.catalog_filter import FilterTable
from hybridqa.catalog_full_text import FullTextTable
from hybridqa.catalog_keys import KeyTable
from hybridqa.catalog_listing import ListingTable
from hybridqa.catalog_modules import ModuleTable
from hybridqa.catalog_rows import DocumentSummary, Ids, PassageDraft, PutResult, State, Vectors, checked_collection
from hybridqa.catalog_vectors import VectorTable
from hybridqa.errors import CorruptStoreError

__all__ = ["Catalog", "DocumentSummary", "Ids", "PassageDraft", "PutResult", "State", "Vectors"]

OFFSET_SAMPLE = 200  # documents whose passages `check` compares with the text


class Catalog(DocumentTable, ListingTable, FullTextTable, FilterTable, VectorTable, ModuleTable, KeyTable):
    """Documents, passages, vectors, full text, module rows and keys of one store; share it between threads."""

    def __init__(self, database: Database, module_dir: Path | None) -> None:
        self._database = database
        self._module_dir = None if module_dir is None else module_dir.absolute()

    @classmethod
    def open(
        cls, path: Path, *, create: bool = False, module_dir: Path | None = None, collection: str | None = None
    ) -> Catalog:
        """Opens the catalog at `path`, or makes it; modules' paths are kept relative to `module_dir`.

        A `collection` that is given is made when it is not there. Raises `StoreNotFoundError`, `CorruptStoreError`,
        `StorageFullError`, `StoreError` for a newer schema or a folder that cannot be used.
        """
        catalog = cls(Database.open(Path(path), create=create), module_dir)
        try:
            if collection is not None:
                catalog.create_collection(collection)
        except BaseException:
            catalog.close()
            raise
        return catalog

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return self._database.path

    def close(self) -> None:
        """Closes the file; later calls raise `StoreError`."""
        self._database.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def create_collection(self, name: str) -> None:
        """Makes a collection when it is not there. Raises `InputError` for a name that cannot be one."""
        with self._database.read() as connection:
            if documents.find_collection(connection, checked_collection(name)) is not None:
                return  # without the write lock: a store is opened while another process writes
        with self._database.write() as connection:
            documents.ensure_collection(connection, name)

    def list_collections(self) -> list[str]:
        """The collections' names, sorted."""
        with self._database.read() as connection:
            return [row[0] for row in connection.execute("SELECT name FROM collections ORDER BY name")]

    def require_collection(self, name: str) -> None:
        """Raises `CollectionNotFoundError` when there is no such collection."""
        with self._database.read() as connection:
            documents.require_collection(connection, name)

    def check(self) -> list[str]:
        """What is wrong with the catalog, one line each; empty when it is whole. Raises `StoreError` when locked."""
        problems = self.check_rows()
        try:
            return [*problems, *self.check_full_text()]
        except CorruptStoreError as error:
            return [*problems, str(error)]

    def check_rows(self) -> list[str]:
        """`check` without the full-text indexes, which needs no write lock and works where nothing may be written."""
        try:
            with self._database.read() as connection:
                return [*_check_file(connection), *_check_vectors(connection), *_check_offsets(connection)]
        except CorruptStoreError as error:
            return [str(error)]


def _check_file(connection: sqlite3.Connection) -> list[str]:
    problems = [f"the file is damaged: {row[0]}" for row in connection.execute("PRAGMA quick_check") if row[0] != "ok"]
    for table, rowid, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        problems.append(f"row {rowid} of {table!r} belongs to a missing row of {parent!r}")
    return problems


def _check_vectors(connection: sqlite3.Connection) -> list[str]:
    known = documents.get_embedder(connection)
    queries = {
        "passages have no vector": "SELECT count(*) FROM passages WHERE passage_id NOT IN "
        "(SELECT passage_id FROM vectors)",
        "vectors have no passage": "SELECT count(*) FROM vectors WHERE passage_id NOT IN "
        "(SELECT passage_id FROM passages)",
        "vectors are of a wrong length": "SELECT count(*) FROM vectors WHERE length(vector) <> "
        f"{0 if known is None else 4 * known[1]:d}",
        "documents miss passages": "SELECT count(*) FROM documents AS d WHERE d.passages <> "
        "(SELECT count(*) FROM passages AS p WHERE p.document_id = d.document_id)",
    }
    counts = {problem: connection.execute(query).fetchone()[0] for problem, query in queries.items()}
    return [f"{count} {problem}" for problem, count in counts.items() if count]


def _check_offsets(connection: sqlite3.Connection) -> list[str]:
    problems = []
    sample = connection.execute(
        f"SELECT document_id, doc_id, text FROM documents ORDER BY random() LIMIT {OFFSET_SAMPLE:d}"
    )
    for document_id, doc_id, text in sample:
        for ordinal, start, end, passage in connection.execute(
            "SELECT ordinal, start, end, text FROM passages WHERE document_id = ?", (document_id,)
        ):
            if text[start:end] != passage:
                problems.append(f"passage {ordinal} of document {doc_id!r} is not the document's text at its offsets")
    return problems
