"""The catalog's rows of modules that are not of a document: kinds, extractors, and collections that share an id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.errors import DocumentNotFoundError, InputError, ModuleNotFoundInStoreError
from hybridqa.types import Document, Module, ModuleKind, ModuleStatus


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.sqlite3", create=True) as opened:
        for collection in ("c", "other"):
            document = Document("d", collection, "", "text", "h1")
            opened.put_document(document, [PassageDraft(0, 0, 4, "text")], np.ones((1, 4), np.float32), "e")
        yield opened
        assert opened.check() == []


def add(
    catalog: Catalog,
    module_id: str,
    kind: ModuleKind = ModuleKind.INSTRUCTIONS,
    *,
    collection: str = "c",
    base: str = "base",
    documents: dict[str, str] | None = None,
    current: bool = True,
) -> Module:
    version = catalog.next_module_version(collection, module_id)
    path = Path("/modules") / collection / module_id / str(version)
    status = ModuleStatus.PUBLISHED
    made = Module(module_id, version, collection, path, documents or {}, base, 8, status, False, kind=kind)
    catalog.add_module(made)
    if current:
        catalog.set_current(collection, module_id, version)
    return catalog.get_module(collection, module_id, version)


@pytest.mark.parametrize("kind", ModuleKind)
def test_every_kind_comes_back_as_it_was_added(catalog: Catalog, kind: ModuleKind) -> None:
    made = add(catalog, "m", kind, documents={"d": "h1"})
    assert made.kind is kind
    assert catalog.list_modules("c") == [made] == [catalog.get_module("c", "m")]
    found = catalog.modules_for_documents("c", ["d"])
    assert found == ([made] if kind is ModuleKind.DOCUMENT else [])
    assert [m.name for m in catalog.remove_document("c", "d")] == ["m@1"]  # it has learned from the document


def test_only_a_document_s_module_must_cover_documents(catalog: Catalog) -> None:
    for kind in ModuleKind:
        if kind is not ModuleKind.DOCUMENT:
            assert add(catalog, kind.value, kind).documents == {}
    with pytest.raises(InputError, match="a document or more"):
        add(catalog, "m", ModuleKind.DOCUMENT)
    with pytest.raises(DocumentNotFoundError, match="'gone'"):
        add(catalog, "n", documents={"gone": "h"})


def test_an_id_is_of_one_kind(catalog: Catalog) -> None:
    add(catalog, "m")
    with pytest.raises(InputError, match=r"'instructions'.*'extractor'"):
        add(catalog, "m", ModuleKind.EXTRACTOR)
    assert [m.name for m in catalog.list_modules("c")] == ["m@1"]
    assert add(catalog, "m", ModuleKind.EXTRACTOR, collection="other").kind is ModuleKind.EXTRACTOR


def test_one_extractor_is_current_for_each_collection_and_base_model(catalog: Catalog) -> None:
    assert catalog.find_extractor("c", "base") is None
    first = add(catalog, "x", ModuleKind.EXTRACTOR)
    elsewhere = add(catalog, "x", ModuleKind.EXTRACTOR, collection="other")
    larger = add(catalog, "y", ModuleKind.EXTRACTOR, base="larger")
    assert catalog.find_extractor("c", "base") == first
    second = add(catalog, "z", ModuleKind.EXTRACTOR)
    assert catalog.find_extractor("c", "base") == second
    assert not catalog.get_module("c", "x", 1).current
    assert catalog.find_extractor("c", "larger") == larger
    assert catalog.find_extractor("other", "base") == elsewhere
    catalog.set_current("c", "x", 1)
    assert catalog.find_extractor("c", "base") == first
    catalog.set_current("c", "x", None)
    assert catalog.find_extractor("c", "base") is None


def test_collections_that_share_an_id_do_not_touch_each_other(catalog: Catalog) -> None:
    mine, theirs = add(catalog, "style"), add(catalog, "style", collection="other")
    assert mine.name != theirs.name
    add(catalog, "style", collection="other")
    catalog.set_current("other", "style", None)
    assert catalog.get_module("c", "style") == mine
    assert [m.version for m in catalog.remove_versions("other", "style")] == [2, 3]
    assert catalog.list_modules() == [mine]
    assert catalog.list_garbage() == [Path("/modules/other/style/2"), Path("/modules/other/style/3")]
    with pytest.raises(ModuleNotFoundInStoreError, match="no module 'style'; "):
        catalog.remove_versions("other", "style")
