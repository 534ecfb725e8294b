"""Search end to end: real embedder, real FAISS, real FTS5 on a small invented library."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hybridqa.catalog import Catalog
from hybridqa.errors import CollectionNotFoundError, EmbedderMismatchError, QuestionError
from hybridqa.retrieval.dense import DenseIndex
from hybridqa.retrieval.embedder import Embedder
from hybridqa.retrieval.lexical import LexicalIndex
from hybridqa.retrieval.reembedding import reembed
from hybridqa.retrieval.searcher import Searcher
from hybridqa.types import Filter

LIBRARY = {
    "ferry": [
        "The Orrin ferry leaves the north quay every forty minutes between six in the morning and midnight.",
        "A bicycle travels free on the ferry, but a motorcycle pays half the fare of a car.",
    ],
    "kiln": [
        "Heat the kiln slowly to 600 degrees, then hold it there for two hours before the glaze is fired.",
        "Cracks in a pot come from cooling it too fast: leave the lid shut overnight.",
    ],
    "bees": [
        "In late August the hive is treated against mites with oxalic acid.",
        "A swarm that hangs on a branch is calm and can be shaken into a box.",
    ],
    "printer": ["Error E-4471 means that the drum is worn; order part number KX-902."],
}
QUESTIONS = {
    "How often do boats depart?": ("ferry", 0),
    "Do I have to pay for taking my bike on board?": ("ferry", 1),
    "Why did my ceramic vase split?": ("kiln", 1),
    "How do I get rid of parasites in a beehive?": ("bees", 0),
    "What does E-4471 mean?": ("printer", 0),
    "KX-902": ("printer", 0),
}


PutText = Callable[..., None]


def fill(catalog: Catalog, embedder: Embedder, put_text: PutText) -> None:
    for doc_id, texts in LIBRARY.items():
        written = [embedder.passage_text(doc_id, "", text) for text in texts]
        put_text(catalog, "library", doc_id, texts, embedder.embed_passages(written), embedder.fingerprint)
    text = "Boats depart as often as you like, bicycles ride free, and E-4471 is a fine number."
    put_text(catalog, "another", "lure", [text], embedder.embed_passages([text]), embedder.fingerprint)
    catalog.create_collection("empty")


@pytest.fixture(scope="module")
def library(embedder: Embedder, put_text: PutText, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    path = tmp_path_factory.mktemp("library") / "catalog.sqlite3"
    with Catalog.open(path, create=True) as catalog:
        fill(catalog, embedder, put_text)
        yield catalog


def make(catalog: Catalog, embedder: Embedder) -> Searcher:
    return Searcher(catalog, embedder, DenseIndex(catalog.path.parent, catalog), LexicalIndex(catalog))


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_right_passage_comes_first(question: str, library: Catalog, embedder: Embedder) -> None:
    found = make(library, embedder).search(question, k=4, collection="library")
    assert (found[0].passage.doc_id, found[0].passage.ordinal) == QUESTIONS[question]
    assert found[0].passage.title == found[0].passage.doc_id
    assert len(found) == 4
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)


def test_scores_are_those_of_their_sources(library: Catalog, embedder: Embedder) -> None:
    question = "What does E-4471 mean?"
    query_D = embedder.embed_query(question)
    lexical = dict(LexicalIndex(library).search(question, 50, "library"))
    for found in make(library, embedder).search(question, k=10, collection="library"):
        _, vectors_1_D = library.vectors([found.passage.passage_id])
        assert found.dense == pytest.approx(float(vectors_1_D[0] @ query_D), abs=1e-5)
        assert found.lexical == lexical.get(found.passage.passage_id)


def test_what_words_alone_found_has_its_cosine(embedder: Embedder, put_text: PutText, tmp_path: Path) -> None:
    with Catalog.open(tmp_path / "catalog.sqlite3", create=True) as catalog:
        near_N_D = np.tile(embedder.embed_query("zyzzyva beetles of the tropics"), (60, 1))
        put_text(catalog, "a", "near", [f"text {n}" for n in range(60)], near_N_D, embedder.fingerprint)
        far_D = np.roll(embedder.embed_query("zyzzyva"), 7)
        put_text(catalog, "a", "far", ["The zyzzyva is a weevil."], far_D[None], embedder.fingerprint)
        found = make(catalog, embedder).search("zyzzyva", k=8, collection="a")
        by_words = next(item for item in found if item.passage.doc_id == "far")
        assert by_words.lexical is not None
        assert by_words.dense == pytest.approx(float(far_D @ embedder.embed_query("zyzzyva")), abs=1e-5)


def test_a_collection_sees_itself_alone(library: Catalog, embedder: Embedder) -> None:
    searcher = make(library, embedder)
    assert {item.passage.doc_id for item in searcher.search("E-4471 boats", k=50, collection="another")} == {"lure"}
    assert "lure" not in {item.passage.doc_id for item in searcher.search("E-4471 boats", k=50, collection="library")}
    assert searcher.search("E-4471 boats", k=50, collection="empty") == []


def test_a_filter_holds_for_what_meaning_finds_and_for_what_words_find(library: Catalog, embedder: Embedder) -> None:
    searcher = make(library, embedder)
    for chosen, allowed in (
        (Filter(("kiln", "bees")), {"kiln", "bees"}),
        (Filter(until="2000-01-01"), set()),
        (Filter(), set(LIBRARY)),
    ):
        found = searcher.search("What does E-4471 mean for boats?", k=50, collection="library", filter=chosen)
        assert {item.passage.doc_id for item in found} == allowed
        assert all(item.dense is not None for item in found)
    [first, *_] = searcher.search("E-4471", k=3, collection="library", filter=Filter(("printer",)))
    assert first.passage.doc_id == "printer" and first.lexical is not None


def test_what_cannot_be_searched_is_refused(library: Catalog, embedder: Embedder) -> None:
    searcher = make(library, embedder)
    with pytest.raises(QuestionError, match="empty"):
        searcher.search(" \n", k=4, collection="library")
    with pytest.raises(CollectionNotFoundError, match="'nowhere'"):
        searcher.search("boats", k=4, collection="nowhere")


def test_timings_are_told(library: Catalog, embedder: Embedder) -> None:
    timings: dict[str, float] = {}
    make(library, embedder).search("boats", k=4, collection="library", timings=timings)
    assert set(timings) == {"embed", "dense", "lexical", "fuse"}
    assert all(seconds > 0 for seconds in timings.values())


@pytest.mark.parametrize("question", ["?!", "🦊", 'a "b" AND (c', "x" * 10_000, "boat " * 2_000])
def test_odd_questions_are_answered(question: str, library: Catalog, embedder: Embedder) -> None:
    assert len(make(library, embedder).search(question, k=3, collection="library")) == 3


def test_another_embedder_is_refused_until_the_store_is_embedded_anew(
    embedder: Embedder, embedder_path: Path, put_text: PutText, tmp_path: Path
) -> None:
    copy = tmp_path / "other"
    shutil.copytree(embedder_path, copy)
    (copy / "config_sentence_transformers.json").write_text('{"prompts": {"query": "search: "}}')
    other = Embedder(copy)
    with Catalog.open(tmp_path / "catalog.sqlite3", create=True) as catalog:
        fill(catalog, embedder, put_text)
        searcher = make(catalog, other)
        with pytest.raises(EmbedderMismatchError, match="hybridqa refresh --embeddings"):
            searcher.search("boats", k=4, collection="library")
        seen: list[tuple[int, int]] = []
        assert reembed(catalog, other, lambda done, total: seen.append((done, total))) == 8
        assert seen == [(8, 8)]
        found = searcher.search("How often do boats depart?", k=4, collection="library")
        assert (found[0].passage.doc_id, found[0].passage.ordinal) == ("ferry", 0)
        with pytest.raises(EmbedderMismatchError, match=embedder.fingerprint):
            make(catalog, embedder).search("boats", k=4, collection="library")
        assert catalog.check() == []


def test_reembedding_makes_the_vectors_that_adding_made(embedder: Embedder, put_text: PutText, tmp_path: Path) -> None:
    with Catalog.open(tmp_path / "catalog.sqlite3", create=True) as catalog:
        fill(catalog, embedder, put_text)
        library_ids = catalog.vector_ids("library")
        _, before_N_D = catalog.vectors(library_ids)
        reembed(catalog, embedder)
        _, after_N_D = catalog.vectors(library_ids)
        np.testing.assert_allclose(before_N_D, after_N_D, atol=1e-5)


def test_what_is_added_during_reembedding_is_embedded_too(
    embedder: Embedder, put_text: PutText, tmp_path: Path
) -> None:
    with Catalog.open(tmp_path / "catalog.sqlite3", create=True) as catalog:
        fill(catalog, embedder, put_text)

        def add_late(done: int, total: int) -> None:
            if done == 8:
                text = "added meanwhile"
                put_text(catalog, "library", "late", [text], embedder.embed_passages([text]), embedder.fingerprint)

        assert reembed(catalog, embedder, add_late) == 9
        assert catalog.check() == []


def test_a_passage_that_says_the_same_is_found_once_and_named(
    embedder: Embedder, put_text: PutText, tmp_path: Path
) -> None:
    text, other = "A bicycle travels free on the ferry.", "A bicycle travels for 2 euros on the ferry."
    with Catalog.open(tmp_path / "catalog.sqlite3", create=True) as catalog:
        for doc_id, said in {"a": text, "b": text.upper(), "c": other, "d": text}.items():
            put_text(catalog, "x", doc_id, [said], embedder.embed_passages([said]), embedder.fingerprint)
        found = make(catalog, embedder).search("What does a bicycle pay on the ferry?", k=4, collection="x")
        one = make(catalog, embedder).search("What does a bicycle pay on the ferry?", k=1, collection="x")
    assert sorted(len(item.also) for item in found) == [0, 2]
    assert {item.passage.doc_id for item in found} | {p.doc_id for item in found for p in item.also} == set("abcd")
    assert len(one) == 1


def test_a_document_that_the_question_names_comes_before_one_that_says_the_same_of_itself(
    embedder: Embedder, put_text: PutText, tmp_path: Path
) -> None:
    with Catalog.open(tmp_path / "catalog.sqlite3", create=True) as catalog:
        for site in ("alder.example", "birch.example", "cedar.example"):
            text = f"We keep your address for as long as you have an account with us. Version {ord(site[0])}."
            written = embedder.passage_text(site, "", text)
            put_text(catalog, "x", site, [text], embedder.embed_passages([written]), embedder.fingerprint)
        for site in ("alder.example", "birch.example", "cedar.example"):
            found = make(catalog, embedder).search(f"How long does {site} keep my address?", k=3, collection="x")
            assert found[0].passage.doc_id == site
            assert found[0].title > found[1].title


def test_what_speaks_for_a_passage_is_told(library: Catalog, embedder: Embedder) -> None:
    first = make(library, embedder).search("What does E-4471 mean?", k=1, collection="library")[0]
    assert first.coverage == 1.0  # e, 4471, mean
    assert first.lexical is not None and first.dense is not None
