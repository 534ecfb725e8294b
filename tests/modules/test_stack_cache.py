"""The cache of stacks: one composition, many users, kills, damage, and a bound that spares what is in use."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import children
import pytest
from module_folders import BASE, PROCESSES, delta, manifest, open_catalog, write_lora

from hybridqa.engine.protocol import Adapter
from hybridqa.errors import CorruptModuleError, RankLimitError, StorageFullError
from hybridqa.modules.registry import ModuleRegistry, module_id_for
from hybridqa.modules.stacks import StackCache
from hybridqa.types import Module, ModuleChoice

LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def modules(tmp_path: Path) -> Iterator[list[Module]]:
    """Two published modules of rank 4."""
    with open_catalog(tmp_path / "store", ("a", "b")) as catalog:
        registry = ModuleRegistry(catalog, tmp_path / "store" / "modules", BASE)
        made = []
        for seed, doc_id in enumerate("ab"):
            staged = write_lora(tmp_path / doc_id, seed=seed)
            made.append(registry.publish(staged, manifest(doc_id), True))
        yield made


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[StackCache]:
    opened = StackCache(tmp_path / "stacks", 100)
    yield opened
    opened.close()


def choose(modules: list[Module], *weights: float) -> list[ModuleChoice]:
    return [ModuleChoice(module, weight, 1.0) for module, weight in zip(modules, weights, strict=True)]


def get(cache: StackCache, modules: list[Module], *weights: float) -> Adapter:
    adapter = cache.stack(choose(modules, *weights), 64)
    assert adapter is not None
    return adapter


def on_disk(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != ".locks")


def cache_for(directory: Path, bytes_allowed: int) -> StackCache:
    """A cache whose bound is given in bytes; the stacks of these tests are small."""
    cache = StackCache(directory, 1_000)
    cache._max_bytes = bytes_allowed
    return cache


def test_a_stack_is_composed_once_and_is_the_sum(cache: StackCache, modules: list[Module]) -> None:
    adapter = get(cache, modules, 1.0, -0.5)
    expected = delta(modules[0].path, LAYER, 8, 4) - 0.5 * delta(modules[1].path, LAYER, 8, 4)
    assert adapter.rank == 8 and adapter.path.name == adapter.name
    assert float((delta(adapter.path, LAYER, 8, 8) - expected).abs().max()) < 1e-6
    inode = (adapter.path / "adapter_model.safetensors").stat().st_ino
    assert get(cache, modules[::-1], -0.5, 1.0) == adapter == get(cache, modules, 1.0, -0.5)
    assert (adapter.path / "adapter_model.safetensors").stat().st_ino == inode


def test_names_tell_apart_weights_and_modules(cache: StackCache, modules: list[Module]) -> None:
    names = {get(cache, modules, 1.0, weight).name for weight in (0.5, 1.0, -1.0)}
    names |= {get(cache, [module], 1.0).name for module in modules}
    assert len(names) == 5


def test_no_weight_no_stack_and_zero_weights_take_no_rank(cache: StackCache, modules: list[Module]) -> None:
    assert cache.stack([], 64) is None
    assert cache.stack(choose(modules, 0.0, 0.0), 64) is None
    assert get(cache, modules, 0.0, 1.0) == get(cache, modules[1:], 1.0)


def test_the_rank_limit_holds_for_new_and_for_cached_stacks(cache: StackCache, modules: list[Module]) -> None:
    for _ in range(2):
        with pytest.raises(RankLimitError, match="rank 8"):
            cache.stack(choose(modules, 1.0, 1.0), 7)
        get(cache, modules, 1.0, 1.0)


def test_a_damaged_module_is_refused_and_leaves_nothing(
    cache: StackCache, modules: list[Module], tmp_path: Path
) -> None:
    path = modules[0].path / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptModuleError):
        cache.stack(choose(modules, 1.0, 1.0), 64)
    assert on_disk(tmp_path / "stacks") == []


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "stack.json"])
@pytest.mark.parametrize("kind", ["flipped", "truncated", "missing"])
def test_a_damaged_stack_is_mended_in_place(tmp_path: Path, modules: list[Module], name: str, kind: str) -> None:
    good = {}
    for opened_anew in (False, True):
        cache = StackCache(tmp_path / "stacks", 100)
        adapter = get(cache, modules, 1.0, 0.5)
        good = good or {path.name: path.read_bytes() for path in adapter.path.iterdir()}
        folder = adapter.path.stat().st_ino
        path = adapter.path / name
        if kind == "missing":
            path.unlink()
        else:
            flipped = bytes([good[name][0] ^ 255]) + good[name][1:]
            path.write_bytes(flipped if kind == "flipped" else good[name][:-3])
        if opened_anew:
            cache = StackCache(tmp_path / "stacks", 100)
        assert get(cache, modules, 1.0, 0.5) == adapter
        assert {path.name: path.read_bytes() for path in adapter.path.iterdir()} == good
        assert adapter.path.stat().st_ino == folder, "another process may hold the folder"
        cache.close()


def test_threads_and_processes_that_ask_at_once_get_one_composition(tmp_path: Path, modules: list[Module]) -> None:
    caches = [StackCache(tmp_path / "stacks", 100) for _ in range(2)]
    pipes = []
    for _ in range(3):
        here, there = PROCESSES.Pipe()
        PROCESSES.Process(
            target=children.compose_once, args=(there, tmp_path / "stacks", choose(modules, 1.0, 0.5)), daemon=True
        ).start()
        pipes.append(here)
    for pipe in pipes:
        pipe.send("go")
    with ThreadPoolExecutor(8) as pool:
        adapters = list(pool.map(lambda n: get(caches[n % 2], modules, 1.0, 0.5), range(16)))
    assert len(set(adapters)) == 1
    inodes = {(adapter.path / "adapter_model.safetensors").stat().st_ino for adapter in adapters}
    for pipe in pipes:
        assert pipe.poll(60)
        inodes.add(pipe.recv())
    assert len(inodes) == 1 and on_disk(tmp_path / "stacks") == [adapters[0].name]


def test_the_bound_takes_the_least_recently_used_and_spares_what_is_held(tmp_path: Path, modules: list[Module]) -> None:
    directory = tmp_path / "stacks"
    with_one = StackCache(directory, 100)
    names = []
    for weight in (0.1, 0.2, 0.3):
        adapter = get(with_one, modules, 1.0, weight)
        names.append(adapter.name)
        size = sum(path.stat().st_size for path in adapter.path.iterdir())
        time.sleep(0.02)
    get(with_one, modules, 1.0, 0.1)  # used again: 0.2 is now the oldest
    assert on_disk(directory) == sorted(names) and with_one.surplus() == []
    with_one._max_bytes = 2 * size + 100
    assert with_one.surplus(in_use=[names[1]]) == [names[2]]
    assert with_one.surplus() == [names[1]]
    get(with_one, modules, 1.0, 0.3)  # offered, then asked for again
    with_one.release(names)
    assert on_disk(directory) == sorted([names[0], names[2]])
    with_one.close()
    get(cache_for(directory, size + 100), modules, 1.0, 0.9)
    assert names[0] not in on_disk(directory)


def test_what_another_process_holds_stays_until_it_ends(tmp_path: Path, modules: list[Module]) -> None:
    directory = tmp_path / "stacks"
    here, there = PROCESSES.Pipe()
    child = PROCESSES.Process(target=children.hold_a_stack, args=(there, directory, choose(modules, 1.0, 0.5)))
    child.start()
    assert here.poll(60)
    held = here.recv()
    cache = cache_for(directory, 1)
    own = get(cache, modules, 1.0, 0.7)
    assert cache.forget(modules) == [own.name]
    assert on_disk(directory) == sorted([held, own.name])
    cache.release([own.name])
    assert on_disk(directory) == [held]
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    StackCache(directory, 100)
    assert on_disk(directory) == []


def test_stacks_of_removed_modules_go(tmp_path: Path, modules: list[Module]) -> None:
    cache = StackCache(tmp_path / "stacks", 100)
    both, second = get(cache, modules, 1.0, 0.5), get(cache, modules[1:], 1.0)
    cache.close()
    again = get(cache, modules[1:], 1.0)
    assert again == second and cache.forget(modules[:1]) == []
    assert on_disk(tmp_path / "stacks") == [second.name] and both.name not in on_disk(tmp_path / "stacks")
    assert cache.keep_only([modules[1].name]) == []
    assert cache.keep_only([]) == [second.name] == cache.surplus()
    cache.close()
    assert on_disk(tmp_path / "stacks") == []


def test_a_new_version_of_a_module_gets_a_new_stack(cache: StackCache, tmp_path: Path, modules: list[Module]) -> None:
    before = get(cache, modules[:1], 1.0)
    with open_catalog(tmp_path / "store", ("a", "b")) as catalog:
        registry = ModuleRegistry(catalog, tmp_path / "store" / "modules", BASE)
        fields = {"module_id": module_id_for("default", "a")}
        new = registry.publish(write_lora(tmp_path / "new", seed=9), manifest("a", **fields), True)
    assert get(cache, [new], 1.0).name != before.name and before.path.is_dir()


def test_a_composer_killed_at_any_moment_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, modules: list[Module]
) -> None:
    directory = tmp_path / "stacks"
    chance = random.Random(3)
    unfinished = 0
    for attempt in range(20):
        here, there = PROCESSES.Pipe()
        child = PROCESSES.Process(target=children.compose_for_ever, args=(there, directory, modules, attempt * 100))
        child.start()
        there.close()
        assert here.poll(60)
        count = here.recv()
        time.sleep(chance.uniform(0, 0.04))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        while here.poll():
            try:
                count = here.recv()
            except EOFError:
                break
        unfinished += any(name.startswith(".stack") for name in on_disk(directory))
        cache = StackCache(directory, 100)
        assert not [name for name in on_disk(directory) if not name.startswith("stack-")]
        for name in on_disk(directory):
            assert cache._whole(name) is not None
        adapter = get(cache, modules, 1 + count / 1000, 1 + count / 1000)
        expected = (1 + count / 1000) * sum(delta(module.path, LAYER, 8, 4) for module in modules)
        assert float((delta(adapter.path, LAYER, 8, 8) - expected).abs().max()) < 1e-6
        cache.close()
    assert unfinished >= 3, "the kills missed the composing"


def test_a_full_disk_costs_the_stack_and_nothing_else(tmp_path: Path, modules: list[Module]) -> None:
    import resource

    cache = StackCache(tmp_path / "stacks", 100)
    kept = get(cache, modules, 1.0, 0.5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageFullError, match="stack-"):
            cache.stack(choose(modules, 1.0, 0.9), 64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert on_disk(tmp_path / "stacks") == [kept.name]
    assert get(cache, modules, 1.0, 0.9).rank == 8
