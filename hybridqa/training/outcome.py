"""What a refresh says: events while it works, one outcome a document, a report; and where a document's module stands.

Knows nothing about how modules are made. Invariant: every document of a refresh has exactly one outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybridqa.catalog import Catalog
from hybridqa.types import Module, ModuleKind, ModuleStatus


@dataclass(frozen=True, slots=True)
class RefreshEvent:
    """How far the work on one document is."""

    collection: str
    doc_id: str
    stage: str  # "skip", "synthesise", "teach", "train", "gate", "publish" or "failed"
    step: int = 0
    total: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class RefreshOutcome:
    """What became of one document."""

    collection: str
    doc_id: str
    module: str | None  # `Module.name` of the version made, or of the one that is still fresh
    state: str  # "published", "rejected", "fresh", "changed" or "failed"
    reason: str
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """What became of all of them."""

    outcomes: tuple[RefreshOutcome, ...]
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether any document could not be worked on."""
        return any(outcome.state == "failed" for outcome in self.outcomes)


def settled(versions: Sequence[Module], recipe: Mapping[str, Any], fresh: str) -> tuple[Module, str, str] | None:
    """The version by which nothing is left to do for a content, its state and the reason; None: there is work.

    It is the one in service, whatever was tried after it, or else the latest that this recipe failed with. `versions`
    come oldest first; `fresh` is the reason of the one in service.
    """
    for module in versions:
        if module.current:
            return module, "fresh", fresh
    for module in reversed(versions):
        if module.status is ModuleStatus.REJECTED and module.metrics.get("recipe") == recipe:
            return module, "rejected", "rejected before; train again with --force"
    return None


def module_state(catalog: Catalog, collection: str, doc_id: str) -> str:
    """'none', 'published', 'stale' or 'rejected': what stands behind a document now."""
    digest = catalog.get_document(collection, doc_id).content_hash
    modules = [
        module
        for module in catalog.list_modules(collection)
        if module.kind is ModuleKind.DOCUMENT and doc_id in module.documents
    ]
    current = [module for module in modules if module.current]
    if any(module.documents[doc_id] == digest for module in current):
        return "published"
    if any(module.documents[doc_id] == digest and module.status is ModuleStatus.REJECTED for module in modules):
        return "rejected"
    return "stale" if current else "none"
