"""The registry: publishing, rolling back, verifying, removing, full disks, and a publisher killed at any moment."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import children
import pytest
from module_folders import BASE, PROCESSES, manifest, open_catalog, write_lora

from hybridqa.catalog import Catalog
from hybridqa.errors import (
    AdapterError,
    BaseModelMismatchError,
    CorruptModuleError,
    DocumentNotFoundError,
    ModuleNotFoundInStoreError,
    StorageFullError,
    UnsupportedAdapterError,
)
from hybridqa.modules.manifest import read_manifest
from hybridqa.modules.registry import ModuleRegistry, module_id_for
from hybridqa.types import Module, ModuleStatus

ID = module_id_for("default", "doc")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with open_catalog(tmp_path / "store", ("doc", "other")) as opened:
        yield opened


@pytest.fixture
def registry(tmp_path: Path, catalog: Catalog) -> ModuleRegistry:
    return ModuleRegistry(catalog, tmp_path / "store" / "modules", BASE)


def publish(registry: ModuleRegistry, tmp_path: Path, seed: int = 0, passed: bool = True, **fields: Any) -> Module:
    staged = write_lora(tmp_path / "staged" / str(seed), seed=seed)
    return registry.publish(staged, manifest(**fields), passed)


def files_under(folder: Path) -> list[str]:
    """Everything but the lock file."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix != ".lock")


