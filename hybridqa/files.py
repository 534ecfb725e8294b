"""Files that are either whole or not there: temp file, fsync, rename.

Knows nothing about what the bytes mean. Invariant: whoever opens a path written here, at any moment and after any
kill or power cut, finds the old content or the new one, never a part.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hybridqa.errors import StorageFullError, StoreError

TEMP_SUFFIX = ".tmp"  # a name `.….tmp` is an unfinished write; whoever owns the folder may sweep it
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NAME_BYTES = 160  # of the final name kept in the temporary one: file systems stop at 255


def storage_full(path: Path) -> StorageFullError:
    """The error that says that nothing more can be written at `path`."""
    error = StorageFullError(
        f"no space left to write {str(path)!r}; free some space or move the store, then repeat the command "
        "(what was there before is untouched)."
    )
    error.errno = errno.ENOSPC
    return error


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turns a full disk or quota inside the block into `StorageFullError` naming `path`."""
    try:
        yield
    except StorageFullError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise storage_full(path) from error
        raise


@contextmanager
def unusable_folder_named(other: str = "another store with --store") -> Iterator[None]:
    """Turns other refusals of the file system inside the block into `StoreError` naming the path, and what to name."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise storage_full(Path(str(error.filename))) from error
        raise StoreError(
            f"{str(error.filename)!r} cannot be used: {error.strerror}; expected a folder to read and write in. Check "
            f"the path and its permissions, or name {other}."
        ) from error


def is_writable(folder: Path) -> bool:
    """Whether this user may make files in the folder, which is there."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def make_folder(path: Path, other: str = "another store with --store") -> None:
    """Makes a folder to work in, if it is not there. Raises `StoreError` where it cannot be made or written in."""
    with unusable_folder_named(other):
        path.mkdir(parents=True, exist_ok=True)
        if not is_writable(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def fsync_dir(path: Path) -> None:
    """Makes the folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to write that replaces the one at `path` when the block succeeds; its folder must exist.

    Raises `StorageFullError`.
    """
    temporary = _temporary_beside(path)
    with full_disk_named(path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        fsync_dir(path.parent)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replaces the file at `path`, whole or not at all; its folder must exist. Raises `StorageFullError`."""
    with atomic_file(path) as file:
        file.write(data)


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write_bytes` in UTF-8."""
    atomic_write_bytes(path, text.encode("utf-8"))


@contextmanager
def atomic_dir(final: Path) -> Iterator[Path]:
    """Yields an empty folder beside `final` that takes its name when the block succeeds and vanishes when it fails.

    Raises `FileExistsError` when `final` is there already (a folder once published never changes), `StorageFullError`.
    """
    if final.exists():
        raise FileExistsError(errno.EEXIST, "a finished folder is never overwritten", str(final))
    temporary = _temporary_beside(final)
    with full_disk_named(final):
        temporary.mkdir()
        try:
            yield temporary
            fsync_tree(temporary)
            try:
                temporary.rename(final)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
                    raise FileExistsError(errno.EEXIST, "another writer was first", str(final)) from error
                raise
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_dir(final.parent)


def sha256_file(path: Path) -> str:
    """The file's sha256 in hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary_beside(path: Path) -> Path:
    """A fresh hidden name in the same folder, hence on the same file system."""
    stem = path.name.encode("utf-8", "surrogateescape")[:_NAME_BYTES].decode("utf-8", "ignore")
    return path.parent / f".{stem}.{os.getpid()}-{secrets.token_hex(4)}{TEMP_SUFFIX}"


def fsync_tree(folder: Path) -> None:
    """Makes every file below `folder`, and the entries of its folders, durable."""
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory, name)
            if path.is_symlink():
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_dir(Path(directory))
