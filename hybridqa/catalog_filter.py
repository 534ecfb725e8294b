"""Which of the catalog's documents and passages pass a `Filter`.

Knows nothing about vectors or ranking. Invariant: what a filter names reaches SQL as a value, never as text of it, and
is looked up in the collection that was asked for alone.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from hybridqa.catalog_database import Database
from hybridqa.catalog_documents import require_collection
from hybridqa.catalog_rows import Ids, storable
from hybridqa.filtering import document_test
from hybridqa.types import Filter

Clause = tuple[str, tuple[object, ...]]  # SQL and its values


@contextmanager
def passing_documents(connection: sqlite3.Connection, collection_id: int, chosen: Filter) -> Iterator[Clause]:
    """A SELECT of the row ids of the collection's documents that pass; it works inside the block."""
    sql = "SELECT document_id FROM documents WHERE collection_id = ?"
    values: tuple[object, ...] = (collection_id,)
    if chosen.doc_ids is not None:
        ids = json.dumps([storable(doc_id, "an id of the filter") for doc_id in chosen.doc_ids])
        sql += " AND doc_id IN (SELECT value FROM json_each(?))"
        values = (*values, ids)
    if chosen.metadata or chosen.since is not None or chosen.until is not None:
        sql += " AND passes(metadata, updated_at)"
    connection.create_function("passes", 2, document_test(chosen))
    try:
        yield sql, values
    finally:
        connection.create_function("passes", 2, None)


class FilterTable:
    """Filters over documents; a part of `Catalog`."""

    _database: Database

    def passing_ids(self, collection: str, chosen: Filter) -> Ids:
        """The ids of the collection's passages whose documents pass, ascending; int64.

        Raises `CollectionNotFoundError`.
        """
        with self._database.read() as connection:
            collection_id = require_collection(connection, collection)
            with passing_documents(connection, collection_id, chosen) as (sql, values):
                found = connection.execute(
                    f"SELECT passage_id FROM passages WHERE document_id IN ({sql})", values
                ).fetchall()
        return np.sort(np.fromiter((row[0] for row in found), dtype=np.int64, count=len(found)))

    def document_metadata(self, collection: str, doc_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The metadata of those of the documents that are in the collection. Raises `CollectionNotFoundError`."""
        with self._database.read() as connection:
            found = connection.execute(
                "SELECT doc_id, metadata FROM documents WHERE collection_id = ? "
                "AND doc_id IN (SELECT value FROM json_each(?))",
                (require_collection(connection, collection), json.dumps(list(doc_ids))),
            ).fetchall()
        return {str(doc_id): json.loads(metadata) for doc_id, metadata in found}

    def passing_doc_ids(self, collection: str, doc_ids: Sequence[str], chosen: Filter) -> set[str]:
        """Those of the documents that are in the collection and pass. Raises `CollectionNotFoundError`."""
        with self._database.read() as connection:
            collection_id = require_collection(connection, collection)
            with passing_documents(connection, collection_id, chosen) as (sql, values):
                found = connection.execute(
                    f"SELECT doc_id FROM documents WHERE document_id IN ({sql}) "
                    "AND doc_id IN (SELECT value FROM json_each(?))",
                    (*values, json.dumps(list(doc_ids))),
                ).fetchall()
        return {str(row[0]) for row in found}
