"""The nouns that the parts hand to one another: frozen, slotted, plain data.

Knows nothing about storage, models or engines. Invariant: offsets are in code points of `Document.text`, half-open, and
`document.text[p.start:p.end] == p.text` for each of its passages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

DEFAULT_COLLECTION = "default"
Weight = float | Mapping[str, float]  # of a whole adapter, or of each of its layers by name; layers not named: 1.0


class Mode(StrEnum):
    """Where an answer may come from."""

    HYBRID = "hybrid"  # passages and modules
    RETRIEVAL = "retrieval"  # passages alone
    MODULES = "modules"  # modules alone: nothing of the document in the prompt
    CLOSED = "closed"  # the base model's memory


class ModuleKind(StrEnum):
    """What a module was distilled from, and so when it is plugged in."""

    DOCUMENT = "document"  # chosen by the router, when a question is about its document
    INSTRUCTIONS = "instructions"  # a system prompt or style guide
    EXAMPLES = "examples"  # many demonstrations
    SCRATCHPAD = "scratchpad"  # reasoning, so that the answer comes without it
    EXTRACTOR = "extractor"  # the task itself: how to use passages and modules

    @property
    def is_plugin(self) -> bool:
        """Whether it is put in a stack because somebody asked for it by its id."""
        return self not in (ModuleKind.DOCUMENT, ModuleKind.EXTRACTOR)


class ModuleStatus(StrEnum):
    """What the gate, and time, have said of one version of a module."""

    PUBLISHED = "published"  # passed its gate
    REJECTED = "rejected"  # kept with its report, never plugged in


@dataclass(frozen=True, slots=True)
class Document:
    """One text as the catalog keeps it."""

    doc_id: str
    collection: str
    title: str
    text: str
    content_hash: str  # sha256 hex of what makes the passages: title and text
    source: str | None = None  # the path it was read from
    media_type: str = "text/plain"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    added_at: str = ""  # ISO 8601, UTC
    updated_at: str = ""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which documents a question may be answered from; what is left out lets everything pass.

    Raises `InputError` for values that nothing can be compared with; see `hybridqa.filtering`.
    """

    doc_ids: tuple[str, ...] | None = None  # these alone
    metadata: Mapping[str, Any] = field(default_factory=dict)  # key → value, or a list of values any of which fits
    since: str | None = None  # ISO 8601 date or date and time, inclusive; UTC where it names no time zone
    until: str | None = None  # the same; a date alone means to the end of that day

    def __post_init__(self) -> None:
        from hybridqa.filtering import check_filter

        check_filter(self)

    @property
    def is_open(self) -> bool:
        """Whether every document passes."""
        return self.doc_ids is None and not self.metadata and self.since is None and self.until is None


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document: `document.text[start:end] == text`."""

    passage_id: int  # positive int64, never reused in a store
    doc_id: str
    collection: str
    ordinal: int  # 0-based position among the document's passages
    start: int
    end: int
    text: str
    title: str = ""  # the document's
    heading: str = ""  # "Chapter > Section" above it, where the format has headings


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    """A passage with the evidence that brought it."""

    passage: Passage
    score: float  # fused, higher is better; comparable within one search only
    dense: float | None = None  # cosine similarity, -1 to 1; None when dense search did not return it
    lexical: float | None = None  # BM25, higher is better; None when lexical search did not return it
    coverage: float = 0.0  # share of the question's words that it has, 0 to 1
    title: float = 0.0  # how far the question names its document, 0 to 1
    also: tuple[Passage, ...] = ()  # others that say the same, and were left out for it
    likelihood: float | None = None  # of the question behind it, nats a token; None where it was not reranked
    linked: float = 0.0  # of its score: what leads to it from passages that were found before it


@dataclass(frozen=True, slots=True)
class Module:
    """One version of a module in the registry."""

    module_id: str
    version: int  # from 1
    collection: str
    path: Path  # the PEFT folder
    documents: Mapping[str, str]  # doc_id → content_hash that it was distilled from; of a document's module never empty
    base_model_hash: str
    rank: int
    status: ModuleStatus
    current: bool  # the registry's pointer stands on this version
    created_at: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)  # the gate's report
    kind: ModuleKind = ModuleKind.DOCUMENT

    @property
    def name(self) -> str:
        """Unique over the whole store and for ever: `module_id@version`."""
        return f"{self.module_id}@{self.version}"


@dataclass(frozen=True, slots=True)
class ModuleChoice:
    """A module that a route plugs in."""

    module: Module
    weight: Weight  # multiplies the adapter's own scale
    evidence: float  # 0 to 1: how sure the router is that the question is about its documents; 1 where nothing decides


@dataclass(frozen=True, slots=True)
class Route:
    """What the router decided for one question."""

    mode: Mode
    passages: tuple[ScoredPassage, ...] = ()
    modules: tuple[ModuleChoice, ...] = ()  # of documents, strongest evidence first
    reason: str = ""  # one line for people
    plugins: tuple[ModuleChoice, ...] = ()  # those asked for, in that order
    extractor: ModuleChoice | None = None
    found: tuple[ScoredPassage, ...] = ()  # all that was looked at, best first; `passages` are of these
    evidence: Mapping[str, float] = field(default_factory=dict)  # 0 to 1, of each document that was found
    considered: tuple[ModuleChoice, ...] = ()  # usable modules of those documents, strongest evidence first


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str  # "system", "user" or "assistant"
    content: str


@dataclass(frozen=True, slots=True)
class Citation:
    """A quote that supports the answer: `document.text[start:end] == quote`."""

    number: int  # the n of the inline [n]
    doc_id: str
    title: str
    passage_id: int
    start: int
    end: int
    quote: str
    places: tuple[
        tuple[int, int], ...
    ] = ()  # of its markers in the answer: `text[start:end]`, such as "[1]" or "[1, 2]"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """What `ask` gives back."""

    text: str
    mode: Mode
    abstained: bool = False
    missing: str | None = None  # when abstained: what was looked for and not found
    citations: tuple[Citation, ...] = ()
    passages: tuple[ScoredPassage, ...] = ()  # those that were in the prompt, in the order of their numbers
    modules: tuple[ModuleChoice, ...] = ()  # of documents; plug-ins and extractor are below
    confidence: float | None = None  # 0 to 1, to order answers by: `probability` times the evidence; 0 where abstained
    probability: float | None = None  # mean probability of the answer's tokens, 0 to 1
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds by step
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = "stop"  # "stop", "length" where it was cut off at `max_tokens`, or "abort"
    route_reason: str = ""
    plugins: tuple[ModuleChoice, ...] = ()
    extractor: ModuleChoice | None = None
    route: Route | None = None  # what the router saw and decided
