"""What a refresh says: events while it works, one outcome a document, a report; and where a document's module stands.

Knows nothing about how modules are made. Invariant: every document of a refresh has exactly one outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybridqa.catalog import Catalog, DocumentSummary
from hybridqa.types import Document, Module, ModuleKind, ModuleStatus


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


def module_states(catalog: Catalog, collection: str | None = None) -> dict[tuple[str, str, str], str]:
    """What stands behind each content that a module was made of, by collection, document and content hash.

    'published' or 'rejected'; and under the hash '' 'stale', for a document whose module in service may be of another
    content.
    """
    found: dict[tuple[str, str, str], str] = {}
    for module in catalog.list_modules(collection):
        if module.kind is not ModuleKind.DOCUMENT:
            continue
        for doc_id, content_hash in module.documents.items():
            exact = (module.collection, doc_id, content_hash)
            if module.current:
                found[exact] = "published"
                found[(module.collection, doc_id, "")] = "stale"
            elif module.status is ModuleStatus.REJECTED:
                found.setdefault(exact, "rejected")
    return found


def state_of(states: Mapping[tuple[str, str, str], str], document: DocumentSummary | Document) -> str:
    """'none', 'published', 'stale' or 'rejected': what stands behind a document as it is now."""
    exact = (document.collection, document.doc_id, document.content_hash)
    return states.get(exact) or states.get((document.collection, document.doc_id, "")) or "none"


def module_state(catalog: Catalog, collection: str, doc_id: str) -> str:
    """`state_of` one document. Raises `CollectionNotFoundError`, `DocumentNotFoundError`."""
    return state_of(module_states(catalog, collection), catalog.get_document(collection, doc_id))
