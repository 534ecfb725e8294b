"""The dense index against brute force over the catalog, by hand and over random sequences of changes."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.errors import CollectionNotFoundError, EmbedderMismatchError
from hybridqa.retrieval.dense import LISTS_FROM, DenseIndex
from hybridqa.retrieval.dense_file import DenseFile
from hybridqa.types import Document

DIMENSION = 8
RANDOM = np.random.default_rng(0)
Put = Callable[..., np.ndarray]


def query() -> np.ndarray:
    vector_D = RANDOM.standard_normal(DIMENSION).astype(np.float32)
    return vector_D / np.linalg.norm(vector_D)


def brute(catalog: Catalog, query_D: np.ndarray, k: int, collection: str) -> list[tuple[int, float]]:
    """What the index must answer: every vector of the collection compared with numpy."""
    ids, vectors_N_D = catalog.vectors(catalog.vector_ids(collection))
    scores = vectors_N_D @ query_D if len(ids) else np.empty(0)
    return sorted(zip(ids.tolist(), scores.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))[:k]


def agree(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert [i for i, _ in found] == [i for i, _ in expected]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=1e-5)


class DenseMachine(RuleBasedStateMachine):
    """Documents come, change and go in three collections, under two embedders, before two indexes and restarts."""

    lists_from = LISTS_FROM
    collections = st.sampled_from(["a", "b", "c"])
    doc_ids = st.sampled_from(["1", "2", "3", "4", "5"])

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.catalog = Catalog.open(self.root / "c.sqlite3", create=True)
        self.other_catalog = Catalog.open(self.root / "c.sqlite3")  # another process as far as SQLite can tell
        for name in ("a", "b", "c"):
            self.catalog.create_collection(name)
        self.dense = DenseIndex(self.root, self.catalog, lists_from=self.lists_from)
        self.other = DenseIndex(self.root, self.other_catalog, lists_from=self.lists_from)
        self.embedder = "e"
        self.documents: set[tuple[str, str]] = set()
        self.versions = 0

    def teardown(self) -> None:
        self.catalog.close()
        self.other_catalog.close()
        self.folder.cleanup()

    @rule(collection=collections, doc_id=doc_ids, passages=st.integers(1, 12))
    def put(self, collection: str, doc_id: str, passages: int) -> None:
        self.versions += 1
        text = "x" * passages
        drafts = [PassageDraft(n, n, n + 1, "x") for n in range(passages)]
        vectors_N_D = np.stack([query() for _ in range(passages)])
        document = Document(doc_id, collection, "", text, str(self.versions))
        self.catalog.put_document(document, drafts, vectors_N_D, self.embedder)
        self.documents.add((collection, doc_id))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.documents:
            collection, doc_id = data.draw(st.sampled_from(sorted(self.documents)))
            self.catalog.remove_document(collection, doc_id)
            self.documents.discard((collection, doc_id))

    @rule(collection=collections)
    def remove_collection(self, collection: str) -> None:
        self.catalog.remove_collection(collection)
        with pytest.raises(CollectionNotFoundError):
            self.dense.search(query(), 3, collection)
        self.catalog.create_collection(collection)
        self.documents = {pair for pair in self.documents if pair[0] != collection}

    @rule()
    def reembed(self) -> None:
        self.embedder += "'"
        ids = self.catalog.vector_ids()
        if ids.size:
            self.catalog.replace_embeddings([(ids, np.stack([query() for _ in ids]))], self.embedder)

    @rule(collection=st.none() | collections)
    def sync(self, collection: str | None) -> None:
        self.dense.sync(collection)

    @rule()
    def save(self) -> None:
        self.dense.save()

    @rule()
    def restart(self) -> None:
        self.dense = DenseIndex(self.root, self.catalog, lists_from=self.lists_from)

    @rule(collection=collections, k=st.integers(0, 40))
    def search_from_the_other_side(self, collection: str, k: int) -> None:
        query_D = query()
        self.agree(self.other.search(query_D, k, collection), query_D, k, collection)

    def agree(
        self, found: list[tuple[int, float]], query_D: np.ndarray, k: int, collection: str, only: set[int] | None = None
    ) -> None:
        everything = brute(self.catalog, query_D, 1_000, collection)
        agree(found, [pair for pair in everything if only is None or pair[0] in only][:k])

    @invariant()
    def answers_as_brute_force_does(self) -> None:
        if not hasattr(self, "dense"):
            return
        for collection in ("a", "b", "c"):
            query_D = query()
            self.agree(self.dense.search(query_D, 5, collection), query_D, 5, collection)
            some = self.catalog.vector_ids(collection)[::3]
            found = self.dense.search(query_D, 4, collection, only=some)
            self.agree(found, query_D, 4, collection, set(some.tolist()))
            everything = dict(brute(self.catalog, query_D, 1_000, collection))
            cosines = self.dense.cosines(query_D, [*self.catalog.vector_ids().tolist(), 10**15], collection)
            assert cosines == pytest.approx(everything, abs=1e-5)


class ListsMachine(DenseMachine):
    """The same with lists where there is anything at all: as many are found, all of them there, with their cosines."""

    lists_from = 1

    def agree(
        self, found: list[tuple[int, float]], query_D: np.ndarray, k: int, collection: str, only: set[int] | None = None
    ) -> None:
        everything = dict(brute(self.catalog, query_D, 1_000, collection))
        everything = {i: score for i, score in everything.items() if only is None or i in only}
        assert len(found) == min(k, len(everything))
        agree(found, sorted(((i, everything[i]) for i, _ in found), key=lambda pair: (-pair[1], pair[0])))


TestDense = DenseMachine.TestCase
TestDense.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestLists = ListsMachine.TestCase
TestLists.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)


def test_a_search_never_ranks_another_collection(catalog: Catalog, tmp_path: Path, put: Put) -> None:
    query_D = query()
    put(catalog, "mine", "far", -query_D[None] + 0.1)
    put(catalog, "theirs", "near", np.stack([query_D] * 100))
    found = DenseIndex(tmp_path, catalog).search(query_D, 10, "mine")
    assert [i for i, _ in found] == catalog.vector_ids("mine").tolist()


def test_an_unknown_collection_is_named(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(CollectionNotFoundError, match="'nowhere'"):
        DenseIndex(tmp_path, catalog).search(query(), 3, "nowhere")


def test_another_embedders_question_is_refused_with_the_command(catalog: Catalog, tmp_path: Path, put: Put) -> None:
    put(catalog, "a", "d", RANDOM.standard_normal((3, DIMENSION)))
    dense = DenseIndex(tmp_path, catalog)
    assert len(dense.search(query(), 3, "a", embedder="e")) == 3
    for search in (
        lambda: dense.search(query(), 3, "a", embedder="f"),
        lambda: dense.search(np.ones(DIMENSION + 1, np.float32), 3, "a"),
        lambda: dense.cosines(query(), [1], "a", embedder="f"),
    ):
        with pytest.raises(EmbedderMismatchError, match="hybridqa refresh --embeddings"):
            search()


def test_what_is_removed_leaves_the_disk(catalog: Catalog, tmp_path: Path, put: Put) -> None:
    kept_N_D = put(catalog, "a", "kept", RANDOM.standard_normal((50, DIMENSION)))
    secret_N_D = put(catalog, "a", "secret", RANDOM.standard_normal((1, DIMENSION)))
    put(catalog, "b", "gone", RANDOM.standard_normal((5, DIMENSION)))
    dense = DenseIndex(tmp_path, catalog)
    for collection in ("a", "b"):
        dense.search(query(), 1, collection)
    files = {path.name for path in (tmp_path / "dense").glob("*.faiss")}
    assert len(files) == 2
    assert any(secret_N_D.tobytes() in path.read_bytes() for path in (tmp_path / "dense").iterdir())
    catalog.remove_document("a", "secret")
    catalog.remove_collection("b")
    dense.sync()
    assert not any(secret_N_D.tobytes() in path.read_bytes() for path in (tmp_path / "dense").iterdir())
    dense.save()
    left = list((tmp_path / "dense").glob("*.faiss"))
    assert len(left) == 1 and kept_N_D[7].tobytes() in left[0].read_bytes()


def test_a_catalog_put_back_from_a_backup_is_not_answered_from_the_newer_file(tmp_path: Path, put: Put) -> None:
    backup, path = tmp_path / "backup.sqlite3", tmp_path / "catalog.sqlite3"
    with Catalog.open(path, create=True) as catalog:
        put(catalog, "a", "old", RANDOM.standard_normal((4, DIMENSION)))
    shutil.copy(path, backup)
    with Catalog.open(path) as catalog:
        put(catalog, "a", "lost", RANDOM.standard_normal((4, DIMENSION)))
        dense = DenseIndex(tmp_path, catalog)
        dense.search(query(), 1, "a")
        dense.save()
    shutil.copy(backup, path)
    with Catalog.open(path) as catalog:
        for n in range(3):  # the ids of "lost" are given again, and the generation passes the file's
            put(catalog, "a", f"new {n}", RANDOM.standard_normal((4, DIMENSION)))
        query_D = query()
        agree(DenseIndex(tmp_path, catalog).search(query_D, 9, "a"), brute(catalog, query_D, 9, "a"))


def test_a_backup_is_told_from_the_newer_file_by_more_than_its_newest_vector(tmp_path: Path, put: Put) -> None:
    """Both histories end with the same vector under the same id, as the same document added again makes it."""
    backup, path = tmp_path / "backup.sqlite3", tmp_path / "catalog.sqlite3"
    old_N_D, lost_N_D, same_N_D, new_N_D = (RANDOM.standard_normal((2, DIMENSION)) for _ in range(4))
    with Catalog.open(path, create=True) as catalog:
        put(catalog, "a", "old", old_N_D)
    shutil.copy(path, backup)
    with Catalog.open(path) as catalog:
        put(catalog, "a", "lost", lost_N_D)
        put(catalog, "a", "same", same_N_D)
        DenseIndex(tmp_path, catalog).sync("a")
        state = catalog.state()
    shutil.copy(backup, path)
    with Catalog.open(path) as catalog:
        put(catalog, "a", "new", new_N_D)
        put(catalog, "a", "same", same_N_D)
        assert catalog.state()[0] == state[0]
        assert catalog.state() != state
        query_D = query()
        agree(DenseIndex(tmp_path, catalog).search(query_D, 9, "a"), brute(catalog, query_D, 9, "a"))


def test_a_file_of_just_this_state_is_not_compared(
    catalog: Catalog, tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(catalog, "a", "d", RANDOM.standard_normal((20, DIMENSION)))
    DenseIndex(tmp_path, catalog).sync("a")
    monkeypatch.setattr(Catalog, "iter_vectors", None)
    monkeypatch.setattr(Catalog, "vectors", lambda catalog, ids: (ids, np.empty((len(ids), DIMENSION), np.float32)))
    assert len(DenseIndex(tmp_path, catalog).search(query(), 30, "a")) == 20


def test_what_another_process_has_removed_is_not_written_again(catalog: Catalog, tmp_path: Path, put: Put) -> None:
    put(catalog, "a", "kept", RANDOM.standard_normal((40, DIMENSION)))
    stale, other = DenseIndex(tmp_path, catalog), DenseIndex(tmp_path, catalog)
    stale.sync("a")
    secret_N_D = put(catalog, "a", "secret", RANDOM.standard_normal((1, DIMENSION)))
    stale.search(query(), 1, "a")  # holds it, and has not written it
    other.sync("a")
    catalog.remove_document("a", "secret")
    other.sync()
    stale.save()
    assert not any(secret_N_D.tobytes() in path.read_bytes() for path in (tmp_path / "dense").iterdir())
    agree(stale.search(query_D := query(), 9, "a"), brute(catalog, query_D, 9, "a"))


def test_what_is_removed_while_it_is_written_leaves_the_disk(
    catalog: Catalog, tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(catalog, "a", "kept", RANDOM.standard_normal((4, DIMENSION)))
    put(catalog, "a", "secret", RANDOM.standard_normal((1, DIMENSION)))
    save = DenseFile.save

    def slow(*words: Any) -> None:
        catalog.remove_document("a", "secret")  # its remover finds no file to take it out of
        save(*words)

    monkeypatch.setattr(DenseFile, "save", slow)
    DenseIndex(tmp_path, catalog).sync("a")
    assert list((tmp_path / "dense").glob("*.faiss")) == []


@pytest.mark.parametrize("suffix", ["json", "faiss"])
def test_half_of_a_removal_is_ended(catalog: Catalog, tmp_path: Path, put: Put, suffix: str) -> None:
    """A kill between the two: the collection has nothing left, and nothing of it stays on the disk."""
    put(catalog, "a", "d", RANDOM.standard_normal((5, DIMENSION)))
    DenseIndex(tmp_path, catalog).sync("a")
    catalog.remove_document("a", "d")
    [path] = (tmp_path / "dense").glob(f"*.{suffix}")
    path.unlink()
    DenseIndex(tmp_path, catalog).sync()
    assert not [path.name for path in (tmp_path / "dense").iterdir() if path.suffix in (".json", ".faiss")]


def test_the_files_stay_where_they_were(
    catalog: Catalog, tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(catalog, "a", "d", RANDOM.standard_normal((5, DIMENSION)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    dense = DenseIndex(Path("store"), catalog)
    monkeypatch.chdir(tmp_path / "elsewhere")
    dense.sync("a")
    assert len(list((tmp_path / "store" / "dense").glob("*.faiss"))) == 1
    assert not list((tmp_path / "elsewhere").iterdir())


def test_threads_search_while_others_add_and_remove(catalog: Catalog, tmp_path: Path, put: Put) -> None:
    fixed_N_D = put(catalog, "a", "fixed", RANDOM.standard_normal((20, DIMENSION)))
    put(catalog, "b", "fixed", RANDOM.standard_normal((20, DIMENSION)))
    fixed_ids = catalog.vector_ids("a").tolist()
    dense = DenseIndex(tmp_path, catalog)
    stop, errors = threading.Event(), []

    def search() -> None:
        try:
            while not stop.is_set():
                for place in (3, 11):
                    found = dense.search(fixed_N_D[place], 1, "a")
                    assert found[0][0] == fixed_ids[place]
                    assert found[0][1] == pytest.approx(1, abs=1e-5)
                assert len(dense.search(fixed_N_D[0], 1_000, "a")) >= 20
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(30):
        # lies against the fixed ones, so never nearest
        put(
            catalog,
            "a",
            f"moving {n % 3}",
            -fixed_N_D[3:4] + 0.01 * RANDOM.standard_normal((5, DIMENSION)),
            version=str(n),
        )
        if n % 3 == 2:
            catalog.remove_document("a", "moving 1")
        dense.save()
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    query_D = query()
    agree(dense.search(query_D, 50, "a"), brute(catalog, query_D, 50, "a"))
