"""What the tests run in processes of their own, to be killed; importable by name, free of pytest."""

from __future__ import annotations

import resource
from multiprocessing.connection import Connection
from pathlib import Path

from hybridqa.catalog import Catalog
from hybridqa.errors import StorageFullError
from hybridqa.modules.registry import ModuleRegistry
from hybridqa.modules.stacks import StackCache
from hybridqa.types import Module, ModuleChoice


def publish_for_ever(pipe: Connection, store: Path, scratch: Path) -> None:
    """Publishes version after version and says so before each."""
    from module_folders import BASE, manifest, write_lora

    catalog = Catalog.open(store / "catalog.sqlite3", module_dir=store / "modules")
    registry = ModuleRegistry(catalog, store / "modules", BASE)
    for count in range(10_000):
        staged = write_lora(scratch / f"staged{count}", seed=count)
        pipe.send(count)
        registry.publish(staged, manifest(), passed=count % 4 != 3)


def compose_for_ever(pipe: Connection, directory: Path, modules: list[Module], first: int) -> None:
    """Composes stack after stack, each of a new weight, and says so before each."""
    cache = StackCache(directory, 100)
    for count in range(first, first + 10_000):
        pipe.send(count)
        cache.stack([ModuleChoice(module, 1 + count / 1000, 1.0) for module in modules], 64)


def hold_a_stack(pipe: Connection, directory: Path, choices: list[ModuleChoice]) -> None:
    """Gets a stack, says its name, and holds it until told to end."""
    adapter = StackCache(directory, 100).stack(choices, 64)
    assert adapter is not None
    pipe.send(adapter.name)
    pipe.recv()


def compose_once(pipe: Connection, directory: Path, choices: list[ModuleChoice]) -> None:
    """Waits for the start signal, gets a stack, and says which inode its weights have."""
    cache = StackCache(directory, 100)
    pipe.recv()
    adapter = cache.stack(choices, 64)
    assert adapter is not None
    pipe.send((adapter.path / "adapter_model.safetensors").stat().st_ino)


def publish_under_a_limit(pipe: Connection, store: Path, staged: Path, limit: int) -> None:
    """Publishes with files limited to `limit` bytes, then answers a question of the registry."""
    from module_folders import BASE, manifest

    catalog = Catalog.open(store / "catalog.sqlite3", module_dir=store / "modules")
    registry = ModuleRegistry(catalog, store / "modules", BASE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        registry.publish(staged, manifest(), passed=True)
    except StorageFullError as error:
        for module in registry.list_modules():
            registry.verify(module)
        pipe.send((str(error), [module.name for module in registry.list_modules()]))
    else:
        pipe.send(("published", []))
