"""The dense index's files: whatever happens to them, and to a process that writes them, answers stay the same."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hybridqa.catalog import Catalog
from hybridqa.retrieval.dense import DenseIndex
from hybridqa.retrieval.dense_file import DenseFile

DIMENSION = 16
Put = Callable[..., np.ndarray]
Harm = Callable[[Path, Path], object]


@pytest.fixture
def store(catalog: Catalog, tmp_path: Path, put: Put) -> Path:
    """A saved index of 200 vectors in `tmp_path`."""
    put(catalog, "a", "d", np.random.default_rng(1).standard_normal((200, DIMENSION)))
    DenseIndex(tmp_path, catalog).sync("a")
    return tmp_path


def files(store: Path) -> tuple[Path, Path]:
    file = DenseFile(store / "dense", "a")
    return file.index_path, file.about_path


def query() -> np.ndarray:
    return np.full(DIMENSION, DIMENSION**-0.5, np.float32)


def rewrite(about: Path, **changes: object) -> None:
    about.write_text(json.dumps(json.loads(about.read_text()) | changes))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


HARMS: dict[str, Harm] = {
    "no index": lambda index, about: index.unlink(),
    "no description": lambda index, about: about.unlink(),
    "neither": lambda index, about: (index.unlink(), about.unlink()),
    "index cut short": lambda index, about: index.write_bytes(index.read_bytes()[:-100]),
    "index empty": lambda index, about: index.write_bytes(b""),
    "index flipped": lambda index, about: flip(index),
    "description cut short": lambda index, about: about.write_text(about.read_text()[:40]),
    "description no object": lambda index, about: about.write_text("[1, 2]"),
    "description binary": lambda index, about: about.write_bytes(b"\xff\xfe\x00"),
    "another embedder": lambda index, about: rewrite(about, embedder="someone else"),
    "another dimension": lambda index, about: rewrite(about, dimension=3),
    "another collection": lambda index, about: rewrite(about, collection="b"),
    "from the future": lambda index, about: rewrite(about, generation=10**9),
    "another format": lambda index, about: rewrite(about, format=99),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_a_harmed_file_is_rebuilt(harm: Harm, catalog: Catalog, store: Path) -> None:
    expected = DenseIndex(store, catalog).search(query(), 20, "a")
    before = [path.read_bytes() for path in files(store)]
    harm(*files(store))
    assert DenseIndex(store, catalog).search(query(), 20, "a") == expected
    assert [path.read_bytes() for path in files(store)] == before  # mended on disk as well


def test_a_whole_file_is_read_instead_of_the_catalog(
    catalog: Catalog, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stamps = [path.stat().st_mtime_ns for path in files(store)]
    with caplog.at_level(logging.WARNING):
        assert len(DenseIndex(store, catalog).search(query(), 20, "a")) == 20
    assert caplog.records == []
    assert [path.stat().st_mtime_ns for path in files(store)] == stamps


def test_a_small_change_is_not_written_at_once_but_by_save(catalog: Catalog, store: Path, put: Put) -> None:
    dense = DenseIndex(store, catalog)
    put(catalog, "a", "small", np.random.default_rng(2).standard_normal((3, DIMENSION)))
    expected = dense.search(query(), 500, "a")
    assert len(expected) == 203
    assert json.loads(files(store)[1].read_text())["vectors"] == 200
    assert DenseIndex(store, catalog).search(query(), 500, "a") == expected  # from the old file and the catalog
    dense.save()
    assert json.loads(files(store)[1].read_text())["vectors"] == 203
    assert DenseIndex(store, catalog).search(query(), 500, "a") == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_still_answers(catalog: Catalog, store: Path) -> None:
    expected = DenseIndex(store, catalog).search(query(), 20, "a")
    flip(files(store)[0])
    (store / "dense").chmod(0o500)
    try:
        assert DenseIndex(store, catalog).search(query(), 20, "a") == expected
    finally:
        (store / "dense").chmod(0o700)


def test_a_folder_that_cannot_be_made_still_answers(catalog: Catalog, tmp_path: Path, put: Put) -> None:
    put(catalog, "a", "d", np.random.default_rng(1).standard_normal((20, DIMENSION)))
    (tmp_path / "dense").write_text("a file where the folder should be")
    assert len(DenseIndex(tmp_path, catalog).search(query(), 20, "a")) == 20


SAVER = """
import sys
from pathlib import Path
from hybridqa.catalog import Catalog
from hybridqa.retrieval.dense import DenseIndex

store = Path(sys.argv[1])
catalog = Catalog.open(store / "catalog.sqlite3")
dense = DenseIndex(store, catalog)
dense.sync("a")
part = dense._part("a")
print("saving", flush=True)
while True:
    part.unsaved = 1
    dense.save()
"""


def test_killed_in_the_middle_of_saving(catalog: Catalog, store: Path, put: Put) -> None:
    put(catalog, "a", "more", np.random.default_rng(3).standard_normal((3_000, DIMENSION)))
    expected = DenseIndex(store, catalog).search(query(), 50, "a")
    random.seed(0)
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(store)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "saving\n"
        time.sleep(random.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert DenseIndex(store, catalog).search(query(), 50, "a") == expected
    dense = DenseIndex(store, catalog)
    dense.search(query(), 1, "a")
    dense._part("a").unsaved = 1
    dense.save()
    assert [path.name for path in (store / "dense").iterdir() if path.name.endswith(".tmp")] == []


ADDER = """
import sys
from pathlib import Path
import numpy as np
from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.types import Document

with Catalog.open(Path(sys.argv[1]) / "catalog.sqlite3") as catalog:
    vector = np.full((1, 16), 0.25, np.float32)
    catalog.put_document(Document("new", "a", "", "x", "h"), [PassageDraft(0, 0, 1, "x")], vector, "e")
    print(catalog.vector_ids("a")[-1])
"""


def test_what_another_process_adds_is_found_at_once(catalog: Catalog, store: Path) -> None:
    dense = DenseIndex(store, catalog)
    before = dense.search(query(), 1, "a")
    done = subprocess.run([sys.executable, "-c", ADDER, str(store)], capture_output=True, text=True, check=True)
    after = dense.search(query(), 1, "a")
    assert before[0][1] < 0.999
    assert after == [(int(done.stdout), pytest.approx(1, abs=1e-5))]
