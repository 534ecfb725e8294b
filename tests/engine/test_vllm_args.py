"""What vLLM is told of a model and of the machine; no engine is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridqa.engine.vllm_args import VllmSettings, _arguments, context_length, vocabulary_size
from hybridqa.errors import ModelError
from hybridqa.models import ModelFolder

GEMMA_3: dict[str, Any] = {  # as the hub has it: the text model's part leaves out what is the default
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {"hidden_size": 2560, "model_type": "gemma3_text", "num_hidden_layers": 34, "sliding_window": 1024},
}


@pytest.mark.parametrize(
    ("config", "length", "vocabulary"),
    [
        ({"model_type": "llama", "max_position_embeddings": 96, "vocab_size": 300}, 96, 300),
        ({"model_type": "llama", "max_position_embeddings": 8192, "vocab_size": 300}, 512, 300),
        ({"model_type": "gpt2", "n_positions": 128, "vocab_size": 300}, 128, 300),
        ({"model_type": "mpt", "max_seq_len": 64, "vocab_size": 300}, 64, 300),
        (GEMMA_3, 512, 262208),
    ],
    ids=["llama", "a long llama", "gpt2", "mpt", "gemma3"],
)
def test_length_and_vocabulary_of_a_model(tmp_path: Path, config: dict[str, Any], length: int, vocabulary: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(tmp_path, 512) == length
    assert vocabulary_size(tmp_path) == vocabulary


def test_a_kind_of_model_that_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(ModelError, match="abacus"):
        context_length(tmp_path, 512)


@pytest.mark.parametrize("cpu", [True, False])
def test_the_key_value_cache_has_the_size_of_the_setting(tiny_model: ModelFolder, cpu: bool) -> None:
    arguments = _arguments(tiny_model, VllmSettings(kv_cache_mb=64), cpu)
    assert arguments["kv_cache_memory_bytes"] == 64 << 20
    assert ("gpu_memory_utilization" in arguments) is not cpu
