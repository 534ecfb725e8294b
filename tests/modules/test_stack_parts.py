"""Names of stacks: the same for the same effect, however the weights are given, and another for every other effect."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from module_folders import BASE, LAYERS, manifest, open_catalog, write_lora
from safetensors.torch import load_file

from hybridqa.errors import AdapterError
from hybridqa.modules.registry import ModuleRegistry
from hybridqa.modules.stack_parts import fitted, parts_of, stack_name
from hybridqa.modules.stacks import StackCache
from hybridqa.types import Module, ModuleChoice, Weight

NAMES = sorted(LAYERS)
VALUES = st.sampled_from([-0.5, 0.0, 0.25, 1.0, 2.0])  # few, so that mappings are often alike
WEIGHTS = st.one_of(VALUES, st.dictionaries(st.sampled_from([*NAMES, "model.layers.9.not_there"]), VALUES))


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Module]]:
    """Two published modules of rank 4; the second has not all the layers of the first."""
    path = tmp_path_factory.mktemp("parts")
    with open_catalog(path / "store", ("a", "b")) as catalog:
        registry = ModuleRegistry(catalog, path / "store" / "modules", BASE)
        fewer = {name: LAYERS[name] for name in NAMES[:4]}
        staged = [write_lora(path / "a", seed=0), write_lora(path / "b", seed=1, layers=fewer)]
        yield [registry.publish(folder, manifest(folder.name), True) for folder in staged]


def layers_of(place: int) -> list[str]:
    return NAMES if place == 0 else NAMES[:4]


def effect(weights: tuple[Weight, ...]) -> list[dict[str, float]]:
    """What each module does to each of its layers, less what does nothing: written independently of the code."""
    said = []
    for place, weight in enumerate(weights):
        plain = {name: weight.get(name, 1.0) if isinstance(weight, Mapping) else weight for name in layers_of(place)}
        said.append(plain if any(plain.values()) else {})
    return said


def name_of(modules: list[Module], weights: tuple[Weight, ...]) -> str:
    choices = [ModuleChoice(module, weight, 1.0) for module, weight in zip(modules, weights, strict=True)]
    random.Random(0).shuffle(choices)
    return stack_name(parts_of(choices))


@given(first=st.tuples(WEIGHTS, WEIGHTS), second=st.tuples(WEIGHTS, WEIGHTS))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_are_equal_exactly_when_effects_are(
    modules: list[Module], first: tuple[Weight, ...], second: tuple[Weight, ...]
) -> None:
    assert (name_of(modules, first) == name_of(modules, second)) == (effect(first) == effect(second))
    turned = tuple(dict(reversed(list(w.items()))) if isinstance(w, Mapping) else w for w in first)
    assert name_of(modules, turned) == name_of(modules, first)


@given(weights=st.tuples(WEIGHTS, WEIGHTS))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stack_is_the_sum_with_a_weight_for_each_layer(
    modules: list[Module], tmp_path_factory: pytest.TempPathFactory, weights: tuple[Weight, ...]
) -> None:
    cache = StackCache(tmp_path_factory.mktemp("stacks"), 100)
    choices = [ModuleChoice(module, weight, 1.0) for module, weight in zip(modules, weights, strict=True)]
    adapter = cache.stack(choices, 64)
    expected: dict[str, torch.Tensor] = {}
    for place, by_layer in enumerate(effect(weights)):
        tensors = load_file(modules[place].path / "adapter_model.safetensors")
        for name, weight in by_layer.items():
            a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
            expected[name] = expected.get(name, 0) + weight * 8 / 4 * b @ a  # alpha / rank
    if adapter is None:
        assert not any(delta.any() for delta in expected.values())
        return
    assert adapter.name == name_of(modules, weights)
    made = load_file(adapter.path / "adapter_model.safetensors")
    for name, delta in expected.items():
        a, b = (made.get(f"base_model.model.{name}.lora_{side}.weight") for side in "AB")
        if a is None or b is None:
            assert not delta.any()
        else:
            assert float((b.double() @ a.double() - delta).abs().max()) < 1e-6
    cache.close()


def test_one_number_names_a_stack_as_it_did_before_there_were_mappings(modules: list[Module]) -> None:
    import hashlib

    files = json.loads((modules[0].path / "manifest.json").read_text())["files"]
    record = [{"module": modules[0].name, "files": files, "weight": 0.5}]
    old = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]
    assert stack_name(parts_of([ModuleChoice(modules[0], 0.5, 1.0)])) == f"stack-{old}"


def test_the_record_of_a_stack_holds_its_weights(modules: list[Module], tmp_path: Path) -> None:
    weights = {NAMES[0]: 0.25, "model.layers.9.not_there": 3.0}
    adapter = StackCache(tmp_path / "stacks", 100).stack([ModuleChoice(modules[0], weights, 1.0)], 64)
    assert adapter is not None
    [part] = json.loads((adapter.path / "stack.json").read_text())["parts"]
    assert part["weight"] == {**dict.fromkeys(NAMES, 1.0), NAMES[0]: 0.25}
    assert fitted({}, NAMES) == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_finite_number_is_refused(modules: list[Module], tmp_path: Path, value: float) -> None:
    cache = StackCache(tmp_path / "stacks", 100)
    with pytest.raises(AdapterError, match="finite"):
        cache.stack([ModuleChoice(modules[0], {NAMES[0]: value}, 1.0)], 64)
    assert [path.name for path in (tmp_path / "stacks").iterdir()] == [".locks"]
