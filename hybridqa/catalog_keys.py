"""The catalog's keys: who may ask a served store for what.

Knows nothing about HTTP. Invariant: a token is never written, only its hash, and a key that is removed is refused from
then on by every process.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace

from hybridqa import catalog_rows as rows
from hybridqa.catalog_database import Database
from hybridqa.errors import NotFoundError
from hybridqa.keys import Key, Role

_KEY = "SELECT key_id, name, digest, role, collections, per_minute, at_once, created_at FROM keys "


class KeyTable:
    """Keys; a part of `Catalog`."""

    _database: Database

    def add_key(self, key: Key) -> Key:
        """Keeps a new key, and gives it back with its time."""
        key = replace(key, created_at=rows.now())
        chosen = None if key.collections is None else json.dumps(key.collections)
        values = (key.key_id, key.name, key.digest, str(key.role), chosen, key.per_minute, key.at_once, key.created_at)
        with self._database.write() as connection:
            connection.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        return key

    def find_key(self, key_id: str) -> Key | None:
        """A key by its id."""
        with self._database.read() as connection:
            row = connection.execute(_KEY + "WHERE key_id = ?", (key_id,)).fetchone()
        return None if row is None else _key(row)

    def list_keys(self) -> list[Key]:
        """All keys, oldest first."""
        with self._database.read() as connection:
            return [_key(row) for row in connection.execute(_KEY + "ORDER BY created_at, key_id")]

    def has_keys(self) -> bool:
        """Whether there is any."""
        with self._database.read() as connection:
            return connection.execute("SELECT 1 FROM keys LIMIT 1").fetchone() is not None

    def remove_key(self, key_id: str) -> None:
        """Removes a key. Raises `NotFoundError`."""
        with self._database.write() as connection:
            if connection.execute("DELETE FROM keys WHERE key_id = ?", (key_id,)).rowcount == 0:
                raise NotFoundError(f"there is no key {key_id!r}; `hybridqa keys` lists them.")


def _key(row: sqlite3.Row | tuple[object, ...]) -> Key:
    key_id, name, digest, role, chosen, per_minute, at_once, created_at = row
    collections = None if chosen is None else tuple(json.loads(str(chosen)))
    return Key(
        str(key_id),
        str(name),
        str(digest),
        Role(str(role)),
        collections,
        per_minute,  # type: ignore[arg-type]  # a whole number or NULL: only `add_key` writes it
        at_once,  # type: ignore[arg-type]
        str(created_at),
    )
