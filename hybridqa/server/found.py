"""Passages that were found, in the API's shape: with scores, their document's evidence and metadata, and its modules.

Knows nothing about HTTP. Invariant: all that is said of a passage is of its own document and collection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridqa.pipeline import HybridQA
from hybridqa.server.replies import modules_used, passage_name
from hybridqa.types import DEFAULT_COLLECTION, Route, ScoredPassage

Json = dict[str, Any]


def found(store: HybridQA, route: Route, collection: str = DEFAULT_COLLECTION) -> list[Json]:
    """What a route found, best first; reads the metadata, and so may block."""
    doc_ids = sorted({scored.passage.doc_id for scored in route.passages})
    metadata = store.catalog.document_metadata(collection, doc_ids) if doc_ids else {}
    return [_passage(scored, route, metadata) for scored in route.passages]


def _passage(scored: ScoredPassage, route: Route, metadata: Mapping[str, Json]) -> Json:
    passage = scored.passage
    return {
        "passage_id": passage_name(passage),
        "doc_id": passage.doc_id,
        "collection": passage.collection,
        "title": passage.title,
        "heading": passage.heading,
        "start": passage.start,
        "end": passage.end,
        "text": passage.text,
        "score": scored.score,
        "dense": scored.dense,
        "lexical": scored.lexical,
        "evidence": route.evidence.get(passage.doc_id, 0.0),
        "metadata": metadata.get(passage.doc_id, {}),
        "modules": modules_used([one for one in route.considered if passage.doc_id in one.module.documents]),
    }
