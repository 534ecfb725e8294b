"""The catalog's rows about modules.

Knows nothing about what is in a module's folder. Invariant: at most one version of a module is current, it has passed
its gate, a module's name is never given twice, all its versions are of one kind, a document's module covers documents
that are there, and a collection has at most one current extractor for each base model.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace

from hybridqa import catalog_rows as rows
from hybridqa.catalog_documents import (
    bump_generation,
    delete_passages,
    require_collection,
    require_document,
)
from hybridqa.catalog_garbage import GarbageTable
from hybridqa.catalog_schema import drop_full_text
from hybridqa.errors import InputError, ModuleNotFoundInStoreError, StoreError
from hybridqa.types import Module, ModuleKind, ModuleStatus

_MODULE = (
    "SELECT m.module_id, m.version, c.name, m.path, (SELECT json_group_object(d.doc_id, md.content_hash) "
    "FROM module_documents AS md JOIN documents AS d USING (document_id) WHERE md.module_row = m.module_row), "
    "m.base_model_hash, m.rank, m.status, m.current, m.created_at, m.metrics, m.kind "
    "FROM modules AS m JOIN collections AS c USING (collection_id) "
)
_ORDER = "ORDER BY c.name, m.module_id, m.version"


class ModuleTable(GarbageTable):
    """Modules and their versions; a part of `Catalog`."""

    def next_module_version(self, collection: str, module_id: str) -> int:
        """Reserves the module's next version: every call gives a new one, whatever has been removed meanwhile."""
        with self._database.write() as connection:
            require_collection(connection, collection)
            row = connection.execute(
                "INSERT INTO module_versions (module_id, last) VALUES (?, 1) "
                "ON CONFLICT (module_id) DO UPDATE SET last = last + 1 RETURNING last",
                (rows.storable(module_id, "the module id"),),
            ).fetchone()
        return int(row[0])

    def add_module(self, module: Module) -> Module:
        """Adds the row of one version, out of service until `set_current`.

        Raises `DocumentNotFoundError` when it covers a document that has been removed meanwhile, `InputError` when the
        id belongs to a module of another kind, `StoreError` when the version is there already.
        """
        if module.version < 1 or (module.kind is ModuleKind.DOCUMENT and not module.documents):
            raise InputError(
                f"module {module.name!r} is not usable: expected a version from 1 and, for a document's module, a "
                "document or more."
            )
        metrics = rows.to_json(module.metrics, f"metrics of module {module.name!r}")
        created_at = module.created_at or rows.now()
        with self._database.write() as connection:
            collection_id = require_collection(connection, module.collection)
            covered = [
                (require_document(connection, module.collection, doc_id)[1], content_hash)
                for doc_id, content_hash in module.documents.items()
            ]
            other = connection.execute(
                "SELECT kind FROM modules WHERE collection_id = ? AND module_id = ? AND kind <> ?",
                (collection_id, module.module_id, str(module.kind)),
            ).fetchone()
            if other is not None:
                raise InputError(
                    f"module {module.module_id!r} of collection {module.collection!r} is of kind {other[0]!r}; "
                    f"expected {str(module.kind)!r}, as all its versions are of one kind. Choose another id."
                )
            known = connection.execute(
                "SELECT 1 FROM modules WHERE module_id = ? AND version = ?", (module.module_id, module.version)
            ).fetchone()
            if known is not None:
                raise StoreError(
                    f"module {module.name!r} is in the registry already and never changes; "
                    "publish under the number that `next_module_version` gives."
                )
            module_row = connection.execute(
                "INSERT INTO modules (collection_id, module_id, version, path, base_model_hash, rank, status, "
                "created_at, metrics, kind) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    collection_id,
                    module.module_id,
                    module.version,
                    self._to_stored(module.path),
                    module.base_model_hash,
                    module.rank,
                    str(module.status),
                    created_at,
                    metrics,
                    str(module.kind),
                ),
            ).lastrowid
            connection.executemany(
                "INSERT INTO module_documents (module_row, document_id, content_hash) VALUES (?, ?, ?)",
                [(module_row, document_id, content_hash) for document_id, content_hash in covered],
            )
            connection.execute(
                "INSERT INTO module_versions (module_id, last) VALUES (?, ?) "
                "ON CONFLICT (module_id) DO UPDATE SET last = max(last, excluded.last)",
                (module.module_id, module.version),
            )
        return replace(module, current=False, created_at=created_at)

    def list_modules(self, collection: str | None = None, *, current_only: bool = False) -> list[Module]:
        """The versions of one collection's modules or of all, by name and version. Raises `CollectionNotFoundError`."""
        where, parameters = ["1 = 1"], list[object]()
        with self._database.read() as connection:
            if collection is not None:
                where.append("m.collection_id = ?")
                parameters.append(require_collection(connection, collection))
            if current_only:
                where.append("m.current = 1")
            return self._modules(connection, f"WHERE {' AND '.join(where)} {_ORDER}", parameters)

    def get_module(self, collection: str, module_id: str, version: int | None = None) -> Module:
        """One version, or the current one. Raises `ModuleNotFoundInStoreError`."""
        with self._database.read() as connection:
            found = self._modules(
                connection,
                "WHERE c.name = ? AND m.module_id = ? AND CASE WHEN ?3 IS NULL THEN m.current ELSE m.version = ?3 END",
                (collection, module_id, version),
            )
        if not found:
            raise _not_found(collection, module_id, _with(version))
        return found[0]

    def set_current(self, collection: str, module_id: str, version: int | None) -> None:
        """Puts one version into service in place of any other; None takes the module out of service.

        An extractor also takes the place of any other of its collection and base model.
        Raises `ModuleNotFoundInStoreError`, and `InputError` for a version that its gate has rejected.
        """
        with self._database.write() as connection:
            found = self._modules(connection, "WHERE c.name = ? AND m.module_id = ?", (collection, module_id))
            chosen = [module for module in found if module.version == version]
            if not found or (version is not None and not chosen):
                raise _not_found(collection, module_id, _with(version))
            if chosen and chosen[0].status is not ModuleStatus.PUBLISHED:
                raise InputError(
                    f"module {chosen[0].name!r} was rejected by its gate and cannot answer; choose a published "
                    "version: `hybridqa modules` lists them."
                )
            collection_id = require_collection(connection, collection)  # another's may have a module of this id
            connection.execute(
                "UPDATE modules SET current = 0 WHERE collection_id = ? AND module_id = ? AND current = 1",
                (collection_id, module_id),
            )
            if chosen and chosen[0].kind is ModuleKind.EXTRACTOR:
                connection.execute(
                    "UPDATE modules SET current = 0 WHERE collection_id = ? AND base_model_hash = ? AND current = 1 "
                    "AND kind = 'extractor'",
                    (collection_id, chosen[0].base_model_hash),
                )
            connection.execute(
                "UPDATE modules SET current = 1 WHERE collection_id = ? AND module_id = ? AND version = ?",
                (collection_id, module_id, version),
            )

    def find_extractor(self, collection: str, base_model_hash: str) -> Module | None:
        """The current extractor of a collection for a base model."""
        with self._database.read() as connection:
            found = self._modules(
                connection,
                "WHERE c.name = ? AND m.base_model_hash = ? AND m.current = 1 AND m.kind = 'extractor'",
                (collection, base_model_hash),
            )
        return found[0] if found else None

    def modules_for_documents(self, collection: str, doc_ids: Sequence[str]) -> list[Module]:
        """The current, published modules of any of the documents; whether they are fresh is the caller's look.

        A module is fresh when each hash in `module.documents` equals `document_hashes`.
        """
        found: dict[str, Module] = {}
        with self._database.read() as connection:
            for batch in rows.batches(list(doc_ids)):
                for module in self._modules(
                    connection,
                    "WHERE m.module_row IN (SELECT md.module_row FROM collections AS c2 JOIN documents AS d2 USING "
                    "(collection_id) JOIN module_documents AS md USING (document_id) WHERE c2.name = ? "
                    "AND d2.doc_id IN (SELECT value FROM json_each(?))) AND m.current = 1 AND m.status = 'published' "
                    f"AND m.kind = 'document' {_ORDER}",
                    (collection, json.dumps(batch)),
                ):
                    found[module.name] = module
        return list(found.values())

    def remove_module(self, collection: str, module_id: str, version: int) -> Module:
        """Removes one version's row and notes its folder as garbage. Raises `ModuleNotFoundInStoreError`."""
        with self._database.write() as connection:
            found = self._modules(
                connection, "WHERE c.name = ? AND m.module_id = ? AND m.version = ?", (collection, module_id, version)
            )
            if not found:
                raise _not_found(collection, module_id, _with(version))
            self._delete_modules(connection, found)
        return found[0]

    def remove_versions(self, collection: str, module_id: str) -> list[Module]:
        """Removes every version of a module as `remove_module` does. Raises `ModuleNotFoundInStoreError`."""
        with self._database.write() as connection:
            found = self._modules(connection, "WHERE c.name = ? AND m.module_id = ? " + _ORDER, (collection, module_id))
            if not found:
                raise _not_found(collection, module_id, "")
            self._delete_modules(connection, found)
        return found

    def remove_document(self, collection: str, doc_id: str) -> list[Module]:
        """Removes the document with its passages, vectors, full-text rows and every version of the modules covering it.

        Gives the removed module rows; their folders are in `list_garbage` from the same transaction on, so that a kill
        leaves none behind. Raises `CollectionNotFoundError`, `DocumentNotFoundError`.
        """
        with self._database.write() as connection:
            collection_id, document_id = require_document(connection, collection, doc_id)
            removed = self._modules(
                connection,
                "WHERE m.module_row IN (SELECT module_row FROM module_documents WHERE document_id = ?) " + _ORDER,
                (document_id,),
            )
            self._delete_modules(connection, removed)
            delete_passages(connection, collection_id, document_id)
            connection.execute("DELETE FROM documents WHERE document_id = ?", (document_id,))
            bump_generation(connection)
        return removed

    def remove_collection(self, name: str) -> list[Module]:
        """Removes the collection with all in it; gives the removed modules as `remove_document` does."""
        with self._database.write() as connection:
            collection_id = require_collection(connection, name)
            removed = self._modules(connection, "WHERE m.collection_id = ? " + _ORDER, (collection_id,))
            self._delete_modules(connection, removed)
            drop_full_text(connection, collection_id)
            connection.execute("DELETE FROM documents WHERE collection_id = ?", (collection_id,))
            connection.execute("DELETE FROM collections WHERE collection_id = ?", (collection_id,))
            bump_generation(connection)
        return removed

    def _modules(self, connection: sqlite3.Connection, where: str, parameters: Sequence[object]) -> list[Module]:
        return [
            Module(
                module_id=row[0],
                version=row[1],
                collection=row[2],
                path=self._to_path(row[3]),
                documents=json.loads(row[4]),
                base_model_hash=row[5],
                rank=row[6],
                status=ModuleStatus(row[7]),
                current=bool(row[8]),
                created_at=row[9],
                metrics=json.loads(row[10]),
                kind=ModuleKind(row[11]),
            )
            for row in connection.execute(_MODULE + where, parameters)
        ]

    def _delete_modules(self, connection: sqlite3.Connection, modules: Sequence[Module]) -> None:
        connection.executemany(
            "DELETE FROM modules WHERE module_id = ? AND version = ?", [(m.module_id, m.version) for m in modules]
        )
        self._add_garbage(connection, [module.path for module in modules])


def _not_found(collection: str, module_id: str, which: str) -> ModuleNotFoundInStoreError:
    return ModuleNotFoundInStoreError(
        f"collection {collection!r} has no module {module_id!r}{which}; `hybridqa modules` lists those there are."
    )


def _with(version: int | None) -> str:
    return " with a current version" if version is None else f" with a version {version}"
