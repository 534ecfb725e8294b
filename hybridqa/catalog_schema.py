"""The catalog's tables, and the one place that makes them.

Knows nothing about documents' meaning. Invariant: a database file has no schema at all or a whole one (it is made, and
brought up to date, in one transaction), and a schema newer than this code is refused before anything is read or
written.

Each collection has a full-text table of its own (`fts_<id>` over the view `fts_source_<id>`), so that neither the
search nor the word statistics behind BM25 of one collection ever see another's texts.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from hybridqa.errors import CorruptStoreError, StoreError, StoreNotFoundError

SCHEMA_VERSION = 3
TOKENIZER = "porter unicode61 remove_diacritics 2"

_KIND = "kind TEXT NOT NULL DEFAULT 'document'"
_ONE_EXTRACTOR = (
    "CREATE UNIQUE INDEX one_current_extractor ON modules (collection_id, base_model_hash) "
    "WHERE current = 1 AND kind = 'extractor'"
)
_KEYS = (  # of a served store; collections: JSON, or NULL for all
    "CREATE TABLE keys (key_id TEXT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, role TEXT NOT NULL, "
    "collections TEXT, per_minute INTEGER, at_once INTEGER, created_at TEXT NOT NULL) WITHOUT ROWID"
)
_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE collections (collection_id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, "
    "created_at TEXT NOT NULL)",
    # text comes last: a row is read without its overflow pages as long as nobody asks for the text
    "CREATE TABLE documents (document_id INTEGER PRIMARY KEY AUTOINCREMENT, "
    "collection_id INTEGER NOT NULL REFERENCES collections, doc_id TEXT NOT NULL, title TEXT NOT NULL, "
    "content_hash TEXT NOT NULL, source TEXT, media_type TEXT NOT NULL, metadata TEXT NOT NULL, "
    "added_at TEXT NOT NULL, updated_at TEXT NOT NULL, characters INTEGER NOT NULL, passages INTEGER NOT NULL, "
    "text TEXT NOT NULL, UNIQUE (collection_id, doc_id))",
    # AUTOINCREMENT: an id is never given twice, so a stale index can miss a passage but never name a wrong one
    "CREATE TABLE passages (passage_id INTEGER PRIMARY KEY AUTOINCREMENT, "
    "document_id INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE, ordinal INTEGER NOT NULL, "
    "start INTEGER NOT NULL, end INTEGER NOT NULL, heading TEXT NOT NULL, text TEXT NOT NULL, "
    "UNIQUE (document_id, ordinal))",
    "CREATE TABLE vectors (passage_id INTEGER PRIMARY KEY REFERENCES passages ON DELETE CASCADE, "
    "vector BLOB NOT NULL)",  # float32, little-endian
    "CREATE TABLE modules (module_row INTEGER PRIMARY KEY, collection_id INTEGER NOT NULL REFERENCES collections, "
    "module_id TEXT NOT NULL, version INTEGER NOT NULL, path TEXT NOT NULL, base_model_hash TEXT NOT NULL, "
    "rank INTEGER NOT NULL, status TEXT NOT NULL, current INTEGER NOT NULL DEFAULT 0, created_at TEXT NOT NULL, "
    f"metrics TEXT NOT NULL, {_KIND}, UNIQUE (module_id, version))",
    "CREATE INDEX modules_by_collection ON modules (collection_id, module_id)",
    "CREATE UNIQUE INDEX one_current_version ON modules (collection_id, module_id) WHERE current = 1",
    _ONE_EXTRACTOR,
    "CREATE TABLE module_documents (module_row INTEGER NOT NULL REFERENCES modules ON DELETE CASCADE, "
    "document_id INTEGER NOT NULL REFERENCES documents, content_hash TEXT NOT NULL, "
    "PRIMARY KEY (module_row, document_id)) WITHOUT ROWID",
    "CREATE INDEX modules_by_document ON module_documents (document_id)",
    # outlives modules and collections: a module's name is never given twice
    "CREATE TABLE module_versions (module_id TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE garbage (path TEXT PRIMARY KEY) WITHOUT ROWID",
    _KEYS,
)
_UPGRADES = {  # from each older version to the next
    1: (f"ALTER TABLE modules ADD COLUMN {_KIND}", _ONE_EXTRACTOR),  # modules that are not of a document
    2: (_KEYS,),
}


def fts_table(collection_id: int) -> str:
    """The name of a collection's full-text table."""
    return f"fts_{collection_id:d}"


