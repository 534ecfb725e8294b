"""Small things done to the folders of modules and stacks: hash once, remove at once, name a full disk.

Knows nothing about adapters. Invariant: a folder that is being removed is never found under its own name half empty.
"""

from __future__ import annotations

import errno
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hybridqa.files import TEMP_SUFFIX, full_disk_named, sha256_file, storage_full

_SETTLED_NS = 50_000_000  # a file changed later than this before it was hashed may change again within the clock's tick
_hashes: dict[Path, tuple[tuple[int, int, int, int], str]] = {}  # of this process; one operation on a dict is atomic


def known_sha256(path: Path) -> str:
    """The file's sha256, computed again only when its inode, size or a time of change has moved. Raises `OSError`."""
    stat = path.stat()
    seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    known = _hashes.get(path)
    if known is not None and known[0] == seen:
        return known[1]
    found = sha256_file(path)
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED_NS:
        _hashes[path] = (seen, found)
    return found


def remove_folder(folder: Path) -> None:
    """Takes the folder's name away, then its files; one that is not there is no error.

    Files that cannot be deleted stay under a temporary name: `leftovers` tells, `remove_unfinished` tries again.
    """
    doomed = folder.parent / f".{folder.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}"
    with suppress(FileNotFoundError):
        folder.rename(doomed)
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            doomed.unlink()


def remove_unfinished(final: Path) -> None:
    """Removes what a killed writer, or a killed removal, of `final` has left beside it; the caller keeps others out."""
    for path in final.parent.glob(f".{final.name}.*{TEMP_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def leftovers(final: Path) -> list[str]:
    """The names under which something of a removed folder is still there; a parent that cannot be read counts."""
    try:
        names = [path.name for path in final.parent.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError:
        return [final.name]
    start = f".{final.name}."
    return [name for name in names if name == final.name or (name.startswith(start) and name.endswith(TEMP_SUFFIX))]


def slug(text: str, length: int = 40) -> str:
    """The text as the start of a file name: lower-case ASCII letters, digits and dashes; may be empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].rstrip("-")


@contextmanager
def full_storage_named(path: Path) -> Iterator[None]:
    """Turns a full disk, a quota or a limit on file sizes inside the block into `StorageFullError` naming `path`."""
    try:
        with full_disk_named(path):
            yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise storage_full(path) from error
        raise
