"""Random tiny decoders of several families, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def _save(folder: Path, family: str) -> Path:
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        GPTJConfig,
        GraniteMoeHybridConfig,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    common = {"vocab_size": 97, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model: torch.nn.Module
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **sizes, **common))
    elif family == "mistral":  # its layers look eight tokens back, no further
        config = MistralConfig(num_hidden_layers=4, sliding_window=8, head_dim=8, **sizes, **common)
        model = MistralForCausalLM(config)
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=4, tie_word_embeddings=True, **sizes, **common))
    elif family == "gptj":  # attention of its own only, and layers that hand on tuples
        model = AutoModelForCausalLM.from_config(
            GPTJConfig(n_layer=4, n_head=4, n_embd=32, rotary_dim=4, vocab_size=97, n_positions=256)
        )
    elif family == "granitemoehybrid":  # every other layer has a state that runs along the row
        state = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "layer_types": ["mamba", "attention"] * 2}
        state["mamba_chunk_size"] = 16  # rows are filled up to it
        model = AutoModelForCausalLM.from_config(
            GraniteMoeHybridConfig(
                num_hidden_layers=4, num_local_experts=0, shared_intermediate_size=48, **state, **sizes, **common
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(n_layer=4, n_head=4, n_embd=32, vocab_size=97, n_positions=256, bos_token_id=0, eos_token_id=1)
        )
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


@pytest.fixture(scope="session", params=["llama", "qwen2", "gpt2", "gptj", "granitemoehybrid"])
def tiny_decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random decoder of four layers."""
    return _save(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def tiny_windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random decoder whose attention looks eight tokens back."""
    return _save(tmp_path_factory.mktemp("mistral"), "mistral")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of four layers."""
    return _save(tmp_path_factory.mktemp("llama"), "llama")
