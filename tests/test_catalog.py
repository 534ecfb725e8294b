"""The catalog: documents, passages, full text, vectors and its refusals."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hybridqa.catalog import Catalog, PassageDraft, PutResult, Vectors
from hybridqa.errors import (
    CollectionNotFoundError,
    CorruptStoreError,
    DocumentNotFoundError,
    EmbedderMismatchError,
    InputError,
    StorageFullError,
    StoreError,
    StoreNotFoundError,
)
from hybridqa.types import Document

WORDS = 4  # in a passage
DIMENSIONS = 8


def make(
    doc_id: str, text: str, collection: str = "c", title: str = ""
) -> tuple[Document, list[PassageDraft], Vectors]:
    """A document, cut every four words, with vectors that its text decides."""
    drafts: list[PassageDraft] = []
    words = text.split(" ")
    start = 0
    for first in range(0, len(words), WORDS):
        piece = " ".join(words[first : first + WORDS])
        drafts.append(PassageDraft(len(drafts), start, start + len(piece), piece, f"part {len(drafts)}"))
        start += len(piece) + 1
    document = Document(doc_id, collection, title, text, f"hash of {title}|{text}")
    return document, drafts, vectors_of([draft.text for draft in drafts])


def vectors_of(texts: list[str]) -> Vectors:
    seeds = [sum(text.encode()) for text in texts]
    return np.stack([np.random.default_rng(seed).normal(size=DIMENSIONS) for seed in seeds]).astype(np.float32)


def put(catalog: Catalog, doc_id: str, text: str, collection: str = "c", title: str = "") -> PutResult:
    return catalog.put_document(*make(doc_id, text.strip(), collection, title), "embedder")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "store" / "catalog.sqlite3", create=True) as opened:
        yield opened
        assert opened.check() == []


def test_a_document_comes_back_as_it_was_put(catalog: Catalog) -> None:
    document, drafts, vectors_N_D = make("d/é.md", "one two three four five\nsix seven", title="Títle")
    document = replace(document, source="/a", media_type="text/x", metadata={"b": [1, {"ü": None}], "a": 1.5})
    assert catalog.put_document(document, drafts, vectors_N_D, "e1") is PutResult.ADDED
    found = catalog.get_document("c", "d/é.md")
    assert found.added_at == found.updated_at > "2020"
    assert replace(found, added_at="", updated_at="") == document
    assert catalog.find_document("c", "d/é.md") == found
    passages = catalog.document_passages("c", "d/é.md")
    assert [(p.ordinal, p.start, p.end, p.text, p.heading) for p in passages] == [
        (d.ordinal, d.start, d.end, d.text, d.heading) for d in drafts
    ]
    assert {(p.title, p.doc_id, p.collection) for p in passages} == {("Títle", "d/é.md", "c")}
    ids = [p.passage_id for p in passages]
    assert catalog.get_passages([*reversed(ids), 99]) == {p.passage_id: p for p in passages}
    got_ids, got_N_D = catalog.vectors()
    assert got_ids.tolist() == ids
    assert got_ids.dtype == np.int64
    assert got_N_D.dtype == np.float32
    np.testing.assert_array_equal(got_N_D, vectors_N_D)
    [summary] = catalog.list_documents("c")
    assert (summary.doc_id, summary.characters, summary.passages) == ("d/é.md", len(document.text), len(drafts))
    assert (summary.source, summary.content_hash) == ("/a", document.content_hash)


def test_the_same_content_changes_nothing_but_what_is_said_about_it(catalog: Catalog) -> None:
    put(catalog, "d", "one two three")
    before, generation = catalog.document_passages("c", "d"), catalog.generation()
    stamp = catalog.get_document("c", "d").updated_at
    assert put(catalog, "d", "one two three") is PutResult.UNCHANGED
    document, drafts, vectors_N_D = make("d", "one two three")
    document = replace(document, source="/new", metadata={"k": "v"}, media_type="text/markdown")
    assert catalog.put_document(document, drafts, vectors_N_D, "embedder") is PutResult.UNCHANGED
    found = catalog.get_document("c", "d")
    assert (found.source, dict(found.metadata), found.media_type) == ("/new", {"k": "v"}, "text/markdown")
    assert (catalog.document_passages("c", "d"), catalog.generation(), found.updated_at) == (before, generation, stamp)


def test_changed_content_takes_the_place_of_the_old(catalog: Catalog) -> None:
    put(catalog, "d", "alpha beta gamma delta epsilon")
    put(catalog, "e", "omega")
    old, generation = catalog.document_passages("c", "d"), catalog.generation()
    added = catalog.get_document("c", "d").added_at
    assert put(catalog, "d", "zeta eta") is PutResult.REPLACED
    new = catalog.document_passages("c", "d")
    assert [p.text for p in new] == ["zeta eta"]
    assert not {p.passage_id for p in new} & {p.passage_id for p in old}
    assert catalog.generation() > generation
    assert catalog.get_document("c", "d").added_at == added
    assert catalog.search_lexical("c", "alpha", 9) == []
    assert [i for i, _ in catalog.search_lexical("c", "zeta", 9)] == [new[0].passage_id]
    assert len(catalog.vector_ids()) == 2


def test_passage_ids_are_never_given_twice(catalog: Catalog) -> None:
    seen: set[int] = set()
    for number in range(5):
        put(catalog, "d", f"text {number}")
        ids = {p.passage_id for p in catalog.document_passages("c", "d")}
        assert not ids & seen
        seen |= ids
        catalog.remove_document("c", "d")
    assert catalog.get_passages(sorted(seen)) == {}


def test_removal_takes_everything(catalog: Catalog) -> None:
    put(catalog, "d", "secret words here")
    put(catalog, "e", "other words there")
    generation = catalog.generation()
    assert catalog.remove_document("c", "d") == []
    assert catalog.generation() > generation
    assert catalog.find_document("c", "d") is None
    assert catalog.search_lexical("c", "secret", 9) == []
    assert len(catalog.search_lexical("c", "words", 9)) == 1
    assert [s.doc_id for s in catalog.list_documents("c")] == ["e"]
    with pytest.raises(DocumentNotFoundError, match="'d'"):
        catalog.remove_document("c", "d")
    with pytest.raises(DocumentNotFoundError, match="'d'"):
        catalog.get_document("c", "d")
    with pytest.raises(DocumentNotFoundError, match="'d'"):
        catalog.document_passages("c", "d")


def test_a_removed_text_leaves_no_bytes(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite3"
    with Catalog.open(path, create=True) as catalog:
        put(catalog, "kept", "Marimba words stay")
        put(catalog, "d", "Xylophone9Marker " * 200)
        catalog.remove_document("c", "d")
    size = path.stat().st_size
    with Catalog.open(path) as catalog:
        catalog.compact()
        assert catalog.check() == []
        assert len(catalog.search_lexical("c", "marimba", 5)) == 1
    data = path.read_bytes().lower()
    assert b"xylophone9" not in data
    assert b"marimba" in data
    assert len(data) < size


def test_collections_do_not_see_one_another(catalog: Catalog) -> None:
    put(catalog, "d", "shared word alpha", "c")
    put(catalog, "d", "shared word beta", "other")
    assert catalog.list_collections() == ["c", "other"]
    [(mine, score)] = catalog.search_lexical("c", "shared", 9)
    assert [p.passage_id for p in catalog.document_passages("c", "d")] == [mine]
    assert catalog.vector_ids("c").tolist() == [mine]
    assert catalog.search_lexical("c", "beta", 9) == []
    for number in range(20):  # statistics of a word do not leak either
        put(catalog, f"d{number}", "shared word alpha", "other")
    assert catalog.search_lexical("c", "shared", 9) == [(mine, score)]
    catalog.remove_collection("other")
    assert catalog.list_collections() == ["c"]
    assert catalog.vector_ids().tolist() == [mine]
    with pytest.raises(CollectionNotFoundError, match="'other'"):
        catalog.vector_ids("other")
    put(catalog, "x", "beta again", "other")
    assert len(catalog.search_lexical("other", "shared OR beta", 9)) == 1


def test_missing_collections_are_named(catalog: Catalog) -> None:
    for call in (
        lambda: catalog.require_collection("nope"),
        lambda: catalog.list_documents("nope"),
        lambda: catalog.get_document("nope", "d"),
        lambda: catalog.remove_document("nope", "d"),
        lambda: catalog.remove_collection("nope"),
        lambda: catalog.search_lexical("nope", "x", 1),
    ):
        with pytest.raises(CollectionNotFoundError, match=r"'nope'.*hybridqa"):
            call()
    assert catalog.find_document("nope", "d") is None
    assert catalog.document_hashes("nope", ["d"]) == {}
    catalog.create_collection("nope")
    catalog.create_collection("nope")
    catalog.require_collection("nope")
    assert catalog.list_documents("nope") == []


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", ".a", "a\\b", "a\n", " a", "x" * 129, "a\ud800"])
def test_unusable_collection_names_are_refused(catalog: Catalog, name: str) -> None:
    with pytest.raises(InputError):
        catalog.create_collection(name)


def test_search_ranks_stems_and_ignores_accents(catalog: Catalog) -> None:
    put(catalog, "a", "the cat sat quietly")
    put(catalog, "b", "running runs run runner")
    put(catalog, "c", "a café in town")
    put(catalog, "t", "nothing of note", title="Zebra handbook")
    [(run, _)] = catalog.search_lexical("c", '"running"', 5)
    assert catalog.get_passages([run])[run].doc_id == "b"
    assert len(catalog.search_lexical("c", '"cafe"', 5)) == 1
    assert len(catalog.search_lexical("c", '"zebras"', 5)) == 1  # the title counts
    both = catalog.search_lexical("c", '"a" OR "cat" OR "part"', 5)
    assert [score for _, score in both] == sorted((score for _, score in both), reverse=True)
    assert len(catalog.search_lexical("c", '"part"', 2)) == 2
    assert catalog.search_lexical("c", '"part"', 0) == []


@pytest.mark.parametrize("query", ['"', "AND", "", "a b (", "nocolumn:x", "\ud800"])
def test_bad_queries_are_refused(catalog: Catalog, query: str) -> None:
    put(catalog, "a", "the cat sat quietly")
    with pytest.raises(InputError):
        catalog.search_lexical("c", query, 5)


def test_another_embedder_is_refused_until_nothing_is_left(catalog: Catalog) -> None:
    assert catalog.embedder_fingerprint() is None
    assert catalog.vectors()[1].shape == (0, 0)
    put(catalog, "d", "one two")
    assert catalog.embedder_fingerprint() == "embedder"
    with pytest.raises(EmbedderMismatchError, match=r"'embedder'.*'another'"):
        catalog.put_document(*make("e", "three"), "another")
    document, drafts, _ = make("e", "three")
    with pytest.raises(EmbedderMismatchError):
        catalog.put_document(document, drafts, np.ones((1, DIMENSIONS + 1), np.float32), "embedder")
    assert catalog.find_document("c", "e") is None
    catalog.remove_document("c", "d")
    assert catalog.put_document(document, drafts, np.ones((1, 3), np.float32), "another") is PutResult.ADDED
    assert catalog.embedder_fingerprint() == "another"


def test_re_embedding(catalog: Catalog) -> None:
    put(catalog, "d", "one two three four five six")
    put(catalog, "e", "seven", "other")
    generation = catalog.generation()

    def fresh() -> Iterator[tuple[list[int], np.ndarray]]:
        for passages in catalog.iter_passages(batch=1):
            yield [p.passage_id for p in passages], np.full((len(passages), 3), passages[0].passage_id, np.float32)

    catalog.replace_embeddings(fresh(), "new")
    ids, vectors_N_D = catalog.vectors()
    assert vectors_N_D.tolist() == [[i] * 3 for i in ids.tolist()]
    assert catalog.embedder_fingerprint() == "new"
    assert catalog.generation() > generation

    def overtaken() -> Iterator[tuple[list[int], np.ndarray]]:
        yield from fresh()
        catalog.put_document(*make("late", "late")[:2], np.ones((1, 3), np.float32), "new")

    with pytest.raises(StoreError, match="1 passages"):
        catalog.replace_embeddings(overtaken(), "newer")
    with pytest.raises(InputError, match="dimensions"):
        catalog.replace_embeddings([([1], np.ones((1, 3))), ([2], np.ones((1, 4)))], "newer")
    assert catalog.embedder_fingerprint() == "new"
    assert catalog.vectors()[1].shape == (4, 3)


def test_vectors_in_batches(catalog: Catalog) -> None:
    for number in range(7):
        put(catalog, f"d{number}", f"text {number}")
    ids, vectors_N_D = catalog.vectors()
    parts = list(catalog.iter_vectors(batch=3))
    assert [len(part[0]) for part in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), vectors_N_D)
    some = catalog.vectors([int(ids[4]), 10_000, int(ids[1]), int(ids[4])])
    assert some[0].tolist() == [ids[1], ids[4]]
    np.testing.assert_array_equal(some[1], vectors_N_D[[1, 4]])
    iterator = catalog.iter_vectors(batch=1)
    next(iterator)
    iterator.close()
    put(catalog, "later", "an abandoned iterator holds nothing")


def bad_drafts(name: str) -> tuple[Document, list[PassageDraft], np.ndarray]:
    document, drafts, vectors_N_D = make("bad", "one two three four five")
    vectors: np.ndarray = vectors_N_D
    match name:
        case "no passages":
            drafts, vectors = [], np.ones((0, DIMENSIONS))
        case "offsets":
            drafts[1] = replace(drafts[1], start=drafts[1].start - 1)
        case "range":
            drafts[1] = replace(drafts[1], end=999)
        case "empty":
            drafts[1] = replace(drafts[1], end=drafts[1].start, text="")
        case "ordinal":
            drafts.reverse()
        case "count":
            vectors = vectors[:1]
        case "flat":
            vectors = vectors.reshape(-1)
        case "nan":
            vectors[0, 0] = np.nan
        case "metadata":
            document = replace(document, metadata={"x": object()})
        case "metadata nan":
            document = replace(document, metadata={"x": float("nan")})
        case "surrogate":
            document = replace(document, title="\udc80")
        case "heading":
            drafts[0] = replace(drafts[0], heading="\udc80")
        case "id":
            document = replace(document, doc_id=" ")
        case "hash":
            document = replace(document, content_hash="")
        case "collection":
            document = replace(document, collection="a/b")
    return document, drafts, vectors


@pytest.mark.parametrize(
    "name",
    [
        *("no passages", "offsets", "range", "empty", "ordinal", "count", "flat", "nan", "metadata", "metadata nan"),
        *("surrogate", "heading", "id", "hash", "collection"),
    ],
)
def test_what_cannot_be_kept_is_refused_whole(catalog: Catalog, name: str) -> None:
    with pytest.raises(InputError):
        catalog.put_document(*bad_drafts(name), "embedder")
    assert catalog.list_documents() == []
    assert catalog.generation() == 0


def test_a_failure_in_the_middle_undoes_the_whole(catalog: Catalog) -> None:
    put(catalog, "d", "old text here")
    with sqlite3.connect(catalog.path) as other:
        other.execute("CREATE TRIGGER stop BEFORE INSERT ON vectors BEGIN SELECT RAISE(ABORT, 'stop'); END")
    with pytest.raises(StoreError, match="stop"):
        put(catalog, "d", "new text here")
    with sqlite3.connect(catalog.path) as other:
        other.execute("DROP TRIGGER stop")
    other.close()
    assert catalog.get_document("c", "d").text == "old text here"
    assert len(catalog.search_lexical("c", "old", 5)) == 1
    assert put(catalog, "d", "new text here") is PutResult.REPLACED


def test_a_full_database_is_named_and_stays_whole(catalog: Catalog) -> None:
    put(catalog, "d", "first")
    with catalog._database.connection() as connection:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite keeps it at the pages there are
    with pytest.raises(StorageFullError, match="free some space"):
        put(catalog, "e", "word " * 50_000 + "end")
    assert catalog.find_document("c", "e") is None
    with catalog._database.connection() as connection:
        connection.execute("PRAGMA max_page_count = 1073741823")


def test_document_hashes_of_many(catalog: Catalog) -> None:
    put(catalog, "d", "one")
    many = [f"x{number}" for number in range(25_000)]
    assert catalog.document_hashes("c", [*many, "d"]) == {"d": "hash of |one"}
    assert catalog.document_hashes("c", []) == {}


def test_opening(tmp_path: Path) -> None:
    path = tmp_path / "new" / "c.sqlite3"
    with pytest.raises(StoreNotFoundError, match="hybridqa init"):
        Catalog.open(path)
    assert not path.parent.exists()
    Catalog.open(path, create=True).close()
    with Catalog.open(path) as catalog:
        put(catalog, "d", "kept")
    with Catalog.open(path, create=True) as catalog:
        assert catalog.get_document("c", "d").text == "kept"
    catalog.close()
    with pytest.raises(StoreError, match="closed"):
        catalog.list_collections()
    assert [file.name for file in path.parent.iterdir()] == ["c.sqlite3"]  # nothing but the one file when closed
    with pytest.raises(StoreNotFoundError):
        Catalog.open(tmp_path)


def test_files_that_are_no_catalog(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"not a database at all" * 500)
    with pytest.raises(CorruptStoreError, match="garbage"):
        Catalog.open(garbage)
    empty = tmp_path / "empty"
    empty.touch()  # what a kill in the first moment of `init` leaves
    with pytest.raises(StoreNotFoundError, match="hybridqa init"):
        Catalog.open(empty)
    Catalog.open(empty, create=True).close()
    foreign = tmp_path / "foreign"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    for create in (False, True):
        with pytest.raises(CorruptStoreError, match="no hybridqa catalog"):
            Catalog.open(foreign, create=create)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    Catalog.open(path, create=True).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = 99 WHERE key = 'schema_version'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=r"schema 99.*pip install -U"):
        Catalog.open(path)


def test_check_finds_damage_in_pages(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with Catalog.open(path, create=True) as catalog:
        for number in range(50):
            put(catalog, f"d{number}", f"some text {number} " * 40)
    data = bytearray(path.read_bytes())
    for page in range(8, len(data) // 4096 - 2, 5):
        data[page * 4096 : page * 4096 + 2048] = b"\xff" * 2048
    path.write_bytes(data)
    with Catalog.open(path) as damaged:
        assert damaged.check()
        with pytest.raises(CorruptStoreError, match=r"-wal.*put a backup in its place"):
            for summary in damaged.list_documents():
                damaged.document_passages("c", summary.doc_id)
                damaged.get_document("c", summary.doc_id)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM vectors WHERE passage_id = 1", "1 passages have no vector"),
        ("UPDATE vectors SET vector = x'00' WHERE passage_id = 1", "1 vectors are of a wrong length"),
        ("INSERT INTO vectors VALUES (77, zeroblob(32))", "1 vectors have no passage"),
        ("UPDATE passages SET text = 'tampered' WHERE passage_id = 1", "not the document's text"),
        ("UPDATE passages SET text = 'tampered' WHERE passage_id = 1", "full-text index of collection 'c'"),
        ("DELETE FROM passages WHERE passage_id = 1", "1 documents miss passages"),
        ("DELETE FROM documents", "missing row of 'documents'"),
    ],
)
def test_check_finds_what_does_not_fit(tmp_path: Path, statement: str, problem: str) -> None:
    path = tmp_path / "c"
    with Catalog.open(path, create=True) as catalog:
        put(catalog, "d", "one two three four five")
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.commit()
        connection.close()
        assert any(problem in line for line in catalog.check()), catalog.check()


def test_the_full_text_index_can_be_rebuilt(catalog: Catalog) -> None:
    put(catalog, "d", "one two three")
    connection = sqlite3.connect(catalog.path)
    connection.execute("INSERT INTO fts_1 (fts_1) VALUES ('delete-all')")
    connection.commit()
    connection.close()
    assert catalog.search_lexical("c", "two", 5) == []
    assert catalog.check() != []
    catalog.rebuild_full_text()
    assert len(catalog.search_lexical("c", "two", 5)) == 1


def test_threads_share_a_catalog(catalog: Catalog) -> None:
    def work(number: int) -> None:
        for round_number in range(5):
            put(catalog, f"d{number}", f"text {number} {round_number}")
            assert catalog.get_document("c", f"d{number}").text == f"text {number} {round_number}"
            catalog.search_lexical("c", "text", 10)
            catalog.vectors()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(catalog.list_documents("c")) == 8


def test_readers_see_one_state_while_a_writer_writes(catalog: Catalog) -> None:
    put(catalog, "d", "a " * 40 + "0")

    def write() -> None:
        for number in range(1, 25):
            put(catalog, "d", f"{number} " * (10 + number))

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            passages = catalog.document_passages("c", "d")
            assert [p.ordinal for p in passages] == list(range(len(passages)))
            assert len({p.text.split(" ")[0] for p in passages[:-1]}) == 1
            ids, vectors_N_D = catalog.vectors()
            assert len(ids) == len(vectors_N_D) > 0
        writing.result()


def test_a_large_document_is_put_and_read_fast(catalog: Catalog) -> None:
    text = " ".join(f"word{number % 977}" for number in range(300 * 150))
    words = text.split(" ")
    drafts, start = [], 0
    for ordinal in range(300):
        piece = " ".join(words[ordinal * 150 : ordinal * 150 + 150])
        drafts.append(PassageDraft(ordinal, start, start + len(piece), piece))
        start += len(piece) + 1
    vectors_N_D = np.random.default_rng(0).normal(size=(300, 384)).astype(np.float32)
    begin = time.perf_counter()
    catalog.put_document(Document("big", "c", "", text, "h1"), drafts, vectors_N_D, "e")
    catalog.put_document(Document("big", "c", "", text, "h2"), drafts, vectors_N_D, "e")
    assert time.perf_counter() - begin < 2
    begin = time.perf_counter()
    assert len(catalog.get_passages(catalog.vector_ids("c").tolist())) == 300
    assert time.perf_counter() - begin < 0.5


def test_look_ups_use_indexes(catalog: Catalog) -> None:
    """No statement that answering runs scans documents, passages' rows or modules."""
    put(catalog, "d", "one two")
    seen: list[str] = []
    with catalog._database.connection() as connection:
        connection.set_trace_callback(seen.append)
    ids = catalog.vector_ids("c").tolist()
    catalog.get_passages(ids)
    catalog.modules_for_documents("c", ["d"])
    catalog.document_hashes("c", ["d"])
    catalog.vectors(ids)
    with catalog._database.connection() as connection:
        connection.set_trace_callback(None)
        selects = [statement for statement in seen if statement.startswith("SELECT")]
        assert len(selects) >= 5
        for statement in selects:
            plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + statement)]
            scans = [line for line in plan if line.startswith("SCAN") and "json_each" not in line]
            assert scans in ([], ["SCAN collections"]), (statement, plan)


def test_metadata_is_plain_json(catalog: Catalog) -> None:
    document, drafts, vectors_N_D = make("d", "one")
    catalog.put_document(replace(document, metadata={"b": 1, "a": "ü"}), drafts, vectors_N_D, "e")
    connection = sqlite3.connect(catalog.path)
    [(stored,)] = connection.execute("SELECT metadata FROM documents")
    connection.close()
    assert json.loads(stored) == {"a": "ü", "b": 1}
