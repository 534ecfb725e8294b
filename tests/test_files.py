"""Files are whole or not there, also when the writer is killed, fails or fills the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybridqa.errors import StorageFullError, StoreError
from hybridqa.files import (
    atomic_dir,
    atomic_write_bytes,
    atomic_write_text,
    fsync_dir,
    full_disk_named,
    sha256_file,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write_text(path, "één")
    assert path.read_bytes() == "één".encode()
    atomic_write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a.json"]


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)  # 254 bytes: the longest that file systems take
    atomic_write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "x").touch()
    with pytest.raises(IsADirectoryError):
        atomic_write_bytes(path, b"x")
    assert names(tmp_path) == ["folder"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageFullError, match=r"'.*/a\.bin'.*free some space") as caught,
        full_disk_named(tmp_path / "a.bin"),
    ):
        raise OSError(errno.EDQUOT, "quota")
    assert isinstance(caught.value, StoreError)
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(PermissionError), full_disk_named(tmp_path):
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_real_full_device_is_named() -> None:
    with pytest.raises(StorageFullError), full_disk_named(Path("/dev/full")), Path("/dev/full").open("wb", 0) as file:
        file.write(b"x")


def test_a_write_over_the_size_limit_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OSError):
            atomic_write_bytes(path, b"x" * 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "module"
    with atomic_dir(final) as folder:
        assert folder.parent == tmp_path
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        assert not final.exists()
    assert (final / "sub" / "a").read_text() == "a"
    assert names(tmp_path) == ["module"]


def test_a_failed_folder_vanishes(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_dir(tmp_path / "module") as folder:
        (folder / "a").write_text("a")
        raise KeyError("stop")
    assert names(tmp_path) == []


def test_a_finished_folder_is_never_overwritten(tmp_path: Path) -> None:
    final = tmp_path / "module"
    with atomic_dir(final) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(FileExistsError), atomic_dir(final):
        pass
    with pytest.raises(FileExistsError), atomic_dir(tmp_path / "late") as folder:
        (folder / "a").write_text("second")
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "a").write_text("first")
    assert (tmp_path / "late" / "a").read_text() == "first"
    assert names(tmp_path) == ["late", "module"]


def test_sha256(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    fsync_dir(tmp_path)


WRITER = """
import sys
from pathlib import Path
from hybridqa.files import atomic_dir, atomic_write_bytes
root = Path(sys.argv[1])
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    atomic_write_bytes(root / "file", bytes([number % 251]) * 200_000)
    with atomic_dir(root / f"folder-{number}") as folder:
        for name in "abc":
            (folder / name).write_bytes(bytes([number % 251]) * 50_000)
"""


def test_a_killed_writer_leaves_whole_files_and_folders(tmp_path: Path) -> None:
    for round_number, delay in enumerate((0.011, 0.023, 0.037, 0.052)):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(round_number * 100_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(delay)
            writer.kill()
    data = (tmp_path / "file").read_bytes()
    assert data == data[:1] * 200_000
    folders = list(tmp_path.glob("folder-*"))
    assert folders
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c"]
        assert {path.stat().st_size for path in folder.iterdir()} == {50_000}
