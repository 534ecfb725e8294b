"""The catalog's full-text search: FTS5 with BM25, one index per collection.

Knows nothing about how a question becomes a query. Invariant: a search in one collection reads that collection's index
and no other.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Sequence

from hybridqa.catalog_database import Database
from hybridqa.catalog_documents import require_collection
from hybridqa.catalog_filter import passing_documents
from hybridqa.catalog_rows import storable
from hybridqa.catalog_schema import fts_table
from hybridqa.errors import InputError
from hybridqa.types import Filter

log = logging.getLogger(__name__)
VACUUM_COPIES = 2
COLUMN_WEIGHTS = "3.0, 3.0, 1.0"  # of title, heading and text: a question's words count more in the first two


class FullTextTable:
    """Full-text rows of passages; a part of `Catalog`."""

    _database: Database

    def search_lexical(
        self, collection: str, match_query: str, k: int, chosen: Filter | None = None
    ) -> list[tuple[int, float]]:
        """The `k` passages of the collection that fit an FTS5 query best: (passage id, BM25; higher is better).

        With a filter, the best of those whose documents pass; what words are worth is counted over all.
        Raises `CollectionNotFoundError`, and `InputError` when the query is no FTS5 query.
        """
        storable(match_query, "the query")
        with self._database.read() as connection:
            collection_id = require_collection(connection, collection)
            table = fts_table(collection_id)
            if k <= 0:
                return []
            query = f"SELECT rowid, -rank FROM {table} WHERE {table} MATCH ? AND rank MATCH 'bm25({COLUMN_WEIGHTS})'"
            try:
                if chosen is None or chosen.is_open:
                    found = connection.execute(f"{query} ORDER BY rank LIMIT ?", (match_query, k)).fetchall()
                else:
                    with passing_documents(connection, collection_id, chosen) as (sql, values):
                        # asked of each passage that matches; the documents that pass are listed once
                        query += f" AND (SELECT document_id FROM passages WHERE passage_id = {table}.rowid) IN ({sql})"
                        parameters = (match_query, *values, k)
                        found = connection.execute(f"{query} ORDER BY rank LIMIT ?", parameters).fetchall()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                    raise
                raise InputError(
                    f"{match_query!r} is no FTS5 query ({error}); expected quoted words joined by OR."
                ) from error
        return [(int(passage_id), float(score)) for passage_id, score in found]

    def count_matches(self, collection: str, match_queries: Sequence[str], most: int) -> list[int]:
        """How many passages of the collection fit each FTS5 query, counted up to `most`.

        Raises `CollectionNotFoundError`.
        """
        with self._database.read() as connection:
            table = fts_table(require_collection(connection, collection))
            count = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {table} MATCH ? LIMIT ?)"
            return [
                int(connection.execute(count, (storable(query, "the query"), most)).fetchone()[0])
                for query in match_queries
            ]

    def check_full_text(self) -> list[str]:
        """What `rebuild_full_text` would mend, one line each. Takes the write lock: the check is an INSERT.

        Raises `CorruptStoreError`, and `StoreError` where nothing may be written or another process writes for long.
        """
        problems = []
        with self._database.write() as connection:
            for collection_id, name in connection.execute("SELECT collection_id, name FROM collections").fetchall():
                table = fts_table(collection_id)
                try:
                    connection.execute(f"INSERT INTO {table} ({table}, rank) VALUES ('integrity-check', 1)")
                except sqlite3.DatabaseError as error:
                    problems.append(f"the full-text index of collection {name!r} does not fit its passages: {error}")
        return problems

    def rebuild_full_text(self) -> None:
        """Makes every full-text index anew from the passages: the mending for what `check` finds in them."""
        with self._database.write() as connection:
            for (collection_id,) in connection.execute("SELECT collection_id FROM collections").fetchall():
                table = fts_table(collection_id)
                connection.execute(f"INSERT INTO {table} ({table}) VALUES ('rebuild')")

    def compact(self) -> None:
        """Gives free space back and erases the words of removed documents from the full-text indexes.

        A removal itself overwrites texts, passages and vectors; FTS5 keeps bare words until it merges its segments.
        Raises `StoreError`, `StorageFullError`; what was removed stays removed.
        """
        try:
            with self._database.write() as connection:
                for (collection_id,) in connection.execute("SELECT collection_id FROM collections").fetchall():
                    table = fts_table(collection_id)
                    connection.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")
            path = self._database.path
            # VACUUM writes the whole database twice: to a temporary file, and from there to the log
            if shutil.disk_usage(path.parent).free < VACUUM_COPIES * path.stat().st_size:
                log.warning("%s was not made smaller: its disk has too little room for that", path)
                return
            with self._database.connection() as connection:
                connection.execute("VACUUM")
        finally:  # the log holds what was removed until it is emptied, whatever has become of the rest
            with self._database.connection() as connection:
                if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 1:
                    log.warning("%s-wal could not be emptied: another process is reading", self._database.path)
