"""Answers in the shapes of the OpenAI API, with their citations three ways: inline, as annotations, and in full.

Knows nothing about HTTP. Invariant: all three say the same, and an annotation's offsets are of the text beside it, in
characters.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from hybridqa.types import Answer, Citation, ModuleChoice, Passage, Usage

Json = dict[str, Any]
_FINISHED = {"length": "length"}  # all else is "stop" to a client


class ChatReply:
    """One chat completion, whole or in chunks."""

    def __init__(self, model: str, collection: str, *, usage: bool = False) -> None:
        """`usage`: its chunks have a place for what it cost, and one behind the last says it."""
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._place: Json = {"usage": None} if usage else {}
        self._created = int(time.time())
        self._model = model
        self._collection = collection

    def whole(self, answer: Answer) -> Json:
        """The body of an answer that is not streamed."""
        message = {
            "role": "assistant",
            "content": answer.text,
            "refusal": None,
            "annotations": url_citations(answer, self._collection),
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(answer)}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage(answer.usage),
            "hybridqa": extension(answer, self._collection),
        }

    def first(self) -> Json:
        """The chunk that says who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> Json:
        """A chunk of text."""
        return self._chunk({"content": text})

    def last(self, answer: Answer) -> list[Json]:
        """The chunk that ends the text, with what it was made from, and that of the usage for who asked for it."""
        delta = {"annotations": url_citations(answer, self._collection)}
        last = {
            **self._chunk(delta, finish_reason(answer)),
            "hybridqa": extension(answer, self._collection),
        }
        if not self._place:
            return [last]
        return [last, {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(answer.usage)}]

    def _chunk(self, delta: Json, finished: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finished}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **self._place}

    def _head(self, kind: str) -> Json:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def finish_reason(answer: Answer) -> str:
    """Why the answer ended, as the API has it."""
    return _FINISHED.get(answer.finish_reason, "stop")


def usage(spent: Usage) -> Json:
    """Tokens, as the API has them."""
    return {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "total_tokens": spent.total_tokens,
    }


def url_citations(answer: Answer, collection: str) -> list[Json]:
    """A `url_citation` for each marker in the text, in their order."""
    found = [(start, end, citation) for citation in answer.citations for start, end in citation.places]
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": start,
                "end_index": end,
                "title": citation.title or citation.doc_id,
                "url": document_url(citation, collection),
            },
        }
        for start, end, citation in sorted(found, key=lambda one: one[:2])
    ]


def passage_name(passage: Passage) -> str:
    """What a passage is called over HTTP: the store's own numbers would tell how much other collections hold."""
    return f"{passage.doc_id}#{passage.ordinal}"


def document_url(citation: Citation, collection: str) -> str:
    """Where this server shows the quoted stretch of a document; characters as RFC 5147 counts them."""
    return (
        f"/v1/documents/{quote(citation.doc_id, safe='')}?collection={quote(collection, safe='')}"
        f"#char={citation.start},{citation.end}"
    )


def extension(answer: Answer, collection: str) -> Json:
    """What the OpenAI API has no place for."""
    return {
        "collection": collection,
        "mode": str(answer.mode),
        "abstained": answer.abstained,
        "missing": answer.missing,
        "confidence": answer.confidence,
        "citations": [_citation(citation, answer) for citation in answer.citations],
        "modules": modules_used(answer.modules),
        "plugins": modules_used(answer.plugins),
        "extractor": next(iter(modules_used([answer.extractor] if answer.extractor else [])), None),
        "reason": answer.route_reason,
        "timings": dict(answer.timings),
    }


def _citation(citation: Citation, answer: Answer) -> Json:
    scored = answer.passages[citation.number - 1]
    return {
        "number": citation.number,
        "doc_id": citation.doc_id,
        "title": citation.title,
        "passage_id": passage_name(scored.passage),
        "start": citation.start,
        "end": citation.end,
        "quote": citation.quote,
        "score": scored.score,
        "places": [list(place) for place in citation.places],
    }


def modules_used(choices: Sequence[ModuleChoice]) -> list[Json]:
    """Modules with the evidence for them."""
    return [
        {"module": choice.module.name, "documents": sorted(choice.module.documents), "evidence": choice.evidence}
        for choice in choices
    ]