def fts_source(collection_id: int) -> str:
    """The name of the view that the full-text table indexes."""
    return f"fts_source_{collection_id:d}"


def restoring(path: Path) -> str:
    """How to put another file in the place of the catalog at `path`."""
    return (
        f"With no process using the store, move {path.name!r} away from {str(path.parent)!r} together with "
        f"'{path.name}-wal' and '{path.name}-shm' where they are there (a log left behind would be played into the "
        "next file and damage it); then put a backup in its place, or run `hybridqa init` and add the documents again"
    )


def create_full_text(connection: sqlite3.Connection, collection_id: int) -> None:
    """Makes a collection's full-text table; the caller holds a write transaction."""
    table, source = fts_table(collection_id), fts_source(collection_id)
    connection.execute(
        f"CREATE VIEW {source} AS SELECT p.passage_id AS passage_id, p.document_id AS document_id, d.title AS title, "
        "p.heading AS heading, p.text AS text FROM passages AS p JOIN documents AS d USING (document_id) "
        f"WHERE d.collection_id = {collection_id:d}"
    )
    connection.execute(
        f"CREATE VIRTUAL TABLE {table} USING fts5(title, heading, text, content='{source}', "
        f"content_rowid='passage_id', tokenize='{TOKENIZER}')"
    )


def drop_full_text(connection: sqlite3.Connection, collection_id: int) -> None:
    """Drops a collection's full-text table; the caller holds a write transaction."""
    connection.execute(f"DROP TABLE {fts_table(collection_id)}")
    connection.execute(f"DROP VIEW {fts_source(collection_id)}")


def prepare(connection: sqlite3.Connection, path: Path, *, create: bool) -> None:
    """Checks the schema of an opened database; makes it when there is none and `create` says so; upgrades an old one.

    Raises `StoreNotFoundError`, `CorruptStoreError`, and `StoreError` for a newer schema or an old one that cannot be
    upgraded because nothing may be written.
    """
    tables = _table_names(connection)
    if not tables and create:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not _table_names(connection):  # nobody was faster
                for statement in _TABLES:
                    connection.execute(statement)
                connection.executemany(
                    "INSERT INTO meta (key, value) VALUES (?, ?)",
                    [("schema_version", SCHEMA_VERSION), ("generation", 0)],
                )
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        tables = _table_names(connection)
    if not tables:
        raise StoreNotFoundError(f"{str(path)!r} holds no catalog yet; run `hybridqa init` to make one.")
    version = _version(connection) if "meta" in tables else None
    if version is None:
        raise CorruptStoreError(
            f"{str(path)!r} is a database but no hybridqa catalog; expected one made by `hybridqa init`. "
            f"Check the store's path. {restoring(path)}."
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{str(path)!r} has schema {version}, newer than the {SCHEMA_VERSION} that this hybridqa knows; "
            "upgrade with `pip install -U hybridqa`."
        )
    if version < SCHEMA_VERSION:
        _upgrade(connection, path, version)


def _version(connection: sqlite3.Connection) -> int | None:
    row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    return row[0] if row is not None and isinstance(row[0], int) and row[0] >= 1 else None


def _upgrade(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Brings an older schema up to date, wholly or not at all."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        for known in range(_version(connection) or version, SCHEMA_VERSION):  # another process may have been faster
            for statement in _UPGRADES[known]:
                connection.execute(statement)
        connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (SCHEMA_VERSION,))
        connection.execute("COMMIT")
    except BaseException as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
            raise StoreError(
                f"{str(path)!r} has schema {version} of an older hybridqa and cannot be written ({error}); expected a "
                f"file that may be brought to schema {SCHEMA_VERSION} once, which loses nothing. Run `hybridqa ls` as "
                "a user who may write it; after that it can be read by others again."
            ) from error
        raise


def _table_names(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
