"""Searching onward from what was found: a real embedder, FAISS and FTS5 on an invented library of several steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from hybridqa.catalog import Catalog
from hybridqa.retrieval.dense import DenseIndex
from hybridqa.retrieval.embedder import Embedder
from hybridqa.retrieval.hops import BRIDGES, Trail
from hybridqa.retrieval.lexical import LexicalIndex
from hybridqa.retrieval.searcher import Searcher
from hybridqa.types import Filter, Passage, ScoredPassage

QUESTION = "Who directed the film that was shot in Tolmere?"
LIBRARY = {
    "Tolmere": "Tolmere is a harbour town. Several works were made there, among them Iron Tide.",
    "Iron Tide": "Iron Tide is a tale of the sea by Pavla Renn. Its cast came from Oskvar.",
    "Pavla Renn": "Pavla Renn was born in Veldmoor and studied the cello.",
    **{
        f"Cinema of {place}": f"The cinema of {place} shows a film every {day}."
        for place, day in zip(
            ("Arden", "Brusk", "Corvin", "Delf", "Esker", "Falm", "Gorse"),
            ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
            strict=True,
        )
    },
}
PutText = Callable[..., None]


@pytest.fixture(scope="module")
def library(embedder: Embedder, put_text: PutText, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    with Catalog.open(tmp_path_factory.mktemp("hops") / "catalog.sqlite3", create=True) as catalog:
        for collection, names in (("library", list(LIBRARY)), ("another", ["Iron Tide", "Pavla Renn"])):
            for name in names:
                vectors = embedder.embed_passages([embedder.passage_text(name, "", LIBRARY[name])])
                put_text(catalog, collection, name, [LIBRARY[name]], vectors, embedder.fingerprint)
        yield catalog


@pytest.fixture(scope="module")
def searcher(library: Catalog, embedder: Embedder) -> Searcher:
    return Searcher(library, embedder, DenseIndex(library.path.parent, library), LexicalIndex(library))


def names(found: list[ScoredPassage]) -> list[str]:
    return [scored.passage.doc_id for scored in found]


def passage(number: int, title: str, text: str) -> Passage:
    return Passage(number, title, "library", 0, 0, len(text), text, title)


def scored(number: int, title: str, text: str, score: float) -> ScoredPassage:
    return ScoredPassage(passage(number, title, text), score)


def test_a_second_search_finds_what_the_first_find_names(searcher: Searcher) -> None:
    once = searcher.search(QUESTION, k=10, collection="library")
    timings: dict[str, float] = {}
    trail = Trail(QUESTION)
    twice = searcher.search(QUESTION, k=10, collection="library", hops=2, trail=trail, timings=timings)
    assert twice[0].passage == once[0].passage
    assert names(twice).index("Iron Tide") < names(once).index("Iron Tide")
    assert names(twice)[:2] == ["Tolmere", "Iron Tide"]
    assert [item.score for item in twice] == sorted((item.score for item in twice), reverse=True)
    assert timings["hops"] > 0
    [hop] = trail.hops
    assert [bridge.name for bridge in hop] == names(once)[:BRIDGES]
    assert "iron tide" in hop[0].query and "directed film shot" in hop[0].query and "tolmere" not in hop[0].query


def test_a_third_search_goes_on_from_what_the_second_found(searcher: Searcher) -> None:
    trail = Trail(QUESTION)
    twice = searcher.search(QUESTION, k=10, collection="library", hops=2)
    thrice = searcher.search(QUESTION, k=10, collection="library", hops=3, trail=trail)
    assert "Iron Tide" in [bridge.name for bridge in trail.hops[1]]
    assert names(thrice).index("Pavla Renn") < names(twice).index("Pavla Renn")
    assert thrice[0].passage == twice[0].passage


def test_one_search_is_what_it_was(searcher: Searcher) -> None:
    trail = Trail(QUESTION)
    timings: dict[str, float] = {}
    once = searcher.search(QUESTION, k=4, collection="library", hops=1, trail=trail, timings=timings)
    assert once == searcher.search(QUESTION, k=4, collection="library")
    assert trail.hops == [] and trail.notes() == () and "hops" not in timings
    assert all(item.linked == 0 for item in once)


def test_a_hop_leaves_neither_the_collection_nor_the_filter(searcher: Searcher) -> None:
    only = Filter(doc_ids=("Tolmere", "Pavla Renn"))
    assert set(names(searcher.search(QUESTION, k=8, collection="library", hops=3, filter=only))) == set(
        only.doc_ids or ()
    )
    other = searcher.search(QUESTION, k=8, collection="another", hops=3)
    assert {item.passage.collection for item in other} == {"another"} and len(other) == 2


def test_hops_end_where_nothing_leads_on(searcher: Searcher) -> None:
    trail = Trail(QUESTION)
    found = searcher.search(QUESTION, k=20, collection="another", hops=9, trail=trail)
    assert len(found) == 2 and len(trail.hops) == 1
    silent = Trail("Who is Pavla Renn?")
    assert silent.lead_on([scored(1, "Pavla Renn", "Who is Pavla Renn?", 9.0)]) == () and silent.hops == []
    assert Trail(QUESTION).lead_on([]) == ()


def test_the_first_stays_first_and_a_title_that_is_named_whole_counts_most() -> None:
    found = [
        scored(1, "Tolmere", LIBRARY["Tolmere"], 9.0),
        scored(2, "Iron Tide", LIBRARY["Iron Tide"], 6.0),
        scored(3, "Iron ore (1870)", "Iron ore is dug in the hills.", 6.0),
        scored(4, "Cello", "A cello has four strings.", 6.0),
        scored(5, "Iron Tide (film)", "A remake.", 6.0),
    ]
    trail = Trail(QUESTION)
    assert [bridge.passage.passage_id for bridge in trail.lead_on(found)] == [1, 2]
    ranked = trail.weigh(found)
    assert ranked[0].passage.passage_id == 1
    linked = {one.passage.passage_id: one.linked for one in ranked}
    assert linked[2] > linked[3] > linked[4] >= 0
    assert linked[5] > linked[3]  # what stands in brackets behind a title tells it from others, and is not said
    assert trail.notes() == ("hop 2: searched with what 'Tolmere' and 'Iron Tide' say",)


def test_a_document_does_not_lead_to_itself_by_its_own_title() -> None:
    text = "Iron Tide was shown in Oskvar."
    bridge = ScoredPassage(Passage(1, "a", "library", 0, 0, 30, text, "The Tide"), 9.0)
    own = ScoredPassage(Passage(2, "a", "library", 1, 30, 60, "More of it.", "Iron Tide"), 5.0)
    other = ScoredPassage(Passage(3, "b", "library", 0, 0, 11, "More of it.", "Iron Tide"), 5.0)
    trail = Trail("What was shown there?")
    trail.lead_on([bridge])
    linked = {one.passage.passage_id: one.linked for one in trail.weigh([bridge, own, other])}
    assert linked[2] == 0 and linked[3] > 2 and linked[1] == 0


def test_texts_without_words_or_titles_do_no_harm() -> None:
    found = [
        ScoredPassage(Passage(n, f"d{n}", "c", 0, 0, 3, text), 5.0 - n) for n, text in enumerate(("…", "北京", "?"))
    ]
    trail = Trail("?")
    hop = trail.lead_on(found)
    assert [bridge.name for bridge in hop] == ["d1"]
    assert trail.notes() == ("hop 2: searched with what 'd1' says",)
    assert [one.passage.doc_id for one in trail.weigh(found)] == ["d0", "d1", "d2"]
