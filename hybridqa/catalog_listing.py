"""The catalog's documents without their texts: lists, pages of lists, hashes.

Knows nothing about passages. Invariant: what is listed of a collection is of it alone, in the order of ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from hybridqa import catalog_rows as rows
from hybridqa.catalog_database import Database
from hybridqa.catalog_documents import require_collection
from hybridqa.catalog_rows import DocumentSummary

_SUMMARY = (
    "SELECT d.doc_id, c.name, d.title, d.content_hash, d.characters, d.passages, d.updated_at, d.source "
    "FROM documents AS d JOIN collections AS c USING (collection_id) "
)
_IN_ORDER = "ORDER BY c.name, d.doc_id"


class ListingTable:
    """Documents without their texts; a part of `Catalog`."""

    _database: Database

    def list_documents(
        self, collection: str | None = None, *, after: str | None = None, limit: int = -1
    ) -> list[DocumentSummary]:
        """The documents of one collection or of all, by collection and id. Raises `CollectionNotFoundError`.

        Of one collection, those whose ids come `after` one, and so many at most (-1: all).
        """
        with self._database.read() as connection:
            if collection is None:
                found = connection.execute(_SUMMARY + _IN_ORDER).fetchall()
            else:
                parameters = (require_collection(connection, collection), after or "", limit)
                where = f"WHERE d.collection_id = ? AND d.doc_id > ? {_IN_ORDER} LIMIT ?"
                found = connection.execute(_SUMMARY + where, parameters).fetchall()
        return [DocumentSummary(*row) for row in found]

    def document_summaries(self, collection: str, doc_ids: Sequence[str]) -> list[DocumentSummary]:
        """Those of the documents that are there, by id. Raises `CollectionNotFoundError`."""
        found: list[DocumentSummary] = []
        where = f"WHERE d.collection_id = ? AND d.doc_id IN (SELECT value FROM json_each(?)) {_IN_ORDER}"
        with self._database.read() as connection:
            collection_id = require_collection(connection, collection)
            for batch in rows.batches(list(doc_ids)):
                rows_found = connection.execute(_SUMMARY + where, (collection_id, json.dumps(batch)))
                found.extend(DocumentSummary(*row) for row in rows_found)
        return found

    def document_hashes(self, collection: str, doc_ids: Sequence[str]) -> dict[str, str]:
        """The content hashes of those of the documents that are there."""
        hashes: dict[str, str] = {}
        with self._database.read() as connection:
            for batch in rows.batches(list(doc_ids)):
                hashes.update(
                    connection.execute(
                        "SELECT d.doc_id, d.content_hash FROM collections AS c JOIN documents AS d USING "
                        "(collection_id) WHERE c.name = ? AND d.doc_id IN (SELECT value FROM json_each(?))",
                        (collection, json.dumps(batch)),
                    )
                )
        return hashes
