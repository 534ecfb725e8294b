"""One SQLite file shared by threads and processes: connections, transactions, and SQLite's errors in our words.

Knows nothing about what the tables hold. Invariant: a connection is used by one thread at a time, a write transaction
is whole or undone, and no `sqlite3.Error` leaves this file.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from hybridqa.catalog_schema import prepare, restoring
from hybridqa.errors import CorruptStoreError, InputError, StoreError, StoreNotFoundError
from hybridqa.files import storage_full, unusable_folder_named

BUSY_SECONDS = 30.0


class Database:
    """A pool of connections to one database file; safe to share between threads, not across a fork."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = Lock()
        self._closed = False

    @classmethod
    @unusable_folder_named()
    def open(cls, path: Path, *, create: bool) -> Database:
        """Opens the file, or makes it. Raises `StoreNotFoundError`, `CorruptStoreError`, `StorageFullError`."""
        path = path.absolute()
        if not path.is_file():
            if path.exists():
                raise StoreNotFoundError(f"{str(path)!r} is no file; expected a catalog or nothing there.")
            if not create:
                raise StoreNotFoundError(f"there is no catalog at {str(path)!r}; run `hybridqa init` to make one.")
            path.parent.mkdir(parents=True, exist_ok=True)
        database = cls(path)
        with database.translated():
            connection = database._connect()
            try:
                prepare(connection, path, create=create)
            except BaseException:
                connection.close()
                raise
        database._idle.append(connection)
        return database

    def close(self) -> None:
        """Closes the idle connections; those in use close when they are given back. A second call does nothing."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection whose statements all see one state of the store."""
        with self.translated(), self._connection() as connection, _transaction(connection, "BEGIN"):
            yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A connection inside a write transaction: committed and durable when the block ends, undone when it raises."""
        with self.translated(), self._connection() as connection, _transaction(connection, "BEGIN IMMEDIATE"):
            yield connection

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection in autocommit, for work that brings its own transactions."""
        with self.translated(), self._connection() as connection:
            yield connection

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns SQLite's errors inside the block into ours, and those about values that it cannot hold."""
        try:
            yield
        except UnicodeEncodeError as error:
            raise InputError(
                f"{error.object[:80]!r} has the lone surrogate {error.object[error.start]!r}; expected valid Unicode."
            ) from error
        except OverflowError as error:
            raise InputError(f"a number is too large for the catalog ({error}); expected one below 2**63.") from error
        except sqlite3.Error as error:
            raise self._error(error) from error

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._closed:
                raise StoreError(f"the catalog {str(self.path)!r} has been closed; open it again.")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        try:
            yield connection
        finally:
            with self._lock:
                keep = not self._closed and not connection.in_transaction  # an open one would lock out everybody
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _write_ahead(connection)
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")  # a document reported as added survives a power cut
            connection.execute("PRAGMA secure_delete = ON")  # a removed text leaves no copy in free pages
        except BaseException:
            connection.close()
            raise
        return connection

    def _error(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        name = str(self.path)
        if code == sqlite3.SQLITE_FULL:
            return storage_full(self.path)
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return CorruptStoreError(f"{name!r} is damaged ({error}); expected a catalog. {restoring(self.path)}.")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreError(
                f"{name!r} has been locked by another writer for more than {BUSY_SECONDS:.0f} s; "
                "wait for it to end, then repeat the command."
            )
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            return StoreError(f"{name!r} cannot be opened or written ({error}); check the permissions of its folder.")
        return StoreError(f"{name!r} failed: {error}; run `hybridqa doctor`.")


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    try:
        connection.execute(begin)  # inside: a Ctrl-C during the busy wait is raised just when BEGIN has succeeded
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has rolled back by itself after some errors
            connection.execute("ROLLBACK")
        raise


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Readers and the one writer do not wait for each other; SQLite's own busy wait does not cover this change."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)
