"""Stacks: the sum of their parts, in tensors, in tiny random models, and in the real default model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from module_folders import LAYERS, delta, write_lora
from safetensors.torch import load_file

from hybridqa.config import Settings
from hybridqa.errors import (
    AdapterError,
    BaseModelMismatchError,
    CorruptModuleError,
    RankLimitError,
    UnsupportedAdapterError,
)
from hybridqa.modules.adapter import read_adapter
from hybridqa.modules.stacking import compose

SHORT = {name: size for name, size in LAYERS.items() if "layers.1" in name}  # another set of layers
PROMPTS = [
    "The capital of France is",
    "Question: Who wrote 'On the Origin of Species', and when?\nAnswer:",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "In 1969, Apollo 11 landed on the Moon. Neil Armstrong was the first to",
]


def check_sum(stack: Path, rank: int, parts: Sequence[tuple[Path, float, float, int]]) -> None:
    """`parts` are (folder, weight, alpha, rank)."""
    names = {name for folder, *_ in parts for name in read_adapter(folder).targets}
    for name in names:
        expected = sum(
            weight * delta(folder, name, alpha, r)
            for folder, weight, alpha, r in parts
            if name in read_adapter(folder).targets
        )
        torch.testing.assert_close(delta(stack, name, rank, rank), expected, atol=1e-6, rtol=1e-5)


def test_a_stack_is_the_sum_of_unlike_parts(tmp_path: Path) -> None:
    first = write_lora(tmp_path / "a", rank=4, alpha=8, seed=1)
    second = write_lora(tmp_path / "b", rank=3, alpha=5, seed=2, layers=SHORT)
    stack = tmp_path / "stack"
    assert compose([(first, 1.0), (second, -0.7)], stack, max_rank=8) == 7
    check_sum(stack, 7, [(first, 1.0, 8, 4), (second, -0.7, 5, 3)])
    config = json.loads((stack / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (7, 7, False)
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    assert {target.rank for target in read_adapter(stack).targets.values()} == {7}  # one rank: filled up with zeros


def test_any_order_gives_the_same_bytes(tmp_path: Path) -> None:
    parts = [(write_lora(tmp_path / name, rank=2, seed=seed), 0.5 + seed) for seed, name in enumerate("abc")]
    written = set()
    for place, order in enumerate(itertools.permutations(parts)):
        compose(order, tmp_path / f"s{place}", max_rank=8)
        written.add(
            tuple(
                (tmp_path / f"s{place}" / name).read_bytes()
                for name in ("adapter_config.json", "adapter_model.safetensors")
            )
        )
    assert len(written) == 1


def test_weights_by_layer_and_layers_left_out(tmp_path: Path) -> None:
    first, second = write_lora(tmp_path / "a", seed=1), write_lora(tmp_path / "b", seed=2)
    weights = {name: 0.25 * place for place, name in enumerate(sorted(LAYERS))}  # the first is 0
    rank = compose([(first, weights)], tmp_path / "one", max_rank=8)
    assert rank == 4 and set(read_adapter(tmp_path / "one").targets) == set(sorted(LAYERS)[1:])
    rank = compose([(first, weights), (second, 2)], tmp_path / "two", max_rank=8)
    for name, weight in weights.items():
        expected = weight * delta(first, name, 8, 4) + 2 * delta(second, name, 8, 4)
        torch.testing.assert_close(delta(tmp_path / "two", name, rank, rank), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(AdapterError, match="do not name its layers"):
        compose([(first, {"model.layers.0.mlp.up_proj": 1.0})], tmp_path / "three", max_rank=8)


def test_a_part_of_weight_zero_takes_no_rank(tmp_path: Path) -> None:
    first, second = write_lora(tmp_path / "a", seed=1), write_lora(tmp_path / "b", seed=2)
    assert compose([(first, 0.0), (second, 1.0)], tmp_path / "s", max_rank=4) == 4
    with pytest.raises(AdapterError, match="other than 0"):
        compose([(first, 0.0)], tmp_path / "t", max_rank=4)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), True, "1"])
def test_a_weight_must_be_a_finite_number(tmp_path: Path, weight: Any) -> None:
    with pytest.raises(AdapterError, match="finite number"):
        compose([(write_lora(tmp_path / "a"), weight)], tmp_path / "s", max_rank=8)


def test_the_rank_limit_names_the_ranks(tmp_path: Path) -> None:
    parts = [(write_lora(tmp_path / name, rank=rank, seed=rank), 1.0) for name, rank in (("a", 4), ("b", 5))]
    assert compose(parts, tmp_path / "s", max_rank=9) == 9
    with pytest.raises(RankLimitError, match=r"needs rank 9; expected at most 8"):
        compose(parts, tmp_path / "t", max_rank=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "s"]


def test_the_widest_dtype_wins_unless_one_is_given(tmp_path: Path) -> None:
    brain = write_lora(tmp_path / "a", dtype=torch.bfloat16, seed=1)
    half = write_lora(tmp_path / "b", dtype=torch.float16, seed=2)

    def dtype_of(parts: list[tuple[Path, float]], name: str, **options: Any) -> torch.dtype:
        compose(parts, tmp_path / name, max_rank=8, **options)
        (dtype,) = {tensor.dtype for tensor in load_file(tmp_path / name / "adapter_model.safetensors").values()}
        return dtype

    assert dtype_of([(brain, 1.0)], "1") == torch.bfloat16
    assert dtype_of([(brain, 1.0), (half, 1.0)], "2") == torch.float32
    assert dtype_of([(brain, 1.0)], "3", dtype="float32") == torch.float32
    check_sum(tmp_path / "3", 4, [(brain, 1.0, 8, 4)])
    with pytest.raises(AdapterError, match="int8"):
        compose([(brain, 1.0)], tmp_path / "4", max_rank=8, dtype="int8")


def test_parts_of_another_model_and_kinds_that_differ_are_refused(tmp_path: Path) -> None:
    first = write_lora(tmp_path / "a")
    other = write_lora(tmp_path / "b", layers=dict.fromkeys(LAYERS, (16, 16)))
    with pytest.raises(BaseModelMismatchError, match="one base model"):
        compose([(first, 1.0), (other, 1.0)], tmp_path / "s", max_rank=8)
    turned = write_lora(tmp_path / "c", fan_in_fan_out=True)
    with pytest.raises(UnsupportedAdapterError, match="fan_in_fan_out"):
        compose([(first, 1.0), (turned, 1.0)], tmp_path / "s", max_rank=8)


def test_nan_and_overflow_are_told_apart(tmp_path: Path) -> None:
    good = write_lora(tmp_path / "a", dtype=torch.float16, seed=1)
    bad = write_lora(tmp_path / "b", dtype=torch.float16, seed=2, std=float("nan"))
    with pytest.raises(CorruptModuleError, match=r"/b/adapter_model"):
        compose([(good, 1.0), (bad, 1.0)], tmp_path / "s", max_rank=8)
    with pytest.raises(AdapterError, match="overflows"):
        compose([(good, 1e7)], tmp_path / "s", max_rank=8)
    assert not (tmp_path / "s").exists()


def test_a_finished_stack_is_never_overwritten(tmp_path: Path) -> None:
    part = write_lora(tmp_path / "a")
    compose([(part, 1.0)], tmp_path / "s", max_rank=8)
    with pytest.raises(FileExistsError):
        compose([(part, 2.0)], tmp_path / "s", max_rank=8)


# Against transformers and peft


def largest_difference(model: Any, folders: list[Path], weights: list[float], stack: Path, batches: list[Any]) -> float:
    """Between the stack and its parts, all active at once in peft, each scaled by its weight; in logits."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    peft_model = PeftModel.from_pretrained(model, folders[0], adapter_name="part0")
    for place, folder in enumerate(folders[1:], start=1):
        peft_model.load_adapter(folder, adapter_name=f"part{place}")
    peft_model.load_adapter(stack, adapter_name="stack")
    for module in peft_model.modules():
        if isinstance(module, LoraLayer):
            for place, weight in enumerate(weights):
                if f"part{place}" in module.scaling:
                    module.scaling[f"part{place}"] *= weight
    with torch.no_grad():
        with peft_model.disable_adapter():
            plain = [peft_model(input_ids=ids).logits for ids in batches]
        peft_model.base_model.set_adapter([f"part{place}" for place in range(len(folders))])
        apart = [peft_model(input_ids=ids).logits for ids in batches]
        peft_model.base_model.set_adapter("stack")
        together = [peft_model(input_ids=ids).logits for ids in batches]
    peft_model.unload()
    assert max(float((a - b).abs().max()) for a, b in zip(apart, plain, strict=True)) > 1e-3, "the parts do nothing"
    return max(float((a - b).abs().max()) for a, b in zip(apart, together, strict=True))


