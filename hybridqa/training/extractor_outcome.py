"""What may be asked of an extractor's making, and what is told of it.

Knows nothing about how it is made. Invariant: every option but the data has a default that can be used as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridqa.training.mixture import Mixture
from hybridqa.types import DEFAULT_COLLECTION

QUESTIONS_PER_DOCUMENT = 50


@dataclass(frozen=True, slots=True)
class ExtractorOptions:
    """What is asked for; see `HybridQA.train_extractor`."""

    collection: str = DEFAULT_COLLECTION
    work: Path | None = None
    documents: int | None = None
    questions_per_document: int = QUESTIONS_PER_DOCUMENT
    steps: int = 0
    modules: bool = True
    module_documents: int | None = None  # that get modules; None: all
    publish: bool = True
    output: Path | None = None
    mixture: Mixture = field(default_factory=Mixture)


@dataclass(frozen=True, slots=True)
class ExtractorOutcome:
    """What became of it."""

    state: str  # "published", "rejected", "known" (made before), or "trained" where it was not to be published
    module: str | None  # `Module.name`, where it is in the registry
    reason: str
    work: Path  # the store of its documents
    output: Path | None
    seconds: float
    metrics: dict[str, Any]  # as in the manifest
