"""A dense index that has gone over to inverted lists: its files, its changes, and what it does after a kill."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from hybridqa.catalog import Catalog
from hybridqa.errors import EmbedderMismatchError
from hybridqa.retrieval import lists
from hybridqa.retrieval.dense import DenseIndex
from hybridqa.retrieval.dense_file import DenseFile

DIMENSION = 16
LISTS_FROM = 500
Put = Callable[..., np.ndarray]


def clustered(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres_N_D = np.random.default_rng(99).standard_normal((20, DIMENSION))
    return centres_N_D[rng.integers(0, 20, count)] + 0.4 * rng.standard_normal((count, DIMENSION))


def query(seed: int = 0) -> np.ndarray:
    vector_D = clustered(1, 1_000 + seed)[0]
    return (vector_D / np.linalg.norm(vector_D)).astype(np.float32)


def make(store: Path, catalog: Catalog) -> DenseIndex:
    return DenseIndex(store, catalog, lists_from=LISTS_FROM)


def recall(dense: DenseIndex, catalog: Catalog, k: int = 10) -> float:
    """Against every vector compared with numpy; ids and cosines must be right in any case."""
    ids, vectors_N_D = catalog.vectors(catalog.vector_ids("a"))
    shares = []
    for seed in range(60):
        scores = dict(zip(ids.tolist(), (vectors_N_D @ query(seed)).tolist(), strict=True))
        found = dense.search(query(seed), k, "a")
        assert [score for _, score in found] == pytest.approx([scores[i] for i, _ in found], abs=1e-5)
        truth = sorted(scores, key=lambda i: -scores[i])[:k]
        shares.append(len({i for i, _ in found} & set(truth)) / k)
    return float(np.mean(shares))


def about(store: Path) -> dict[str, object]:
    return json.loads(DenseFile(store / "dense", "a").about_path.read_text())


@pytest.fixture
def store(catalog: Catalog, tmp_path: Path, put: Put) -> Path:
    """A saved index of 1,200 vectors in 12 documents."""
    for number in range(12):
        put(catalog, "a", f"d{number}", clustered(100, number))
    make(tmp_path, catalog).sync("a")
    return tmp_path


def test_the_manifest_says_how_it_searches_and_with_what_recall(catalog: Catalog, store: Path) -> None:
    known = about(store)
    assert (known["format"], known["kind"], known["vectors"], known["changed"]) == (2, "ivf", 1_200, 0)
    training = known["training"]
    assert isinstance(training, dict)
    assert training["vectors"] == 1_200 and 0 < training["nprobe"] < training["nlist"]
    assert lists.RECALL <= training["recall_low"] <= training["recall"] <= 1
    assert recall(make(store, catalog), catalog) > 0.97


def test_a_file_of_lists_is_read_and_not_made_anew(
    catalog: Catalog, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lists, "train", None)
    with caplog.at_level(logging.WARNING):
        assert recall(make(store, catalog), catalog) > 0.97
    assert caplog.records == []


def test_documents_come_change_and_go(catalog: Catalog, store: Path, put: Put) -> None:
    dense, other = make(store, catalog), make(store, Catalog.open(catalog.path))
    other.sync("a")
    put(catalog, "a", "new", query()[None])
    put(catalog, "a", "d3", clustered(50, 77), version="2")
    catalog.remove_document("a", "d5")
    for index in (dense, other, make(store, catalog)):  # the last one: from the old file and the catalog
        assert index.search(query(), 1, "a")[0] == (
            catalog.document_passages("a", "new")[0].passage_id,
            pytest.approx(1),
        )
        assert recall(index, catalog) > 0.97
        ids = catalog.vector_ids("a")
        cosines = index.cosines(query(), [*ids.tolist(), 10**15], "a")
        assert cosines == pytest.approx(
            dict(zip(ids.tolist(), catalog.vectors(ids)[1] @ query(), strict=True)), abs=1e-5
        )
        found = index.search(query(), 2_000, "a")
        assert sorted(i for i, _ in found) == ids.tolist()
    other._catalog.close()


def test_lists_are_made_anew_when_a_third_has_changed(catalog: Catalog, store: Path, put: Put) -> None:
    dense = make(store, catalog)
    for number in range(3):
        put(catalog, "a", f"more {number}", clustered(100, 50 + number))
    dense.sync("a")
    assert about(store)["training"]["vectors"] == 1_200 and about(store)["changed"] == 300  # type: ignore[index]
    dense = make(store, catalog)  # goes on counting where it was
    put(catalog, "a", "more 3", clustered(101, 53))
    dense.sync("a")
    assert about(store)["training"]["vectors"] == 1_601 and about(store)["changed"] == 0  # type: ignore[index]
    for number in range(12):
        catalog.remove_document("a", f"d{number}")
    catalog.remove_document("a", "more 0")
    catalog.remove_document("a", "more 1")
    dense.sync("a")
    assert about(store)["kind"] == "flat" and about(store)["training"] is None
    assert recall(dense, catalog) == 1


def test_a_small_collection_grows_into_lists(catalog: Catalog, tmp_path: Path, put: Put) -> None:
    dense = make(tmp_path, catalog)
    put(catalog, "a", "small", clustered(LISTS_FROM - 1, 1))
    dense.sync("a")
    assert about(tmp_path)["kind"] == "flat"
    put(catalog, "a", "one", clustered(1, 2))
    dense.sync("a")
    assert about(tmp_path)["kind"] == "ivf"


def test_what_is_removed_leaves_the_disk(catalog: Catalog, store: Path, put: Put) -> None:
    dense = make(store, catalog)
    secret_N_D = put(catalog, "a", "secret", -3 * clustered(300, 9))
    dense.sync("a")
    dense.save()
    [path] = (store / "dense").glob("*.faiss")
    assert secret_N_D[0].tobytes() in path.read_bytes()
    catalog.remove_document("a", "secret")
    dense.sync()
    assert not list((store / "dense").glob("*.faiss")) or secret_N_D[0].tobytes() not in path.read_bytes()
    dense.save()
    data = path.read_bytes()
    assert not any(vector_D.tobytes() in data for vector_D in secret_N_D)


def test_reembedding_makes_the_lists_anew(catalog: Catalog, store: Path) -> None:
    dense = make(store, catalog)
    dense.sync("a")
    ids, vectors_N_D = catalog.vectors()
    turned_N_D = np.ascontiguousarray(np.roll(vectors_N_D, 3, axis=1))
    catalog.replace_embeddings([(ids, turned_N_D)], "another")
    with pytest.raises(EmbedderMismatchError, match="hybridqa refresh --embeddings"):
        dense.search(query(), 3, "a", embedder="e")
    assert dense.search(turned_N_D[7], 1, "a", embedder="another")[0] == (int(ids[7]), pytest.approx(1, abs=1e-5))
    assert about(store)["embedder"] == "another" and about(store)["kind"] == "ivf"


def test_the_flat_file_of_an_older_hybridqa_is_read(
    catalog: Catalog, tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors_N_D = put(catalog, "a", "d", clustered(LISTS_FROM - 10, 1))
    ids = catalog.vector_ids("a")
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(DIMENSION))
    index.add_with_ids(vectors_N_D, ids)
    data = faiss.serialize_index(index).tobytes()
    generation, token = catalog.state()
    old = {
        "format": 1,
        "collection": "a",
        "embedder": "e",
        "dimension": DIMENSION,
        "vectors": len(ids),
        "generation": generation,
        "token": token,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    file = DenseFile(tmp_path / "dense", "a")
    file.index_path.parent.mkdir()
    file.index_path.write_bytes(data)
    file.about_path.write_text(json.dumps(old))
    with monkeypatch.context() as patched:
        patched.setattr(Catalog, "iter_vectors", lambda *words, **named: pytest.fail("the catalog is read"))
        patched.setattr(Catalog, "vectors", lambda catalog, ids: (ids, np.empty((len(ids), DIMENSION), np.float32)))
        assert len(make(tmp_path, catalog).search(query(), 1_000, "a")) == len(ids)
    assert json.loads(file.about_path.read_text()) == old  # nothing has changed
    put(catalog, "a", "more", clustered(200, 2))
    dense = make(tmp_path, catalog)
    assert recall(dense, catalog) > 0.97
    assert about(tmp_path)["format"] == 2 and about(tmp_path)["kind"] == "ivf"


def test_a_file_whose_lists_are_not_described_is_rebuilt(catalog: Catalog, store: Path) -> None:
    file = DenseFile(store / "dense", "a")
    for training in (None, {"nlist": 3}, "many"):
        known = json.loads(file.about_path.read_text()) | {"training": training}
        file.about_path.write_text(json.dumps(known))
        assert recall(make(store, catalog), catalog) > 0.97
        assert isinstance(about(store)["training"], dict)


SAVER = """
import sys
from pathlib import Path
from hybridqa.catalog import Catalog
from hybridqa.retrieval.dense import DenseIndex

store = Path(sys.argv[1])
dense = DenseIndex(store, Catalog.open(store / "catalog.sqlite3"), lists_from=500)
dense.sync("a")
part = dense._part("a")
print("saving", flush=True)
while True:
    part.unsaved = 1
    part.index.changed += 1  # no two files are the same: a pair of two writes must be refused
    dense.save()
"""


def test_killed_in_the_middle_of_saving(catalog: Catalog, store: Path) -> None:
    random.seed(0)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(store)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "saving\n"
        time.sleep(random.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert recall(make(store, catalog), catalog) > 0.97


def test_killed_between_the_file_and_its_manifest(
    catalog: Catalog, store: Path, put: Put, caplog: pytest.LogCaptureFixture
) -> None:
    file = DenseFile(store / "dense", "a")
    old = file.about_path.read_bytes()
    dense = make(store, catalog)
    put(catalog, "a", "more", clustered(20, 60))
    dense.sync("a")
    dense.save()
    file.about_path.write_bytes(old)
    with caplog.at_level(logging.WARNING):
        assert recall(make(store, catalog), catalog) > 0.97
    assert "its sha256 is another" in caplog.text
    assert about(store)["vectors"] == 1_220
