"""Turns text into vectors with a sentence-transformers model in a local folder.

Knows nothing about storage, collections or search. Invariant: equal fingerprints mean equal vectors for equal text, and
every vector has length 1, so that an inner product is a cosine.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybridqa.errors import ModelError
from hybridqa.files import sha256_file

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Progress = Callable[[int, int], None]  # (texts done, texts in all)

HEADER_TOKENS = 48  # of the model's window are kept for title, heading and what joins them to the text
TITLE_TOKENS = 20
HEADING_TOKENS = 20
JOIN = " — "
UNKNOWN_BYTES = 12  # of a text with unknown tokens, to a token at most; of known ones a token seldom has more
BATCH = 4  # as fast as more on a CPU; a question that comes between waits for one of them
_TEXT_FORMAT = "1"  # part of the fingerprint: what `passage_text` makes of a passage
_WINDOW = 512  # tokens, of a model that does not say its own
_CONFIGS = (
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_VERSIONS = {"__version__", "transformers_version", "_name_or_path"}  # say nothing of the vectors


class Embedder:
    """An embedding model; loaded at the first use, safe to share between threads."""

    def __init__(self, path: Path | str, *, device: str = "cpu") -> None:
        """Takes a model's folder. Raises `ModelError` when it cannot be one."""
        self.path = Path(path)
        self._device = device
        self._loading = threading.Lock()
        self._using = threading.Lock()  # a fast tokenizer keeps padding and truncation as state
        self._loaded: SentenceTransformer | None = None
        if not (self.path / "config.json").is_file() or not any(self.path.glob("*.safetensors")):
            raise ModelError(
                f"{str(self.path)!r} holds no embedder: expected config.json with *.safetensors. "
                "Set HYBRIDQA_EMBEDDER to a sentence-transformers folder or hub id."
            )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 hex over weights, configs and the way passages are written; loads no model."""
        digest = hashlib.sha256(f"hybridqa passage text {_TEXT_FORMAT}\n".encode())
        for path in _defining_files(self.path):
            content = _config_digest(path) if path.suffix == ".json" else sha256_file(path)
            digest.update(f"{path.relative_to(self.path).as_posix()}\0{content}\n".encode())
        return digest.hexdigest()

    @cached_property
    def dimensions(self) -> int:
        """The length of a vector."""
        return int(self._encode([""], "").shape[1])

    @cached_property
    def max_tokens(self) -> int:
        """Tokens of a passage's text that are read for certain, whatever its title and heading."""
        model = self._model()
        window = getattr(model, "max_seq_length", None)
        window = int(window) if window and window < 1_000_000 else _WINDOW
        special = len(self._token_ids(["a"], special=True)[0]) - len(self._token_ids(["a"])[0])
        prompt = self.count_tokens([self._prompt("passage", "document")])[0]
        return max(16, window - special - prompt - HEADER_TOKENS)

    def embed_passages(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """The vectors (N, D) of passages as `passage_text` writes them; `progress` hears of every batch."""
        self._model()
        vectors_N_D = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        prompt = self._prompt("passage", "document")
        # texts of like length share a batch, so that little of it is padding; the longest come first
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            vectors_N_D[places] = self._encode([texts[place] for place in places], prompt)
            if progress is not None:
                progress(min(start + BATCH, len(order)), len(order))
        return vectors_N_D

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """The vector (D,) of a question."""
        self._model()
        vector_D: NDArray[np.float32] = self._encode([text], self._prompt("query"))[0]
        return vector_D

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, without the special ones around it.

        A text in a script that the tokenizer does not know, a word to one unknown token, counts by its length: a
        language model takes its words to pieces.
        """
        if not texts:
            return []
        unknown = getattr(self._model().tokenizer, "unk_token_id", None)
        return [
            max(len(ids), len(text.encode("utf-8", "replace")) // UNKNOWN_BYTES) if unknown in ids else len(ids)
            for text, ids in zip(texts, self._token_ids(list(texts)), strict=True)
        ]

    def passage_text(self, title: str, heading: str, text: str) -> str:
        """What is embedded for a passage: title and heading, cut to their share of the window, before its text."""
        title = self._shortened(title.split(), TITLE_TOKENS)
        heading = self._shortened(heading.split()[::-1], HEADING_TOKENS, backwards=True)  # its end is nearest the text
        return JOIN.join(part for part in (title, heading, text) if part)

    def _shortened(self, words: list[str], limit: int, *, backwards: bool = False) -> str:
        words = [word[: 4 * limit] for word in words[:limit]]
        if sum(len(word) for word in words) > limit:  # else there are no more tokens than that
            counts = np.cumsum(self.count_tokens(words))
            kept = int((counts <= limit).sum())
            words = words[:kept] or [words[0][:limit]]
        return " ".join(reversed(words) if backwards else words)

    def _model(self) -> SentenceTransformer:
        with self._loading:
            if self._loaded is None:
                from safetensors import SafetensorError
                from sentence_transformers import SentenceTransformer
                from transformers.utils.logging import disable_progress_bar

                disable_progress_bar()  # ours are enough
                try:
                    self._loaded = SentenceTransformer(
                        str(self.path),
                        device=self._device,
                        local_files_only=True,
                        model_kwargs={"use_safetensors": True},
                    )
                except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
                    raise ModelError(
                        f"the embedder in {str(self.path)!r} could not be loaded: {error}. Expected a "
                        "sentence-transformers folder; install or download it again."
                    ) from error
            return self._loaded

    def _prompt(self, *names: str) -> str:
        """The model's own prompt of one of these names, if it has any."""
        prompts = self._model().prompts
        return next((prompts[name] for name in names if prompts.get(name)), "")

    def _encode(self, texts: list[str], prompt: str) -> NDArray[np.float32]:
        model = self._model()
        with self._using:
            vectors_N_D = model.encode(
                texts,
                prompt=prompt,
                batch_size=BATCH,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=True,
            )
        return np.asarray(vectors_N_D, dtype=np.float32)

    def _token_ids(self, texts: list[str], *, special: bool = False) -> list[list[int]]:
        tokenizer: Any = self._model().tokenizer
        with self._using:
            found: list[list[int]] = tokenizer(
                texts,
                add_special_tokens=special,
                truncation=False,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
        return found


def _defining_files(folder: Path) -> list[Path]:
    """The files that decide what the vectors are, sorted; not exports to other runtimes that may lie beside."""
    found = [folder / name for name in _CONFIGS]
    found.extend(folder.glob("*.safetensors"))
    modules = folder / "modules.json"
    if modules.is_file():
        for module in _read_json(modules):
            part = folder / str(module.get("path", ""))
            if part != folder:
                found.extend([part / "config.json", *part.glob("*.safetensors")])
    return sorted(path for path in found if path.is_file())


def _config_digest(path: Path) -> str:
    value = _read_json(path)
    if isinstance(value, dict):
        value = {key: content for key, content in value.items() if key not in _VERSIONS}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{str(path)!r} could not be read: {error}. Install or download the embedder again."
        ) from error
