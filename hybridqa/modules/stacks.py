"""Composed stacks on disk: made once per set of modules and weights, shared by processes, bounded in size.

Knows nothing about engines or routing. Invariant: a folder that was handed out holds the bytes that its name stands for
and stays until the process that got it lets it go (`release`, `close`, or its end): the lease is a shared lock on the
folder, which the system drops when the process dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from hybridqa.engine.protocol import Adapter
from hybridqa.errors import RankLimitError
from hybridqa.files import TEMP_SUFFIX, atomic_dir, fsync_dir
from hybridqa.modules.adapter import CONFIG_FILE, WEIGHTS_FILE
from hybridqa.modules.folders import full_storage_named, known_sha256, remove_folder, remove_unfinished
from hybridqa.modules.stack_parts import RECORD_FILE, StackPart, parts_of, read_record, stack_name, write_stack
from hybridqa.types import Module, ModuleChoice

log = logging.getLogger(__name__)
DOOMED_FILE = "doomed"  # in a stack that holds a removed module: to be deleted as soon as nobody holds it
LOCKS = ".locks"
_FILES = (
    WEIGHTS_FILE,
    CONFIG_FILE,
    RECORD_FILE,
)  # the record comes last when a stack is mended: it vouches for the others


@dataclass(slots=True)
class _Lease:
    """A stack that this cache has handed out."""

    adapter: Adapter
    descriptor: int
    retiring: bool = False  # offered by `surplus`, and not asked for since


class StackCache:
    """The stacks of one store; safe to share between threads and, over the folder, between processes."""

    def __init__(self, directory: Path, max_mb: int) -> None:
        """Opens the cache and tidies up what killed processes have left."""
        self._directory = directory.absolute()
        self._max_bytes = max_mb * 1_000_000
        self._leases: dict[str, _Lease] = {}  # least recently used first
        self._guard = threading.Lock()  # of _leases; held for moments only
        (self._directory / LOCKS).mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        self._trim()

    def stack(self, choices: Sequence[ModuleChoice], max_rank: int) -> Adapter | None:
        """One adapter for all the choices, composed now or before; None when no choice has a weight other than 0.

        A weight may be a mapping from the names of layers; one that it does not name has 1.0, one that the module does
        not have is passed over.

        Its folder stays until `release`. Raises `RankLimitError`, `CorruptModuleError`, `UnsupportedAdapterError`,
        `BaseModelMismatchError`, `StorageFullError`.
        """
        parts = parts_of(choices)
        if not parts:
            return None
        name = stack_name(parts)
        adapter = self._lease_again(name)
        if adapter is None:
            with self._alone(name):
                adapter = self._whole(name) or self._make(name, parts, max_rank)
                self._lease(adapter)
            self._trim()
        if adapter.rank > max_rank:
            raise RankLimitError(
                f"stack {name!r} of {', '.join(repr(part.module.name) for part in parts)} has rank {adapter.rank}; "
                f"expected at most {max_rank}. Plug in fewer modules, or raise max_lora_rank in hybridqa.toml."
            )
        with suppress(OSError):
            os.utime(adapter.path)  # the time of last use, over all processes
        return adapter

    def surplus(self, in_use: Collection[str] = ()) -> list[str]:
        """Stacks to let go of: those with removed modules, and the least recently used while the cache is too large.

        Have the engine forget each of them, then call `release`. `in_use` names those of running requests.
        """
        total = sum(_size(folder) for folder in self._folders())
        names = []
        with self._guard:
            for name, lease in self._leases.items():
                if name in in_use:
                    continue
                size = _size(lease.adapter.path)
                if total > self._max_bytes or (lease.adapter.path / DOOMED_FILE).exists():
                    lease.retiring = True
                    names.append(name)
                    total -= size
        return names

    def retire(self, names: Iterable[str]) -> None:
        """Offers these to be released, as `surplus` does, for a caller that knows better what is used."""
        with self._guard:
            for name in names:
                if name in self._leases:
                    self._leases[name].retiring = True

    def release(self, names: Iterable[str]) -> None:
        """Lets go of stacks from `surplus` that the engine has forgotten; one asked for again meanwhile is kept."""
        with self._guard:
            for name in list(names):
                lease = self._leases.get(name)
                if lease is not None and lease.retiring:
                    os.close(self._leases.pop(name).descriptor)
        self._trim()

    def forget(self, modules: Iterable[Module]) -> list[str]:
        """Deletes every stack that holds one of the (removed) modules, those in use once they are let go.

        Returns the names of those that this cache still holds: have the engine forget them, then call `release`.
        """
        names = {module.name for module in modules}
        return self._doom(lambda held: bool(held & names))

    def keep_only(self, module_names: Collection[str]) -> list[str]:
        """`forget` for all modules but these: for the opening of a store, where a removal may have been cut short."""
        known = set(module_names)
        return self._doom(lambda held: not held <= known)

    def close(self) -> None:
        """Lets go of everything; call it when the engine is gone. A later `stack` opens leases anew."""
        with self._guard:
            for lease in self._leases.values():
                os.close(lease.descriptor)
            self._leases.clear()
        self._trim()

    # Inside

    @contextmanager
    def _alone(self, name: str, timeout: float = -1) -> Iterator[None]:
        """One composer or remover of a stack at a time, over all threads and processes; a few names share a lock."""
        with FileLock(
            self._directory / LOCKS / f"{hashlib.sha256(name.encode()).hexdigest()[:2]}.lock", timeout=timeout
        ):
            yield

    def _lease_again(self, name: str) -> Adapter | None:
        """The stack when this cache holds it and its files are untouched since they were checked."""
        with self._guard:
            lease = self._leases.pop(name, None)
            if lease is None:
                return None
            self._leases[name] = lease  # now the most recently used
            lease.retiring = False
        return self._whole(name)

    def _lease(self, adapter: Adapter) -> None:
        """Holds the folder for this cache; the caller keeps removers out."""
        descriptor = os.open(adapter.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with self._guard:
            before = self._leases.pop(adapter.name, None)
            self._leases[adapter.name] = _Lease(adapter, descriptor)
        if before is not None:
            os.close(before.descriptor)

    def _whole(self, name: str) -> Adapter | None:
        """The stack, when its folder is there and its files are those that its record vouches for."""
        folder = self._directory / name
        record = read_record(folder)
        if record is None or record["name"] != name:
            return None
        try:
            found = {file: known_sha256(folder / file) for file in (CONFIG_FILE, WEIGHTS_FILE)}
        except OSError:
            return None
        if found != record["files"]:
            log.warning("stack %r is damaged and will be composed again", name)
            return None
        return Adapter(name, folder, record["rank"])

    def _make(self, name: str, parts: Sequence[StackPart], max_rank: int) -> Adapter:
        """Composes the stack into a new folder, or mends the files of a damaged one, which others may be holding."""
        folder = self._directory / name
        remove_unfinished(folder)
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            folder.unlink()
        with full_storage_named(folder):
            if not folder.exists():
                with atomic_dir(folder) as target:
                    rank = write_stack(target, name, parts, max_rank)
                return Adapter(name, folder, rank)
            with TemporaryDirectory(prefix=f".{name}.", suffix=TEMP_SUFFIX, dir=self._directory) as temporary:
                rank = write_stack(Path(temporary), name, parts, max_rank)
                for file in _FILES:
                    descriptor = os.open(Path(temporary, file), os.O_RDONLY)
                    os.fsync(descriptor)
                    os.close(descriptor)
                    Path(temporary, file).replace(folder / file)
                fsync_dir(folder)
            return Adapter(name, folder, rank)

    def _doom(self, is_doomed: Callable[[set[str]], bool]) -> list[str]:
        for folder in self._folders():
            record = read_record(folder)
            if record is None or is_doomed({part["module"] for part in record["parts"]}):
                with suppress(FileNotFoundError):
                    (folder / DOOMED_FILE).touch()
        self._trim()
        with self._guard:
            doomed = [name for name, lease in self._leases.items() if (lease.adapter.path / DOOMED_FILE).exists()]
            for name in doomed:
                self._leases[name].retiring = True
        return doomed

    def _trim(self) -> None:
        """Deletes doomed stacks, then the least recently used until the rest fits; never one that anybody holds."""
        folders = [(folder, _mtime(folder), _size(folder)) for folder in self._folders()]
        total = sum(size for _, _, size in folders)
        for folder, _, size in sorted(folders, key=lambda item: item[1]):
            if (total > self._max_bytes or (folder / DOOMED_FILE).exists()) and self._remove_unheld(folder):
                total -= size

    def _remove_unheld(self, folder: Path) -> bool:
        """Deletes a stack unless somebody composes or holds it."""
        try:
            with self._alone(folder.name, timeout=0):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_folder(folder)
                finally:
                    os.close(descriptor)
        except (Timeout, OSError):
            return False
        return True

    def _folders(self) -> list[Path]:
        return [path for path in self._directory.glob("stack-*") if path.is_dir()]

    def _remove_leftovers(self) -> None:
        """Removes what killed composers and removers have left; those at work hold their lock."""
        for path in self._directory.glob(f".stack-*{TEMP_SUFFIX}"):
            final = self._directory / f"stack-{path.name.split('-')[1].split('.')[0]}"
            with suppress(Timeout), self._alone(final.name, timeout=0):
                remove_unfinished(final)


def _size(folder: Path) -> int:
    with suppress(OSError):
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    return 0


def _mtime(folder: Path) -> float:
    with suppress(OSError):
        return folder.stat().st_mtime
    return 0.0