ADAPTERS = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 9),
        "alpha": st.sampled_from([1, 4, 16, 33]),
        "use_rslora": st.booleans(),
        "kinds": st.sets(st.sampled_from(["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"]), min_size=1),
        "only_layer": st.sampled_from([None, 0, 1]),
        "weight": st.sampled_from([1.0, 0.5, -1.0, 2.5]),
    }
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    adapters=st.lists(ADAPTERS, min_size=1, max_size=4),
    heads=st.sampled_from([(2, 1), (3, 3)]),
    seed=st.integers(0, 99),
)
def test_tiny_models_answer_as_with_all_parts_active(
    tmp_path_factory: pytest.TempPathFactory, adapters: list[dict[str, Any]], heads: tuple[int, int], seed: int
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=8 * heads[0], intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=8,
        initializer_range=0.3,
    )  # fmt: skip
    model = (
        LlamaForCausalLM(config).double().eval()
    )  # a wrong scale shows; rounding, which such weights amplify, does not
    linear = {
        name: (m.in_features, m.out_features)
        for name, m in model.model.named_modules(prefix="model")
        if isinstance(m, torch.nn.Linear)
    }
    home = tmp_path_factory.mktemp("tiny")
    folders = []
    for place, chosen in enumerate(adapters):
        layers = {
            name: size
            for name, size in linear.items()
            if name.rsplit(".", 1)[1] in chosen["kinds"] and chosen["only_layer"] in (None, int(name.split(".")[2]))
        }
        folders.append(
            write_lora(
                home / str(place), rank=chosen["rank"], alpha=chosen["alpha"], seed=seed + place, layers=layers,
                std=0.3, use_rslora=chosen["use_rslora"],
            )
        )  # fmt: skip
    weights = [chosen["weight"] for chosen in adapters]
    compose(list(zip(folders, weights, strict=True)), home / "stack", max_rank=64, dtype="float64")
    batch = torch.randint(0, 40, (2, 12))
    assert largest_difference(model, folders, weights, home / "stack", [batch]) < 1e-9


