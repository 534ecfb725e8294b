"""Filters: what they refuse, and what passes in a real catalog, against a plain loop over the documents."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridqa import Filter
from hybridqa.answering.options import check_values
from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.errors import CollectionNotFoundError, InputError, QuestionError
from hybridqa.retrieval.dense import DenseIndex
from hybridqa.retrieval.lexical import LexicalIndex
from hybridqa.types import Document

WORDS = ("fox", "hedge", "river", "stone")
KEYS = ["team", "a.b", 'quo"te', "$.x", "back\\slash", "'; DROP TABLE documents; --", "naïve 日本", ""]
VALUES: list[Any] = [1, 1.0, True, 0, False, None, "1", "x", "'", [1, 2], [1.0, 2], {"k": True}, {"k": 1}, 2**70, 0.1]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog.open(tmp_path / "catalog.sqlite3", create=True)
    yield made
    made.close()


def put(catalog: Catalog, doc_id: str, collection: str = "c", **metadata: Any) -> None:
    """A document of two passages of one word each."""
    number = len(catalog.list_documents())
    words = WORDS[number % 4], WORDS[(number + 1) % 4]
    drafts = [PassageDraft(0, 0, len(words[0]), words[0])]
    drafts.append(PassageDraft(1, len(words[0]) + 1, len(" ".join(words)), words[1]))
    vectors_N_D = np.random.default_rng(number).standard_normal((2, 4)).astype(np.float32)
    document = Document(doc_id, collection, "", " ".join(words), doc_id, metadata=metadata)
    catalog.put_document(document, drafts, vectors_N_D, "e")


def passing(catalog: Catalog, chosen: Filter, collection: str = "c") -> set[str]:
    ids = catalog.passing_ids(collection, chosen)
    assert ids.dtype == np.int64 and ids.tolist() == sorted(set(ids.tolist()))
    found = catalog.get_passages(ids.tolist()).values()
    names = {passage.doc_id for passage in found}
    assert len(ids) == 2 * len(names)  # whole documents
    everything = [document.doc_id for document in catalog.list_documents(collection)]
    assert catalog.passing_doc_ids(collection, [*everything, "nobody's"], chosen) == names
    return names


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"doc_ids": "report.pdf"}, "doc_ids='report.pdf'"),
        ({"doc_ids": (1, 2)}, r"doc_ids=\(1, 2\)"),
        ({"doc_ids": 3}, "doc_ids=3"),
        ({"metadata": "team"}, "metadata='team'"),
        ({"metadata": {1: 2}}, "metadata="),
        ({"metadata": {"x": float("nan")}}, "metadata="),
        ({"metadata": {"x": object()}}, "metadata="),
        ({"since": "yesterday"}, "since='yesterday' is no date; expected ISO 8601"),
        ({"until": "2031-13-01"}, "until='2031-13-01'"),
        ({"until": 2031}, "until=2031"),
        ({"since": ""}, "since=''"),
    ],
)
def test_what_nothing_can_be_compared_with_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Filter(**wrong)


def test_a_question_takes_a_filter_and_nothing_else() -> None:
    check_values("Who?", {"filter": Filter(("a",))})
    with pytest.raises(QuestionError, match="filter='a'"):
        check_values("Who?", {"filter": "a"})  # type: ignore[typeddict-item]


def test_an_empty_filter_lets_everything_pass(catalog: Catalog) -> None:
    put(catalog, "a")
    put(catalog, "b", team="x")
    assert Filter().is_open
    assert not Filter(()).is_open
    assert passing(catalog, Filter()) == {"a", "b"}
    assert passing(catalog, Filter(())) == set()


def test_a_filter_stays_in_its_collection(catalog: Catalog) -> None:
    put(catalog, "a", team="x")
    put(catalog, "a", "other", team="x")
    put(catalog, "b", "other", team="x")
    for chosen in (Filter(), Filter(("a", "b")), Filter(metadata={"team": "x"}), Filter(since="2000-01-01")):
        assert passing(catalog, chosen) == {"a"}
    with pytest.raises(CollectionNotFoundError, match="'nowhere'"):
        catalog.passing_ids("nowhere", Filter())


def test_a_query_that_fails_leaves_no_filter_behind(catalog: Catalog) -> None:
    put(catalog, "a", team="x")
    put(catalog, "b")
    for _ in range(2):
        with pytest.raises(InputError, match="no FTS5 query"):
            catalog.search_lexical("c", 'bad" AND (', 9, Filter(metadata={"team": "x"}))
        assert len(catalog.search_lexical("c", '"hedge"', 9)) == 2
        assert len(catalog.search_lexical("c", '"hedge"', 9, Filter(metadata={"team": "x"}))) == 1
    with pytest.raises(InputError, match="lone surrogate"):
        catalog.passing_ids("c", Filter(("\ud800",)))


@pytest.mark.parametrize("key", KEYS)
def test_any_key_is_a_key_and_never_code(catalog: Catalog, key: str) -> None:
    put(catalog, "with", **{key: "here"})
    put(catalog, "without", **{key + "?": "here", "other": {key: "here"}})
    assert passing(catalog, Filter(metadata={key: "here"})) == {"with"}
    assert passing(catalog, Filter(metadata={key: ["there", "here"]})) == {"with"}
    assert passing(catalog, Filter((key, "'; --", "with"))) == {"with"}
    assert catalog.check() == []


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_are_equal_as_json_has_them(catalog: Catalog, value: Any) -> None:
    for number, other in enumerate(VALUES):
        put(catalog, str(number), v=other)
    same = {str(number) for number, other in enumerate(VALUES) if form(other) == form(value)}
    assert passing(catalog, Filter(metadata={"v": [value]})) == same
    if not isinstance(value, list):
        assert passing(catalog, Filter(metadata={"v": value})) == same


def test_dates_are_the_documents_own_or_those_of_its_last_change(catalog: Catalog) -> None:
    today = datetime.now(UTC).date()
    dates = {
        "day": "2031-03-08",
        "noon": "2031-03-08T12:00",
        "east": "2031-03-09T00:30:00+02:00",  # still the 8th in UTC
        "later": "2031-03-09",
        "words": "in spring 2031",
        "number": 20310308,
    }
    for name, text in dates.items():
        put(catalog, name, date=text)
    put(catalog, "none")
    undated = {"words", "number", "none"}
    assert passing(catalog, Filter(since="2031-03-08", until="2031-03-08")) == {"day", "noon", "east"}
    assert passing(catalog, Filter(since="2031-03-08T12:00Z", until="2031-03-09")) == {"noon", "east", "later"}
    assert passing(catalog, Filter(since="2031-03-08T12:00:00.000001")) == {"east", "later"}
    assert passing(catalog, Filter(until="2031-03-08T00:00")) == {"day"} | undated
    assert (
        passing(catalog, Filter(since=f"{today - timedelta(days=1)}", until=f"{today + timedelta(days=1)}")) == undated
    )
    assert passing(catalog, Filter(until="0001-01-01")) == set()
    assert passing(catalog, Filter(until="9999-12-31")) == set(dates) | {"none"}


METADATA = st.dictionaries(st.sampled_from([*KEYS[:4], "date"]), st.sampled_from([*VALUES, "2031-03-08"]), max_size=3)
DATES = st.none() | st.sampled_from(["2020-01-01", "2031-03-07", "2031-03-08", "2031-03-08T10:00", "2040-01-01"])
FILTERS = st.builds(
    Filter,
    st.none() | st.lists(st.sampled_from([f"d{n}" for n in range(9)]), max_size=6).map(tuple),
    st.dictionaries(
        st.sampled_from(KEYS[:4]), st.sampled_from(VALUES) | st.lists(st.sampled_from(VALUES), max_size=3), max_size=2
    ),
    DATES,
    DATES,
)


def fits(document: Document, chosen: Filter) -> bool:
    """The same, said again in another way: values by their JSON, times by their text in UTC."""
    for key, wanted in chosen.metadata.items():
        options = [form(value) for value in (wanted if isinstance(wanted, list) else [wanted])]
        if key not in document.metadata or form(document.metadata[key]) not in options:
            return False
    when = document.metadata.get("date")
    when = in_utc(when if when == "2031-03-08" else document.updated_at)
    early = chosen.since is not None and when < in_utc(chosen.since)
    late = chosen.until is not None and when > in_utc(chosen.until + ("T23:59:59" if len(chosen.until) == 10 else ""))
    return not early and not late and (chosen.doc_ids is None or document.doc_id in chosen.doc_ids)


def form(value: Any) -> str:
    return json.dumps(value, sort_keys=True).replace(".0", "")


def in_utc(text: str) -> str:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()[:19]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(METADATA, min_size=1, max_size=8), st.lists(FILTERS, min_size=1, max_size=4), st.integers(1, 20))
def test_filtered_search_is_brute_force_over_what_passes(
    documents: list[dict[str, Any]], filters: list[Filter], k: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, Catalog.open(Path(folder) / "c.sqlite3", create=True) as catalog:
        for number, metadata in enumerate(documents):
            put(catalog, f"d{number}", **metadata)
            put(catalog, f"d{number}", "other", **metadata)
        dense, lexical = DenseIndex(Path(folder), catalog), LexicalIndex(catalog)
        listed = DenseIndex(Path(folder) / "lists", catalog, lists_from=1)
        query_D = np.full(4, 0.5, np.float32)
        ranked = dense.search(query_D, 1_000, "c")
        words = lexical.search("fox river", 1_000, "c")
        for chosen in filters:
            names = {f"d{n}" for n in range(len(documents)) if fits(catalog.get_document("c", f"d{n}"), chosen)}
            assert passing(catalog, chosen) == names
            only = catalog.passing_ids("c", chosen)
            mine = {p.passage_id for name in names for p in catalog.document_passages("c", name)}
            expected = [pair for pair in ranked if pair[0] in mine][:k]
            for index in (dense, listed):  # what passes is less than a search of lists compares
                found = index.search(query_D, k, "c", only=only)
                assert [i for i, _ in found] == [i for i, _ in expected]
                assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)
            by_words = lexical.search("fox river", 1_000, "c", chosen)
            assert dict(by_words) == {i: score for i, score in words if i in mine}
            top = lexical.search("fox river", k, "c", chosen)
            assert [score for _, score in top] == sorted((score for _, score in by_words), reverse=True)[:k]
