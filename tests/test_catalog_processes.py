"""The catalog under several processes and under SIGKILL."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from hybridqa.catalog import Catalog
from hybridqa.errors import NotFoundError

WRITER = """
import sys
from pathlib import Path
import numpy as np
from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.types import Document

path, writer, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
catalog = Catalog.open(path, create=True)
print("ready", flush=True)
number = 0
while number < rounds:
    number += 1
    words = [f"{writer}x{number}x{part}" for part in range(40)]
    text = " ".join(words)
    drafts, start = [], 0
    for ordinal, word in enumerate(words):
        drafts.append(PassageDraft(ordinal, start, start + len(word), word))
        start += len(word) + 1
    document = Document(f"{writer}-{number % 7}", f"c{number % 2}", "", text, text)
    catalog.put_document(document, drafts, np.full((40, 16), number, np.float32), "e")
    print(document.collection, document.doc_id, number, flush=True)
    if number % 5 == 0:
        victim = f"{writer}-{(number + 3) % 7}"
        if catalog.find_document(f"c{number % 2}", victim):
            catalog.remove_document(f"c{number % 2}", victim)
            print(f"c{number % 2}", victim, 0, flush=True)
catalog.close()
"""


def start(path: Path, writer: str, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), writer, str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def reported(output: str) -> dict[tuple[str, str], int]:
    """What the writer said was done: the last round of each document, 0 when removed."""
    lines = [line.split() for line in output.splitlines(keepends=True) if line.endswith("\n")]
    return {(collection, doc_id): int(number) for collection, doc_id, number in lines}


def assert_whole(catalog: Catalog) -> None:
    assert catalog.check() == []
    for summary in catalog.list_documents():
        passages = catalog.document_passages(summary.collection, summary.doc_id)
        assert len(passages) == 40
        number = passages[0].text.split("x")[1]
        ids, vectors_N_D = catalog.vectors([p.passage_id for p in passages])
        assert len(ids) == 40
        assert set(vectors_N_D.reshape(-1).tolist()) == {float(number)}
        for passage in (passages[0], passages[-1]):
            found = catalog.search_lexical(summary.collection, f'"{passage.text}"', 5)
            assert [passage_id for passage_id, _ in found] == [passage.passage_id]


def round_of(catalog: Catalog, collection: str, doc_id: str) -> int:
    try:
        return int(catalog.get_document(collection, doc_id).text.split("x")[1])
    except NotFoundError:
        return 0


def test_a_killed_writer_leaves_a_whole_store_with_all_it_reported(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite3"
    chance = random.Random(7)
    for attempt in range(5):
        writer = f"w{attempt}"
        with start(path, writer, 1_000_000) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.0, 0.25))
            process.kill()
            done = reported(process.stdout.read())
        with Catalog.open(path) as catalog:
            assert_whole(catalog)
            for (collection, doc_id), number in done.items():
                stored = round_of(catalog, collection, doc_id)
                # the change after the last report may have been made or not; nothing reported may be lost
                assert stored == number or stored > max(done.values()) or stored == 0, (doc_id, stored, number)
            lost = [key for key, number in done.items() if number and round_of(catalog, *key) == 0]
            assert len(lost) <= 1
    with Catalog.open(path) as catalog:
        assert len(catalog.list_documents()) > 10


def test_a_writer_killed_while_making_the_store_leaves_one_that_can_be_made(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from hybridqa.catalog import Catalog; print('go', flush=True); "
    code += "Catalog.open(Path(sys.argv[1]), create=True)"
    for attempt in range(3):
        path = tmp_path / f"catalog-{attempt}"
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.002 * attempt)
            process.kill()
        with Catalog.open(path, create=True) as catalog:
            assert catalog.check() == []
            catalog.create_collection("c")


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite3"
    processes = [start(path, writer, 60) for writer in ("p", "q")]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    with Catalog.open(path) as catalog:
        assert_whole(catalog)
        for output in outputs:
            done = reported(output.removeprefix("ready\n"))
            assert len(done) > 10
            for (collection, doc_id), number in done.items():
                assert round_of(catalog, collection, doc_id) == number
        changes = sum(len(output.splitlines()) - 1 for output in outputs)
        assert catalog.generation() == changes


def test_another_process_sees_the_generation_grow(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite3"
    with Catalog.open(path, create=True) as catalog:
        assert catalog.generation() == 0
        with start(path, "p", 4) as process:
            process.communicate(timeout=60)
        assert catalog.generation() == 4
        assert len(catalog.vector_ids("c0")) == 80
