"""The catalog's module rows, versions, the current pointer and garbage."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.errors import (
    CollectionNotFoundError,
    DocumentNotFoundError,
    InputError,
    ModuleNotFoundInStoreError,
    StoreError,
)
from hybridqa.types import Document, Module, ModuleStatus


def put(catalog: Catalog, doc_id: str, text: str = "text", collection: str = "c") -> None:
    document = Document(doc_id, collection, "", text, f"hash-{text}")
    catalog.put_document(document, [PassageDraft(0, 0, len(text), text)], np.ones((1, 4), np.float32), "e")


def module(catalog: Catalog, module_id: str, *doc_ids: str, collection: str = "c", version: int = 0) -> Module:
    version = version or catalog.next_module_version(collection, module_id)
    return Module(
        module_id=module_id,
        version=version,
        collection=collection,
        path=MODULES / collection / module_id / f"v{version:04d}",
        documents=catalog.document_hashes(collection, doc_ids),
        base_model_hash="base",
        rank=16,
        status=ModuleStatus.PUBLISHED,
        current=False,
        metrics={"gain": 0.5, "by": [1, 2]},
    )


MODULES = Path("/store/modules")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.sqlite3", create=True, module_dir=MODULES) as opened:
        for doc_id in ("d", "e", "f"):
            put(opened, doc_id)
        put(opened, "d", collection="other")
        yield opened
        assert opened.check() == []


def test_a_module_comes_back_as_it_was_added(catalog: Catalog) -> None:
    given = module(catalog, "m", "d", "e")
    added = catalog.add_module(given)
    assert added.created_at > "2020"
    assert replace(added, created_at="") == given
    assert catalog.list_modules("c") == [added]
    assert catalog.get_module("c", "m", 1) == added
    assert catalog.list_modules(current_only=True) == []
    with pytest.raises(ModuleNotFoundInStoreError, match=r"'m'.*current"):
        catalog.get_module("c", "m")
    with pytest.raises(CollectionNotFoundError):
        catalog.list_modules("nope")


def test_paths_follow_a_store_that_moves(catalog: Catalog, tmp_path: Path) -> None:
    catalog.add_module(module(catalog, "m", "d"))
    catalog.add_module(replace(module(catalog, "far", "d"), path=Path("/elsewhere/far")))
    catalog.add_garbage([MODULES / "c" / "old"])
    with Catalog.open(catalog.path, module_dir=Path("/moved")) as moved:
        assert moved.get_module("c", "m", 1).path == Path("/moved/c/m/v0001")
        assert moved.get_module("c", "far", 1).path == Path("/elsewhere/far")
        assert moved.list_garbage() == [Path("/moved/c/old")]


def test_the_pointer_moves_between_versions(catalog: Catalog) -> None:
    for _ in range(3):
        catalog.add_module(module(catalog, "m", "d"))
    catalog.add_module(module(catalog, "n", "e"))
    catalog.set_current("c", "n", 1)
    for version in (1, 3, 2):
        catalog.set_current("c", "m", version)
        assert catalog.get_module("c", "m").version == version
        assert [m.name for m in catalog.list_modules(current_only=True)] == [f"m@{version}", "n@1"]
        assert [m.name for m in catalog.modules_for_documents("c", ["d"])] == [f"m@{version}"]
    catalog.set_current("c", "m", None)
    assert [m.name for m in catalog.list_modules("c", current_only=True)] == ["n@1"]
    assert catalog.modules_for_documents("c", ["d"]) == []
    for collection, module_id, version in (("c", "m", 4), ("c", "x", 1), ("other", "m", 1), ("c", "x", None)):
        with pytest.raises(ModuleNotFoundInStoreError, match=repr(module_id)):
            catalog.set_current(collection, module_id, version)


def test_a_rejected_version_never_gets_into_service(catalog: Catalog) -> None:
    catalog.add_module(replace(module(catalog, "m", "d"), status=ModuleStatus.REJECTED))
    with pytest.raises(InputError, match=r"'m@1'.*rejected"):
        catalog.set_current("c", "m", 1)
    assert catalog.get_module("c", "m", 1).status is ModuleStatus.REJECTED
    assert catalog.modules_for_documents("c", ["d"]) == []


def test_modules_are_found_by_document_within_the_collection(catalog: Catalog) -> None:
    for module_id, documents, collection in (("m", ("d", "e"), "c"), ("n", ("f",), "c"), ("o", ("d",), "other")):
        catalog.add_module(module(catalog, module_id, *documents, collection=collection))
        catalog.set_current(collection, module_id, 1)
    assert [m.name for m in catalog.modules_for_documents("c", ["d", "e"])] == ["m@1"]
    assert [m.name for m in catalog.modules_for_documents("c", ["f", "e"])] == ["m@1", "n@1"]
    assert [m.name for m in catalog.modules_for_documents("other", ["d", "e", "f"])] == ["o@1"]
    assert catalog.modules_for_documents("c", ["x"]) == []
    assert catalog.modules_for_documents("nope", ["d"]) == []
    found = catalog.modules_for_documents("c", [f"x{number}" for number in range(25_000)] + ["d", "e"])
    assert [m.name for m in found] == ["m@1"]


def test_a_changed_document_makes_its_module_stale_and_keeps_it(catalog: Catalog) -> None:
    catalog.add_module(module(catalog, "m", "d"))
    catalog.set_current("c", "m", 1)
    put(catalog, "d", "new text")
    [found] = catalog.modules_for_documents("c", ["d"])
    assert dict(found.documents) == {"d": "hash-text"}
    assert catalog.document_hashes("c", ["d"]) == {"d": "hash-new text"}


def test_removing_a_document_takes_its_modules(catalog: Catalog) -> None:
    first, second = (catalog.add_module(module(catalog, "m", "d", "e")) for _ in range(2))
    kept = catalog.add_module(module(catalog, "n", "f"))
    catalog.set_current("c", "m", 2)
    removed = catalog.remove_document("c", "d")
    assert removed == [first, replace(second, current=True)]
    assert catalog.list_modules() == [kept]
    assert catalog.list_garbage() == [first.path, second.path]
    assert catalog.next_module_version("c", "m") == 3
    put(catalog, "d")
    assert catalog.modules_for_documents("c", ["d", "e"]) == []


def test_a_module_of_a_removed_document_is_not_taken_in(catalog: Catalog) -> None:
    given = module(catalog, "m", "d", "e")
    catalog.remove_document("c", "e")
    with pytest.raises(DocumentNotFoundError, match="'e'"):
        catalog.add_module(given)
    assert catalog.list_modules() == []


def test_a_version_is_added_once(catalog: Catalog) -> None:
    given = catalog.add_module(module(catalog, "m", "d", version=7))
    with pytest.raises(StoreError, match="'m@7'"):
        catalog.add_module(given)
    assert catalog.next_module_version("c", "m") == 8
    for bad in (replace(given, version=0), replace(given, version=9, documents={})):
        with pytest.raises(InputError):
            catalog.add_module(bad)
    with pytest.raises(InputError, match="metrics"):
        catalog.add_module(replace(given, version=9, metrics={"x": float("inf")}))


def test_versions_outlive_collections(catalog: Catalog) -> None:
    catalog.add_module(module(catalog, "m", "d"))
    assert [m.name for m in catalog.remove_collection("c")] == ["m@1"]
    assert catalog.list_garbage() == [MODULES / "c" / "m" / "v0001"]
    put(catalog, "d")
    assert catalog.next_module_version("c", "m") == 2
    with pytest.raises(CollectionNotFoundError):
        catalog.next_module_version("nope", "m")


def test_versions_reserved_at_once_differ(catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: catalog.next_module_version("c", "m"), range(40)))
    assert sorted(versions) == list(range(1, 41))


def test_one_version_can_be_removed(catalog: Catalog) -> None:
    first, second = (catalog.add_module(module(catalog, "m", "d")) for _ in range(2))
    assert catalog.remove_module("c", "m", 1) == first
    assert catalog.list_modules() == [second]
    assert catalog.list_garbage() == [first.path]
    with pytest.raises(ModuleNotFoundInStoreError):
        catalog.remove_module("c", "m", 1)


def test_garbage_is_noted_once_and_forgotten(catalog: Catalog) -> None:
    paths = [MODULES / "a", MODULES / "b", Path("/else/c")]
    catalog.add_garbage(paths)
    catalog.add_garbage(paths[:1])
    assert catalog.list_garbage() == sorted(paths)
    catalog.drop_garbage([paths[0], Path("/unknown")])
    assert catalog.list_garbage() == sorted(paths[1:])
