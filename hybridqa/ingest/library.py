"""Takes files and texts into the catalog: read, split, embed, keep.

Knows nothing about questions or modules. Invariant: a document, its passages and their vectors are kept together or not
at all, and content that is already there costs no embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hybridqa.catalog import Catalog, PutResult
from hybridqa.catalog_rows import checked_collection
from hybridqa.errors import InputError, UnreadableDocumentError
from hybridqa.ingest.passages import split_passages
from hybridqa.ingest.readers import is_folder, read_path, walk
from hybridqa.ingest.source import Heading, SourceText, normalise, one_line, shown_name
from hybridqa.retrieval.embedder import Embedder
from hybridqa.types import DEFAULT_COLLECTION, Document

MAX_ID_CHARACTERS = 512
MAX_TITLE_CHARACTERS = 1_000


@dataclass(frozen=True, slots=True)
class AddResult:
    """What became of one document."""

    doc_id: str
    collection: str
    result: PutResult
    passages: int


class Library:
    """Adds documents to one store."""

    def __init__(self, catalog: Catalog, embedder: Embedder, *, passage_tokens: int, max_bytes: int) -> None:
        self._catalog = catalog
        self._embedder = embedder
        self._passage_tokens = passage_tokens
        self._max_bytes = max_bytes

    def add_path(
        self,
        path: Path,
        *,
        doc_id: str | None = None,
        collection: str = DEFAULT_COLLECTION,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[AddResult]:
        """Adds a file, or every readable file under a folder; see `HybridQA.add`."""
        if not is_folder(path):
            return [self.add_file(path, doc_id or path.name, collection=collection, title=title, metadata=metadata)]
        if doc_id is not None or title is not None:
            raise InputError(f"{str(path)!r} is a folder; an id or a title is for one file. Leave them out.")
        results: list[AddResult] = []
        errors: list[InputError] = []
        for file in walk(path, errors.append):
            try:
                results.append(
                    self.add_file(file, file.relative_to(path).as_posix(), collection=collection, metadata=metadata)
                )
            except InputError as error:  # also a name that can be no id: it costs no other file its place
                errors.append(error)
        if errors:
            raise errors[0]
        return results

    def add_file(
        self,
        path: Path,
        doc_id: str,
        *,
        collection: str = DEFAULT_COLLECTION,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> AddResult:
        """Adds one file under `doc_id`."""
        return self.add_source(
            read_path(path, max_bytes=self._max_bytes),
            doc_id,
            collection=collection,
            title=title,
            metadata=metadata,
            path=shown_name(str(path.resolve())),
        )

    def add_source(
        self,
        source: SourceText,
        doc_id: str,
        *,
        collection: str = DEFAULT_COLLECTION,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        path: str | None = None,
    ) -> AddResult:
        """Adds what a reader has made of a file under `doc_id`; `path` is where it was read from."""
        return self._put(
            doc_id,
            source.text,
            title if title is not None else source.title,
            source.headings,
            collection=collection,
            source=path,
            media_type=source.media_type,
            metadata=metadata,
        )

    def add_text(
        self,
        doc_id: str,
        text: str,
        *,
        title: str = "",
        collection: str = DEFAULT_COLLECTION,
        metadata: Mapping[str, Any] | None = None,
    ) -> AddResult:
        """Adds a text under `doc_id`."""
        text = normalise(text)
        if not text.strip():
            raise UnreadableDocumentError(f"document {doc_id!r} has no text; expected at least one word.")
        if len(text.encode("utf-8")) > self._max_bytes:
            raise UnreadableDocumentError(
                f"document {doc_id!r} has {len(text):,} characters; expected at most {self._max_bytes:,} bytes. "
                "Split it, or raise `max_document_mb` in hybridqa.toml."
            )
        return self._put(doc_id, text, title, (), collection=collection, metadata=metadata)

    def _put(
        self,
        doc_id: str,
        text: str,
        title: str,
        headings: Sequence[Heading],
        *,
        collection: str,
        source: str | None = None,
        media_type: str = "text/plain",
        metadata: Mapping[str, Any] | None = None,
    ) -> AddResult:
        if not doc_id.strip() or len(doc_id) > MAX_ID_CHARACTERS or not doc_id.isprintable():
            raise InputError(
                f"document id {doc_id[:80]!r} cannot be used; expected 1 to {MAX_ID_CHARACTERS} printable characters."
            )
        checked_collection(collection)  # before anything dear is done
        title = one_line(normalise(title))
        if len(title) > MAX_TITLE_CHARACTERS:  # it is kept, searched and embedded with every passage
            raise InputError(
                f"title {title[:80]!r}... of document {doc_id!r} has {len(title):,} characters; expected at most "
                f"{MAX_TITLE_CHARACTERS:,}."
            )
        digest = content_hash(title, text, headings)
        known = self._catalog.find_document(collection, doc_id)
        same = known if known is not None and known.content_hash == digest else None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        document = Document(
            doc_id=doc_id,
            collection=collection,
            title=title,
            text=text,
            content_hash=digest,
            source=source,
            media_type=media_type,
            metadata=dict((known.metadata if known is not None else {}) if metadata is None else metadata),
            added_at=known.added_at if known else now,
            updated_at=now,
        )
        if same is not None:
            self._catalog.update_about(document)
            count = len(self._catalog.document_passages(collection, doc_id))
            return AddResult(doc_id, collection, PutResult.UNCHANGED, count)
        size = min(self._passage_tokens, self._embedder.max_tokens)
        drafts = split_passages(text, headings, self._embedder.count_tokens, size)
        embedded = self._embedder.embed_passages(
            [self._embedder.passage_text(title, draft.heading, draft.text) for draft in drafts]
        )
        result = self._catalog.put_document(document, drafts, embedded, self._embedder.fingerprint)
        return AddResult(doc_id, collection, result, len(drafts))


def content_hash(title: str, text: str, headings: Sequence[Heading] = ()) -> str:
    """sha256 hex of what decides a document's passages and module."""
    content = f"{title}\x00{text}"
    if headings:  # a text without any keeps the hash that it had before they counted
        content += "\x00" + json.dumps([[heading.start, heading.level, heading.title] for heading in headings])
    return hashlib.sha256(content.encode()).hexdigest()