def test_a_published_version_is_whole_current_and_on_record(
    registry: ModuleRegistry, catalog: Catalog, tmp_path: Path
) -> None:
    module = publish(registry, tmp_path)
    assert module.current and module.version == 1 and module.status is ModuleStatus.PUBLISHED
    assert module.path == tmp_path / "store" / "modules" / "default" / ID / "v0001"
    assert module.metrics == {"gain": 0.25} and module.documents == {"doc": "hash of doc"}
    on_record = read_manifest(module.path)
    assert on_record.version == 1 and on_record.created_at == module.created_at
    assert set(on_record.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert catalog.modules_for_documents("default", ["doc"]) == [module] == registry.list_modules()
    registry.verify(module)
    assert not (tmp_path / "staged" / "0").exists()


def test_a_rejected_version_is_kept_and_not_put_into_service(
    registry: ModuleRegistry, catalog: Catalog, tmp_path: Path
) -> None:
    first = publish(registry, tmp_path, 1)
    second = publish(registry, tmp_path, 2, passed=False)
    assert second.status is ModuleStatus.REJECTED and not second.current and second.path.is_dir()
    assert catalog.get_module("default", ID) == first
    with pytest.raises(AdapterError, match="rejected by its gate"):
        registry.rollback("default", ID, 2)


def test_rollback_goes_to_the_version_before_or_the_one_named(registry: ModuleRegistry, tmp_path: Path) -> None:
    publish(registry, tmp_path, 1)
    publish(registry, tmp_path, 2, passed=False)
    publish(registry, tmp_path, 3)
    assert registry.rollback("default", ID).version == 1
    with pytest.raises(ModuleNotFoundInStoreError, match=r"published versions \[1, 3\]"):
        registry.rollback("default", ID)
    assert registry.rollback("default", ID, 3).current
    assert [module.version for module in registry.list_modules("default") if module.current] == [3]
    for collection, module_id, version in (("default", ID, 9), ("default", "none", None)):
        with pytest.raises(ModuleNotFoundInStoreError):
            registry.rollback(collection, module_id, version)


def test_rollback_to_a_damaged_version_changes_nothing(
    registry: ModuleRegistry, catalog: Catalog, tmp_path: Path
) -> None:
    first, second = publish(registry, tmp_path, 1), publish(registry, tmp_path, 2)
    (first.path / "adapter_model.safetensors").unlink()
    with pytest.raises(CorruptModuleError):
        registry.rollback("default", ID)
    assert catalog.get_module("default", ID) == second


def test_publish_refuses_what_cannot_serve_and_leaves_no_trace(registry: ModuleRegistry, tmp_path: Path) -> None:
    before = files_under(tmp_path / "store" / "modules")
    cases: list[tuple[type[Exception], dict[str, Any], dict[str, Any]]] = [
        (BaseModelMismatchError, {}, {"base_model_hash": "another"}),
        (CorruptModuleError, {}, {"rank": 8}),
        (CorruptModuleError, {"std": float("nan")}, {}),
        (UnsupportedAdapterError, {"use_dora": True}, {}),
        (DocumentNotFoundError, {}, {"documents": {"gone": "hash"}}),
    ]
    for place, (error, lora, fields) in enumerate(cases):
        staged = write_lora(tmp_path / f"staged{place}", **lora)
        with pytest.raises(error):
            registry.publish(staged, manifest(**fields), True)
        assert staged.is_dir() and registry.list_modules() == []
        assert files_under(tmp_path / "store" / "modules") == before


def test_verify_finds_a_flipped_byte_and_a_truncated_file(registry: ModuleRegistry, tmp_path: Path) -> None:
    module = publish(registry, tmp_path)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        path = module.path / name
        good = path.read_bytes()
        flipped = bytearray(good)
        flipped[len(flipped) // 2] ^= 1
        for bad in (bytes(flipped), good[:-1], b""):
            registry.verify(module)
            path.write_bytes(bad)
            with pytest.raises(CorruptModuleError, match=name):
                registry.verify(module)
            path.write_bytes(good)
            os.utime(path, ns=(1, random.getrandbits(40)))
    (module.path / "manifest.json").write_text("{}")
    with pytest.raises(CorruptModuleError, match=r"manifest\.json"):
        registry.verify(module)


def test_verify_finds_a_module_of_another_base_model_or_in_anothers_place(
    registry: ModuleRegistry, catalog: Catalog, tmp_path: Path
) -> None:
    module = publish(registry, tmp_path, 1)
    other = publish(registry, tmp_path, 2, module_id=module_id_for("default", "other"), documents={"other": "x"})
    with pytest.raises(BaseModelMismatchError, match="hybridqa refresh"):
        ModuleRegistry(catalog, tmp_path / "store" / "modules", "another-hash").verify(module)
    shutil.rmtree(module.path)
    shutil.copytree(other.path, module.path)
    with pytest.raises(CorruptModuleError, match="disagrees"):
        registry.verify(module)
    with pytest.raises(CorruptModuleError, match="disagrees"):
        registry.verify(replace(other, documents={"other": "changed"}))


def test_removing_a_document_removes_its_folders_even_after_a_kill_between(
    registry: ModuleRegistry, catalog: Catalog, tmp_path: Path
) -> None:
    publish(registry, tmp_path, 1)
    publish(registry, tmp_path, 2)
    kept = publish(registry, tmp_path, 3, module_id=module_id_for("default", "other"), documents={"other": "x"})
    removed = catalog.remove_document("default", "doc")
    registry.remove_for(removed[:1])
    assert not removed[0].path.exists() and removed[1].path.exists() and catalog.list_garbage() == [removed[1].path]
    ModuleRegistry(catalog, tmp_path / "store" / "modules", BASE)  # the next start
    assert not removed[1].path.parent.exists() and kept.path.exists() and catalog.list_garbage() == []


def test_files_that_cannot_be_deleted_stay_on_record(open_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    modules = open_folder / "modules"
    with Catalog.open(open_folder / "catalog.sqlite3", create=True, module_dir=modules) as catalog:
        folders = [modules / "default" / f"a-{number}" / "v0001" for number in range(3)]
        for folder in folders:
            folder.mkdir(parents=True)
            (folder / "adapter_model.safetensors").write_text("secret")
        folders[0].chmod(0o555)  # its files cannot be deleted
        folders[1].parent.chmod(0o555)  # nor can this one's name be taken away
        catalog.add_garbage([*folders, open_folder / "elsewhere"])
        for _ in range(2):
            caplog.clear()
            ModuleRegistry(catalog, modules, BASE)
            assert catalog.list_garbage() == folders[:2]
            assert [("a-0" in text, "a-1" in text) for text in caplog.messages] == [(True, False), (False, True)]
        for path in modules.rglob("*"):
            path.chmod(0o755)
        ModuleRegistry(catalog, modules, BASE)
        assert catalog.list_garbage() == []
        assert not list(modules.rglob("*.safetensors"))


def test_versions_are_never_given_twice(registry: ModuleRegistry, catalog: Catalog, tmp_path: Path) -> None:
    publish(registry, tmp_path, 1)
    registry.remove_for(catalog.remove_document("default", "doc"))
    open_catalog(tmp_path / "store").close()  # adds the document again
    assert publish(registry, tmp_path, 2).version == 2


def test_collections_get_folders_of_their_own_whatever_their_names(tmp_path: Path) -> None:
    names = ["stacks", "Ünïcode name", "work", "default", "Default", "a..b", "x" * 120]
    paths = set()
    for place, name in enumerate(names):
        with open_catalog(tmp_path / "store", collection=name) as catalog:
            registry = ModuleRegistry(catalog, tmp_path / "store" / "modules", BASE)
            module = publish(registry, tmp_path, place, collection=name, module_id=module_id_for(name, "doc"))
            registry.verify(module)
            paths.add(module.path.parent.parent)
            assert module.path.parent.parent.parent == tmp_path / "store" / "modules"
    assert len(paths) == len(names) and tmp_path / "store" / "modules" / "stacks" not in paths


def test_module_ids_are_safe_and_distinct() -> None:
    ids = [ID] + [
        module_id_for(collection, doc_id)
        for collection in ("default", "b")
        for doc_id in ("../../etc/passwd", "a" * 500, "", "Ω", "A.md", "a.md", "\udc80")
    ]
    assert len(set(ids)) == len(ids)
    assert all(len(name) < 60 and name.isascii() and "/" not in name and not name.startswith(".") for name in ids)


def test_two_publishers_at_once_get_two_versions(registry: ModuleRegistry, catalog: Catalog, tmp_path: Path) -> None:
    second = ModuleRegistry(catalog, tmp_path / "store" / "modules", BASE)
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(publish, (registry, second)[n % 2], tmp_path, n) for n in range(8)]
        versions = sorted(item.result().version for item in work)
    assert versions == list(range(1, 9))
    assert sum(module.current for module in registry.list_modules()) == 1


def test_a_publisher_killed_at_any_moment_leaves_whole_versions_or_none(tmp_path: Path) -> None:
    store, modules = tmp_path / "store", tmp_path / "store" / "modules"
    open_catalog(store).close()
    chance = random.Random(7)
    journals = versions = 0
    for attempt in range(30):
        here, there = PROCESSES.Pipe()
        child = PROCESSES.Process(target=children.publish_for_ever, args=(there, store, tmp_path / f"scratch{attempt}"))
        child.start()
        there.close()
        for _ in range(chance.randrange(1, 3)):
            assert here.poll(60)
            here.recv()
        time.sleep(chance.uniform(0, 0.05))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        journals += (modules / ".publishing.json").exists()
        with Catalog.open(store / "catalog.sqlite3", module_dir=modules) as catalog:
            registry = ModuleRegistry(catalog, modules, BASE)
            found = registry.list_modules()
            for module in found:
                registry.verify(module)
            passed = [module for module in found if module.status is ModuleStatus.PUBLISHED]
            assert [module.name for module in found if module.current] == [module.name for module in passed[-1:]]
            on_disk = sorted(path for path in modules.glob("*/*/*"))
            assert on_disk == sorted(module.path for module in found)
            assert not [name for name in files_under(modules) if ".tmp" in name or "publishing" in name]
            versions = len(found)
    assert journals >= 5, "the kills missed the publishing"
    assert versions >= 5


def test_a_limit_on_file_sizes_is_a_full_disk(registry: ModuleRegistry, tmp_path: Path) -> None:
    first = publish(registry, tmp_path, 1)
    staged = write_lora(tmp_path / "big", layers={"model.layers.0.mlp.up_proj": (100_000, 20)})
    here, there = PROCESSES.Pipe()
    child = PROCESSES.Process(
        target=children.publish_under_a_limit, args=(there, tmp_path / "store", staged, 1_000_000)
    )
    child.start()
    assert here.poll(60)
    message, names = here.recv()
    child.join()
    assert "no space left" in message and "v0002" in message and names == [first.name]
    assert staged.is_dir() and list(first.path.parent.iterdir()) == [first.path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not permitted here; the limit on file sizes is tested instead")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_the_new_version_and_nothing_else(small_disk: Path, tmp_path: Path) -> None:
    with open_catalog(small_disk) as catalog:
        registry = ModuleRegistry(catalog, small_disk / "modules", BASE)
        first = publish(registry, tmp_path, 1)
        staged = write_lora(tmp_path / "big", layers={"model.layers.0.mlp.up_proj": (150_000, 20)})
        before = files_under(small_disk / "modules")
        with pytest.raises(StorageFullError, match="v0002"):
            registry.publish(staged, manifest(), True)
        assert files_under(small_disk / "modules") == before and staged.is_dir()
        assert registry.list_modules() == [first]
        registry.verify(first)
        assert publish(registry, tmp_path, 3).current
