"""The library: what becomes of names, titles, headings and metadata on their way into the catalog."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridqa.catalog import Catalog, PutResult
from hybridqa.errors import InputError, UnreadableDocumentError
from hybridqa.ingest.library import Library
from hybridqa.retrieval.embedder import Embedder

GUIDE = "# Guide\n\nSetup\n\nTurn the key.\n\n## Use\n\nPress it.\n"


@pytest.fixture(scope="module")
def embedder(embedder_path: Path) -> Embedder:
    return Embedder(embedder_path)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.sqlite3", create=True) as opened:
        yield opened


@pytest.fixture
def library(catalog: Catalog, embedder: Embedder) -> Library:
    return Library(catalog, embedder, passage_tokens=50, max_bytes=1_000_000)


def doc_ids(catalog: Catalog) -> list[str]:
    return [document.doc_id for document in catalog.list_documents()]


@pytest.mark.parametrize(
    "name", ["m\u202fpm.txt", "m\xa0n.txt", "m\u200bn.txt", "m\nn.txt", os.fsdecode(b"caf\xe9.txt")]
)
def test_one_unusable_name_costs_no_other_file(library: Library, catalog: Catalog, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for each in ("a.txt", name, "z.txt"):
        (folder / each).write_text("Alpha is here.")
    with pytest.raises(InputError, match="printable"):
        library.add_path(folder)
    assert doc_ids(catalog) == ["a.txt", "z.txt"]


def test_a_name_that_is_no_utf_8(library: Library, catalog: Catalog, tmp_path: Path) -> None:
    """As a file's with an id of its own, and as the folder's of another file."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9"))
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("Coffee is here.")
    (folder / "good.txt").write_text("Good is here.")
    library.add_path(folder / os.fsdecode(b"caf\xe9.txt"), doc_id="coffee")
    library.add_path(folder / "good.txt")
    coffee, good = catalog.get_document("default", "coffee"), catalog.get_document("default", "good.txt")
    assert (coffee.title, coffee.source) == ("caf\ufffd", f"{tmp_path}/d\ufffd/caf\ufffd.txt")
    assert good.source == f"{tmp_path}/d\ufffd/good.txt"


def test_a_text_in_place_of_a_path(library: Library) -> None:
    with pytest.raises(UnreadableDocumentError, match="too long"):
        library.add_path(Path("word " * 100))


def test_a_closed_folder_is_named_and_costs_no_other_file(
    library: Library, catalog: Catalog, open_folder: Path
) -> None:
    (open_folder / "a.txt").write_text("Alpha is here.")
    (open_folder / "closed").mkdir(0o000)
    with pytest.raises(UnreadableDocumentError, match=r"closed.*Permission denied"):
        library.add_path(open_folder)
    assert doc_ids(catalog) == ["a.txt"]


def test_titles_are_one_line_of_valid_text(library: Library, catalog: Catalog) -> None:
    library.add_text("d", "Alpha is here.", title="\ud800One\n  two\x85three ")
    assert catalog.get_document("default", "d").title == "One two three"
    assert library.add_text("d", "Alpha is here.", title="One two three").result is PutResult.UNCHANGED


@pytest.mark.parametrize("collection", ["\udcff", "a/b"])
def test_a_collection_that_cannot_be_is_refused(library: Library, collection: str) -> None:
    with pytest.raises(InputError, match="cannot name a collection"):
        library.add_text("d", "Alpha is here.", collection=collection)


def test_a_heading_made_of_a_line_is_a_change(library: Library, catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "guide.md"
    path.write_text(GUIDE)
    library.add_path(path)
    assert library.add_path(path)[0].result is PutResult.UNCHANGED
    before = [passage.heading for passage in catalog.document_passages("default", "guide.md")]
    path.write_text(GUIDE.replace("\nSetup", "\n## Setup"))
    assert library.add_path(path)[0].result is PutResult.REPLACED
    assert [passage.heading for passage in catalog.document_passages("default", "guide.md")] != before


def test_a_new_version_keeps_its_metadata_where_none_is_given(library: Library, catalog: Catalog) -> None:
    for text, given, kept in (("one", {"v": 1}, {"v": 1}), ("two", None, {"v": 1}), ("three", {}, {})):
        library.add_text("d", text, metadata=given)
        assert catalog.get_document("default", "d").metadata == kept


def test_new_metadata_and_source_of_the_same_text_are_kept(library: Library, catalog: Catalog, tmp_path: Path) -> None:
    for folder, metadata in (("one", {"v": 1}), ("two", {"v": 2}), ("three", None)):
        path = tmp_path / folder / "n.txt"
        path.parent.mkdir()
        path.write_text("Same text.")
        [result] = library.add_path(path, metadata=metadata)
        document = catalog.get_document("default", "n.txt")
        assert document.metadata == (metadata or {"v": 2})
        assert document.source == str(path)
    assert result.result is PutResult.UNCHANGED


def test_a_title_without_end_is_refused(library: Library, catalog: Catalog) -> None:
    with pytest.raises(InputError, match=r"'xxx.*'a'.*5,000 characters"):
        library.add_text("a", "Words.", title="x" * 5_000)
    assert doc_ids(catalog) == []
    library.add_text("a", "Words.", title="x" * 1_000)
    assert len(catalog.get_document("default", "a").title) == 1_000
