"""What goes into the catalog and comes out of it, and what is refused at its door.

Knows nothing about SQL or files. Invariant: whatever passes `checked_document` and `checked_passages` can be stored,
indexed and cited: offsets are exact, vectors are finite and one per passage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hybridqa.errors import InputError
from hybridqa.types import Document

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]
State = tuple[int, str]  # of the vectors: generation and token, the token empty in a store of an older hybridqa

T = TypeVar("T")

MAX_COLLECTION_CHARACTERS = 128
ID_BATCH = 10_000  # ids in one statement


class PutResult(StrEnum):
    """What `put_document` did."""

    ADDED = "added"
    UNCHANGED = "unchanged"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class PassageDraft:
    """A passage before the catalog has given it an id: `document.text[start:end] == text`."""

    ordinal: int
    start: int
    end: int
    text: str
    heading: str = ""


@dataclass(frozen=True, slots=True)
class DocumentSummary:
    """A document without its text."""

    doc_id: str
    collection: str
    title: str
    content_hash: str
    characters: int
    passages: int
    updated_at: str
    source: str | None


def batches(items: Sequence[T], size: int = ID_BATCH) -> Iterator[Sequence[T]]:
    """The items in slices of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def now() -> str:
    """The time as the catalog keeps it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def checked_collection(name: str) -> str:
    """The name back, when it may name a collection. Raises `InputError`."""
    usable = name.isprintable() and name == name.strip() and 0 < len(name) <= MAX_COLLECTION_CHARACTERS
    if not usable or name.startswith(".") or "/" in name or "\\" in name:
        raise InputError(
            f"{name[:MAX_COLLECTION_CHARACTERS]!r} cannot name a collection: expected 1 to {MAX_COLLECTION_CHARACTERS} "
            "printable characters without slashes, a leading dot or spaces around them."
        )
    return name


def checked_document(document: Document) -> str:
    """The document's metadata as JSON, when all of it can be stored. Raises `InputError`."""
    if not document.doc_id.strip():
        raise InputError(f"{document.doc_id!r} cannot name a document: expected a text that is not blank.")
    if not document.content_hash:
        raise InputError(
            f"document {document.doc_id!r} has no content_hash; expected the sha256 of its title and text."
        )
    for name in ("doc_id", "title", "text", "source", "media_type", "content_hash"):
        storable(getattr(document, name) or "", f"{name} of document {document.doc_id!r}")
    return to_json(document.metadata, f"metadata of document {document.doc_id!r}")


def storable(text: str, what: str) -> str:
    """The text back, when it is valid Unicode. Raises `InputError`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{what} has the lone surrogate {text[error.start]!r}; expected valid Unicode.") from error
    return text


def checked_passages(document: Document, passages: Sequence[PassageDraft], embeddings_N_D: np.ndarray) -> Vectors:
    """The vectors in the form that is stored, when they and the passages fit the document. Raises `InputError`."""
    if not passages:
        raise InputError(f"document {document.doc_id!r} has no passages; expected at least one.")
    for ordinal, passage in enumerate(passages):
        if passage.ordinal != ordinal:
            raise InputError(
                f"passage {ordinal} of document {document.doc_id!r} has the ordinal {passage.ordinal}; "
                "expected passages in order, counted from 0."
            )
        if not 0 <= passage.start < passage.end <= len(document.text):
            raise InputError(
                f"passage {ordinal} of document {document.doc_id!r} spans [{passage.start}, {passage.end}); expected "
                f"offsets within its {len(document.text)} characters."
            )
        if document.text[passage.start : passage.end] != passage.text:
            raise InputError(
                f"passage {ordinal} of document {document.doc_id!r} is not the document's text at "
                f"[{passage.start}, {passage.end}); expected exact offsets."
            )
        storable(passage.heading, f"heading of passage {ordinal} of document {document.doc_id!r}")
    return checked_vectors(embeddings_N_D, len(passages), f"document {document.doc_id!r}")


def checked_vectors(embeddings_N_D: np.ndarray, count: int, what: str) -> Vectors:
    """The vectors as float32, little-endian and contiguous. Raises `InputError`."""
    vectors_N_D = np.ascontiguousarray(embeddings_N_D, dtype="<f4")
    if vectors_N_D.ndim != 2 or vectors_N_D.shape[0] != count or vectors_N_D.shape[1] == 0:
        raise InputError(f"embeddings of {what} have shape {vectors_N_D.shape}; expected ({count}, dimensions).")
    if not np.isfinite(vectors_N_D).all():
        raise InputError(f"embeddings of {what} hold NaN or infinity; expected finite numbers.")
    return vectors_N_D


def to_json(value: Mapping[str, Any], what: str) -> str:
    """Canonical JSON of a mapping. Raises `InputError` when it has no JSON form."""
    try:
        return storable(json.dumps(dict(value), sort_keys=True, ensure_ascii=False, allow_nan=False), what)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{what} cannot be written as JSON: {error}. Use texts, numbers, lists and mappings."
        ) from error
