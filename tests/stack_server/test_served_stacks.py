"""Which stacks a server has, without a server: collections, stores that cannot be written or read, damage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stock import ModuleStore

from hybridqa.config import Settings
from hybridqa.errors import InputError
from hybridqa.models import ModelFolder
from hybridqa.modules.stacks import StackCache
from hybridqa.stack_server.names import name_of, read_about
from hybridqa.stack_server.served import ServedStacks
from hybridqa.types import ModuleChoice


@pytest.fixture
def store(tmp_path: Path, tiny_model: ModelFolder, make_adapter: Callable[..., Path]) -> ModuleStore:
    made = ModuleStore(tmp_path / "store", tiny_model, make_adapter)
    made.catalog.create_collection("other")
    return made


@pytest.fixture
def serve(store: ModuleStore) -> Iterator[Callable[..., ServedStacks]]:
    opened: list[ServedStacks] = []

    def call(**settings: Any) -> ServedStacks:
        opened.append(ServedStacks(Settings.load(store.folder, **settings)))
        return opened[-1]

    yield call
    for each in opened:
        each.close()


def test_a_collection_is_served_where_it_is_named(store: ModuleStore, serve: Callable[..., ServedStacks]) -> None:
    here, there = store.publish("a"), store.publish("b", collection="other")
    names = {f"stack:{here.name}": "default", f"stack:other/{there.name}": "other"}
    for allowed in (["default"], ["other"], ["*"], ["default", "other"], []):
        served = serve(stack_collections=allowed)
        for name, collection in names.items():
            found = served.find(str(store.model.path), name, 64)
            assert (found is not None) == (collection in allowed or allowed == ["*"])
            assert found is None or found.name == name


def test_both_names_of_a_stack_are_one_folder(store: ModuleStore, serve: Callable[..., ServedStacks]) -> None:
    a, b = store.publish("a", seed=1), store.publish("b", seed=2)
    gateway = StackCache(store.module_dir / "stacks", 100)
    adapter = gateway.stack([ModuleChoice(b, 0.5, 1.0), ModuleChoice(a, 1.0, 1.0)], 64)
    assert adapter is not None
    served = serve()
    found = [
        served.find(str(store.model.path), name, 64) for name in (name_of(adapter.name), f"stack:{a.name}+{b.name}*0.5")
    ]
    assert [each.adapter for each in found if each] == [adapter, adapter]
    gateway.close()
    StackCache(store.module_dir / "stacks", 1).forget([a, b])
    assert adapter.path.is_dir()  # the server's lease
    served.release([adapter])
    StackCache(store.module_dir / "stacks", 1).close()
    assert not adapter.path.exists()


def test_a_store_that_cannot_be_written_is_composed_from_elsewhere(
    store: ModuleStore, serve: Callable[..., ServedStacks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridqa.stack_server import served as module

    a = store.publish("a")
    monkeypatch.setattr(module, "is_writable", lambda folder: False)
    served = serve(cache_dir=tmp_path / "cache")
    found = served.find(str(store.model.path), f"stack:{a.name}", 64)
    assert found is not None and found.adapter.path.is_relative_to(tmp_path / "cache" / "stacks")


def test_a_store_that_is_gone_is_no_clients_business(
    store: ModuleStore, serve: Callable[..., ServedStacks], caplog: pytest.LogCaptureFixture
) -> None:
    a = store.publish("a")
    store.catalog.close()
    os.rename(store.folder / "indexes", store.folder / "elsewhere")  # noqa: PTH104
    with pytest.raises(RuntimeError) as failed:
        serve().find(str(store.model.path), f"stack:{a.name}", 64)
    assert str(store.folder) not in str(failed.value) and str(store.folder) in caplog.text


def test_why_a_stack_may_answer_no_more(store: ModuleStore, serve: Callable[..., ServedStacks]) -> None:
    a, style = store.publish("a"), store.publish("style", plugin="style")
    served = serve()
    found = served.find(str(store.model.path), f"stack:{a.name}+{style.name}", 64)
    assert found is not None and served.why_not(found.modules) is None
    before = served.changed()
    store.put("a", "changed")
    assert served.changed() != before
    assert "stale" in str(served.why_not(found.modules))
    store.catalog.remove_versions("default", "style")
    assert "removed" in str(served.why_not(found.modules[::-1]))


def test_a_server_says_what_it_has(store: ModuleStore, serve: Callable[..., ServedStacks]) -> None:
    with pytest.raises(InputError) as said:
        serve().find(str(store.model.path), "stack:about", 32)
    assert read_about(str(said.value)) == (store.model.hash, 32)


def test_a_damaged_module_is_refused_without_its_place(
    store: ModuleStore, serve: Callable[..., ServedStacks], caplog: pytest.LogCaptureFixture
) -> None:
    a = store.damage(store.publish("a"))
    with pytest.raises(InputError, match="CorruptModuleError") as refused:
        serve().find(str(store.model.path), f"stack:{a.name}", 64)
    assert str(store.folder) not in str(refused.value) and str(a.path) in caplog.text