@pytest.fixture(scope="module")
def default_model() -> Iterator[tuple[Any, list[torch.Tensor]]]:
    from transformers import AutoModelForCausalLM

    from hybridqa.models import DEFAULT_MODEL, load_tokenizer, resolve_model

    folder = resolve_model(DEFAULT_MODEL, Settings().cache_dir).path
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    yield model, [torch.tensor([tokenizer(prompt)["input_ids"]]) for prompt in PROMPTS]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_default_model_answers_as_with_all_parts_active(
    default_model: tuple[Any, list[torch.Tensor]], tmp_path: Path, count: int
) -> None:
    model, batches = default_model
    linear = {
        name: (m.in_features, m.out_features)
        for name, m in model.model.named_modules(prefix="model")
        if isinstance(m, torch.nn.Linear)
    }
    attention = {name: size for name, size in linear.items() if "self_attn" in name}
    upper = {name: size for name, size in linear.items() if int(name.split(".")[2]) >= 15}
    recipes: list[dict[str, Any]] = [
        {"rank": 16, "alpha": 32, "layers": linear},
        {"rank": 8, "alpha": 8, "layers": attention, "use_rslora": True},
        {"rank": 16, "alpha": 16, "layers": upper},
        {"rank": 4, "alpha": 12, "layers": attention},
        {"rank": 5, "alpha": 7, "layers": upper},
    ]
    weights = [1.0, 0.6, -0.5, 1.5, 0.25][:count]
    folders = [
        write_lora(tmp_path / str(place), seed=place, std=0.015, **recipe)
        for place, recipe in enumerate(recipes[:count])
    ]
    compose(list(zip(folders, weights, strict=True)), tmp_path / "stack", max_rank=64)
    assert largest_difference(model, folders, weights, tmp_path / "stack", batches) < 1e-4
