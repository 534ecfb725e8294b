"""What is checked of a request before any model hears of it: the prompt's length, the adapter's rank and folder.

Knows nothing about models. Invariant: whatever passes can be given to an engine; whatever does not is refused with an
error that says what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hybridqa.engine.protocol import Adapter, Sampling
from hybridqa.errors import AdapterError, ConfigError, QuestionError, RankLimitError, UnsupportedAdapterError


def check_prompt(prompt_ids: Sequence[int], max_model_len: int, vocab_size: int) -> None:
    """Raises `QuestionError` when the prompt is empty, leaves no room for an answer, or has unknown tokens."""
    if not prompt_ids:
        raise QuestionError("the prompt is empty: expected at least one token.")
    if len(prompt_ids) >= max_model_len:
        raise QuestionError(
            f"the prompt has {len(prompt_ids)} tokens; the engine takes at most {max_model_len - 1} and one for the "
            "answer. Shorten it, or raise HYBRIDQA_MAX_MODEL_LEN."
        )
    if min(prompt_ids) < 0 or max(prompt_ids) >= vocab_size:
        raise QuestionError(f"the prompt has a token outside the model's vocabulary of {vocab_size}.")


def check_target(prompt_ids: Sequence[int], target_ids: Sequence[int], max_model_len: int, vocab_size: int) -> None:
    """Raises `QuestionError` when either is empty, both are too long together, or have unknown tokens."""
    if not target_ids:
        raise QuestionError("the text to score is empty: expected at least one token.")
    check_prompt(prompt_ids, max_model_len, vocab_size)
    check_prompt([*prompt_ids, *target_ids], max_model_len, vocab_size)


def check_sampling(sampling: Sampling) -> None:
    """Raises `ConfigError` when a number is out of range."""
    if sampling.max_tokens < 1:
        raise ConfigError(f"max_tokens is {sampling.max_tokens!r}: expected at least 1.")
    if not sampling.temperature >= 0:
        raise ConfigError(f"temperature is {sampling.temperature!r}: expected 0 (greedy) or more.")
    if not 0 < sampling.top_p <= 1:
        raise ConfigError(f"top_p is {sampling.top_p!r}: expected more than 0 and at most 1.")


def check_rank(adapter: Adapter, max_lora_rank: int) -> None:
    """Raises `RankLimitError`."""
    if adapter.rank > max_lora_rank:
        raise RankLimitError(
            f"adapter {adapter.name!r} has rank {adapter.rank}; the engine takes at most {max_lora_rank}. "
            "Stack fewer modules, or raise HYBRIDQA_MAX_LORA_RANK."
        )


def check_folder(adapter: Adapter, *, linear_only: bool) -> None:
    """Raises an `AdapterError` when the folder cannot be loaded; reads its config alone."""
    config = _read_config(adapter)
    targets = config.get("target_modules")
    outer = {"embed_tokens", "lm_head"} & set(targets if isinstance(targets, list) else ())
    if linear_only and outer:
        raise UnsupportedAdapterError(
            f"adapter {adapter.name!r} targets {sorted(outer)}, which the engine leaves alone on a CPU: expected "
            "linear layers of the blocks. Train it without them."
        )


def _read_config(adapter: Adapter) -> dict[str, Any]:
    path = adapter.path / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"adapter {adapter.name!r} has no readable {str(path)!r}: {error}. Expected a PEFT LoRA folder; "
            "compose it again."
        ) from error
    if not isinstance(config, dict) or not (adapter.path / "adapter_model.safetensors").is_file():
        raise AdapterError(
            f"adapter {adapter.name!r} in {str(adapter.path)!r} is not whole: expected adapter_config.json and "
            "adapter_model.safetensors. Compose it again."
        )
    return config
