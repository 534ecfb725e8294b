"""The catalog's note of folders that may be deleted once nobody reads them.

Knows nothing about what is in a folder. Invariant: a path below the module store is kept relative to it, so that
a store can be moved; a folder is forgotten only when whoever deleted it says so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from hybridqa.catalog_database import Database


class GarbageTable:
    """Folders to delete, and how paths are kept; a part of `Catalog`."""

    _database: Database
    _module_dir: Path | None

    def add_garbage(self, paths: Iterable[Path]) -> None:
        """Notes folders to delete once no engine may read them again."""
        with self._database.write() as connection:
            self._add_garbage(connection, paths)

    def list_garbage(self) -> list[Path]:
        """The folders noted, sorted."""
        with self._database.read() as connection:
            return [self._to_path(row[0]) for row in connection.execute("SELECT path FROM garbage ORDER BY path")]

    def drop_garbage(self, paths: Iterable[Path]) -> None:
        """Forgets folders that have been deleted."""
        with self._database.write() as connection:
            connection.executemany("DELETE FROM garbage WHERE path = ?", [(self._to_stored(path),) for path in paths])

    def _add_garbage(self, connection: sqlite3.Connection, paths: Iterable[Path]) -> None:
        connection.executemany(
            "INSERT OR IGNORE INTO garbage (path) VALUES (?)", [(self._to_stored(path),) for path in paths]
        )

    def _to_stored(self, path: Path) -> str:
        """Relative to the module folder where it lies in it, so that a store can be moved."""
        if self._module_dir is not None and path.is_absolute() and path.is_relative_to(self._module_dir):
            return path.relative_to(self._module_dir).as_posix()
        return path.as_posix()

    def _to_path(self, stored: str) -> Path:
        return Path(stored) if self._module_dir is None else self._module_dir / stored
