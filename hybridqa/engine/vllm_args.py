"""How vLLM is imported and set up: arguments from a model folder, quiet, and with the process left as it was.

Knows nothing about requests. Invariant: after `build` the process's torch threads, random state, default dtype and
environment (but for vLLM's own variables) are what they were before.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridqa.engine.environment import prepare_environment
from hybridqa.errors import EngineError, ModelError
from hybridqa.models import ModelFolder

_LINEAR = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
# What kinds of models call the longest context.
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
_BLOCK_WEIGHT = re.compile(r"\.\d+\..*?(\w+)\.weight$")


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """What a user may set of the engine."""

    dtype: str = "auto"
    max_model_len: int = 4096
    max_lora_rank: int = 64
    max_stacks: int = 4  # different adapters in one batch
    kv_cache_mb: int | None = None  # None: 512 on a CPU, 4096 on a GPU
    max_requests: int = 32  # in one batch, CPU only
    seed: int = 0

    @property
    def max_loaded(self) -> int:
        """Adapters kept in memory: an eviction is a read from disk."""
        return max(16, 4 * self.max_stacks)


def context_length(folder: Path, wanted: int) -> int:
    """`wanted`, or the model's own limit where that is less. Raises `ModelError`."""
    config = _text_config(folder)
    limits = [getattr(config, name, None) for name in _LENGTHS]
    return min([wanted, *(limit for limit in limits if isinstance(limit, int) and limit > 0)])


def vocabulary_size(folder: Path) -> int:
    """How many tokens the model knows. Raises `ModelError`."""
    return int(_text_config(folder).vocab_size)


def _text_config(folder: Path) -> Any:
    """The language model's part of config.json; what that leaves out has the defaults of the model's kind."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"transformers could not read the config in {str(folder)!r}: {error}. Expected a model that this version "
            "knows; download the model's folder again, or name another model."
        ) from error


def linear_targets(folder: Path) -> list[str] | None:
    """The names of the linear layers when the model's blocks have the common seven and no other matrices, else None.

    Naming them spares vLLM the LoRA buffers of the embedding and the head, which are the largest.
    """
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            match = _BLOCK_WEIGHT.search(name)
            if match and len(entry.get("shape", ())) > 1:
                found.add(match[1])
    return sorted(_LINEAR) if found == _LINEAR else None


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; where it does not, float32 is several times faster."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return (
        "avx512_bf16" in flags or "amx_bf16" in flags or re.search(r"^Features\s*:.*\bbf16\b", flags, re.M) is not None
    )


def build(model: ModelFolder, settings: VllmSettings) -> Any:
    """A vLLM `LLMEngine` that runs in this process. Raises `ModelError` or `EngineError`."""
    prepare_environment()
    logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
    with _process_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of vLLM and what it imports
        try:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.llm_engine import LLMEngine
        except ImportError as error:
            raise EngineError(
                f"vLLM could not be imported: {error}. Run `pip install 'hybridqa[cpu]'` (or `[gpu]`), "
                "or set HYBRIDQA_ENGINE=reference."
            ) from error
        from hybridqa.vllm_plugin import register

        register()
        try:
            return LLMEngine.from_engine_args(EngineArgs(**_arguments(model, settings, current_platform.is_cpu())))
        except (ValueError, RuntimeError, OSError, MemoryError, AssertionError) as error:
            raise ModelError(
                f"vLLM could not load {model.name!r} from {str(model.path)!r}: {error}. "
                "When memory is short lower HYBRIDQA_MAX_MODEL_LEN, HYBRIDQA_MAX_STACKS or HYBRIDQA_KV_CACHE_MB; when "
                "the cache is too small for the context raise HYBRIDQA_KV_CACHE_MB."
            ) from error


def _arguments(model: ModelFolder, settings: VllmSettings, cpu: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": str(model.path),
        "dtype": "float32" if cpu and settings.dtype == "auto" and not cpu_has_bfloat16() else settings.dtype,
        "max_model_len": context_length(model.path, settings.max_model_len),
        "seed": settings.seed,
        "enable_lora": True,
        "max_loras": settings.max_stacks,
        "max_lora_rank": settings.max_lora_rank,
        "max_cpu_loras": settings.max_loaded,
        "kv_cache_memory_bytes": (settings.kv_cache_mb or (512 if cpu else 4096)) << 20,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if cpu:
        arguments |= {
            "enforce_eager": True,  # LoRA turns compilation off anyway; this starts in a tenth of the time
            "max_num_seqs": settings.max_requests,
            # Whole prompts: vLLM's CPU backend fails on a seeded request whose prompt it takes in pieces.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(2048, context_length(model.path, settings.max_model_len)),
            "lora_target_modules": linear_targets(model.path),
        }
    else:
        # By default vLLM takes nine tenths of the GPU, and the trainer, a process beside it, would find none left. With
        # the cache's size given, this share is no more than what vLLM wants to find free before it starts.
        arguments["gpu_memory_utilization"] = 0.01
    return arguments


@contextmanager
def _process_kept() -> Iterator[None]:
    """Undoes what building an engine does to the rest of the process.

    vLLM replaces `torch.set_num_threads` by a function that refuses, seeds every random generator, and exports
    LD_PRELOAD and the like for children that it does not start here.
    """
    import random

    import numpy as np
    import torch

    environment = dict(os.environ)
    set_num_threads, threads, dtype = torch.set_num_threads, torch.get_num_threads(), torch.get_default_dtype()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        for name in set(os.environ) - set(environment):
            if not name.startswith("VLLM_"):
                del os.environ[name]
        os.environ.update({name: value for name, value in environment.items() if not name.startswith("VLLM_")})
