"""Ranks passages anew with a cross-encoder of the user's: a model that reads question and passage together.

Knows nothing about search or the base model. Invariant: only the order and the scores of the first passages change;
none is lost, and what stood behind them stays behind them.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridqa.answering.prompt import source_text
from hybridqa.errors import ModelError
from hybridqa.retrieval.rerank import reordered
from hybridqa.types import ScoredPassage

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

WEIGHT = 1.0  # of a logit: such models are trained to give log-odds, as the fused scores are


class CrossEncoderReranker:
    """A sentence-transformers cross-encoder in a local folder; loaded at the first use, safe to share."""

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        self.path = path
        self._device = device
        self._lock = threading.Lock()  # a fast tokenizer refuses two threads at once
        self._loaded: CrossEncoder | None = None

    async def rerank(self, question: str, found: Sequence[ScoredPassage], top: int) -> list[ScoredPassage]:
        """See `Reranker`; `likelihood` is the model's logit.

        Raises `ModelError` for a model that does not give one number to a pair.
        """
        first, rest = list(found[:top]), list(found[top:])
        if len(first) < 2:
            return [*first, *rest]
        pairs = [(question, source_text(scored.passage)) for scored in first]
        logits = await asyncio.to_thread(self._logits, pairs)
        scored = [replace(one, likelihood=logit) for one, logit in zip(first, logits, strict=True)]
        return reordered(scored, logits, rest, WEIGHT)

    def _logits(self, pairs: list[tuple[str, str]]) -> list[float]:
        import torch

        with self._lock:
            model = self._loaded = self._loaded or self._load()
            try:
                values: Any = model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
            except (ValueError, RuntimeError, IndexError) as error:
                raise self._unusable(str(error)) from error
        if values.ndim != 1 or not all(map(math.isfinite, values)):
            raise self._unusable(f"it gives {values.shape} numbers for {len(pairs)} pairs")
        return [float(value) for value in values]

    def _load(self) -> CrossEncoder:
        from sentence_transformers import CrossEncoder

        try:
            return CrossEncoder(str(self.path), device=self._device, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise self._unusable(str(error)) from error

    def _unusable(self, why: str) -> ModelError:
        return ModelError(
            f"{str(self.path)!r} cannot rerank: {why}. Expected a sentence-transformers cross-encoder with one output; "
            "set `reranker` in hybridqa.toml to one, or leave it out for the base model."
        )
