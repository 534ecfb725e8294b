"""The documents API: files and texts put in, listed, read and taken out.

Knows nothing about formats or passages. Invariant: when a POST has returned, an answer can use the document's passages;
when it has failed, nothing of what it brought is in the store, unless the server says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict, ValidationError
from starlette.datastructures import UploadFile

from hybridqa.catalog import DocumentSummary
from hybridqa.ingest.library import AddResult
from hybridqa.ingest.source import SourceText
from hybridqa.ingest.upload_name import upload_name
from hybridqa.pipeline import HybridQA
from hybridqa.server.access import Access, Asking, Editing
from hybridqa.server.body import Body
from hybridqa.server.description import upload_body
from hybridqa.server.errors import ApiError, invalid
from hybridqa.server.uploads import Uploads

T = TypeVar("T")
Json = dict[str, Any]
MAX_FILES = 100  # of one POST
_STRETCH = 1_000_000  # characters of a document in one answer
CollectionName = Annotated[str | None, Query(max_length=200)]


class TextDocument(Body):
    """The body of a POST that is no upload."""

    model_config = ConfigDict(extra="forbid")

    id: str
    text: str
    title: str = ""
    collection: str | None = None
    metadata: dict[str, Any] | None = None


def document_routes(store: HybridQA, uploads: Uploads) -> APIRouter:
    """The paths, over a store."""
    router = APIRouter()
    # threads of their own: those that everything else waits for must not be full of uploads; the embedder goes from one
    # to the next every few passages, so that a large document does not keep small ones waiting
    adding = ThreadPoolExecutor(4, thread_name_prefix="hybridqa-adding")

    async def add(work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(adding, work)

    @router.get("/v1/documents")
    async def documents(
        access: Asking,
        collection: CollectionName = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: str | None = None,
    ) -> Json:
        name = access.collection(collection)
        return await asyncio.to_thread(_page, store, name, limit, after)

    @router.get("/v1/documents/{doc_id:path}")
    async def document(
        access: Asking,
        doc_id: str,
        collection: CollectionName = None,
        start: Annotated[int, Query(ge=0, lt=2**53)] = 0,
        end: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
    ) -> Json:
        return await asyncio.to_thread(_stretch, store, access.collection(collection), doc_id, start, end)

    @router.post("/v1/documents", openapi_extra=upload_body(TextDocument))
    async def post(access: Editing, request: Request) -> Json:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            body = await _text_document(request)
            collection = access.collection(body.collection)
            options: Json = {"title": body.title, "collection": collection, "metadata": body.metadata}
            checked_id(body.id)
            results = [await add(partial(store.add_text, body.id, body.text, **options))]
        elif kind == "multipart/form-data":
            collection, works = await _uploaded(store, uploads, access, request)
            results = [await add(work) for work in works]
        else:
            raise ApiError(
                415, f"a body of type {kind!r} cannot be read; expected multipart/form-data or application/json."
            )
        return await asyncio.to_thread(_added, store, collection, results)

    @router.delete("/v1/documents/{doc_id:path}")
    async def delete(access: Editing, doc_id: str, collection: CollectionName = None) -> Json:
        name = access.collection(collection)
        await asyncio.to_thread(partial(store.remove, doc_id, collection=name))
        return {"id": doc_id, "object": "document", "collection": name, "deleted": True}

    return router


def document_json(summary: DocumentSummary, state: str) -> Json:
    """A document as the API has it; where it was read from is the server's own business."""
    return {
        "id": summary.doc_id,
        "object": "document",
        "collection": summary.collection,
        "title": summary.title,
        "characters": summary.characters,
        "passages": summary.passages,
        "updated_at": summary.updated_at,
        "module": state,
    }


def _page(store: HybridQA, collection: str, limit: int, after: str | None) -> Json:
    found = store.catalog.list_documents(collection, after=after, limit=limit + 1)
    shown = found[:limit]
    data = [document_json(*pair) for pair in zip(shown, store.module_states(shown), strict=True)]
    return {"object": "list", "collection": collection, "data": data, "has_more": len(found) > limit}


def _stretch(store: HybridQA, collection: str, doc_id: str, start: int, end: int | None) -> Json:
    document = store.catalog.get_document(collection, doc_id)
    summaries = store.catalog.document_summaries(collection, [doc_id])
    if not summaries:  # removed just now
        raise ApiError(404, f"collection {collection!r} has no document {doc_id!r}.", code="not_found")
    start = min(start, len(document.text))
    end = min(len(document.text), start + _STRETCH, len(document.text) if end is None else end)
    return {
        **document_json(summaries[0], store.module_states(summaries)[0]),
        "media_type": document.media_type,
        "metadata": dict(document.metadata),
        "start": start,
        "end": max(start, end),
        "text": document.text[start:end],
    }


def _added(store: HybridQA, collection: str, results: list[AddResult]) -> Json:
    summaries = store.catalog.document_summaries(collection, [one.doc_id for one in results])
    known = {one.doc_id: one for one in summaries}
    kept = [(known[one.doc_id], one) for one in results if one.doc_id in known]  # else removed just now
    states = store.module_states([summary for summary, _ in kept])
    data = [
        {**document_json(summary, state), "result": str(result.result)}
        for (summary, result), state in zip(kept, states, strict=True)
    ]
    return {"object": "list", "collection": collection, "data": data}


async def _text_document(request: Request) -> TextDocument:
    try:
        return TextDocument.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        raise invalid(error.errors()) from error
    except (ValueError, RecursionError) as error:
        said = "the body is no JSON in UTF-8 that can be read; expected an object."
        raise ApiError(400, said, code="json_invalid") from error


async def _uploaded(
    store: HybridQA, uploads: Uploads, access: Access, request: Request
) -> tuple[str, list[Callable[[], AddResult]]]:
    """The collection, and the work of adding each file: all have been read by then, so that a bad one stops all."""
    async with request.form(max_files=MAX_FILES, max_fields=20) as form:
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        known = ("id", "title", "collection", "metadata")
        if unknown := sorted(set(form) - {*known, "file"}):
            raise ApiError(
                400, f"there is no field {unknown[0]!r}; expected file, {', '.join(known)}.", param=unknown[0]
            )
        files = [one for one in form.getlist("file") if isinstance(one, UploadFile)]
        collection = access.collection(fields.get("collection"))
        if not files:
            raise ApiError(400, "no file came; expected one or more in the field 'file'.", param="file")
        if len(files) > 1 and ("id" in fields or "title" in fields):
            raise ApiError(400, f"{len(files)} files came with an id or a title; these are for one file.", param="id")
        metadata = _metadata(fields.get("metadata"))
        sources: dict[str, SourceText] = {}
        for file in files:
            name = upload_name(file.filename or "")
            doc_id = checked_id(fields.get("id") or name)
            if doc_id in sources:
                raise ApiError(400, f"two files have the name {doc_id!r}; expected names that differ.", param="file")
            sources[doc_id] = await uploads.read(await file.read(), name=name)
            if sum(len(source.text) for source in sources.values()) > uploads.max_bytes:
                raise ApiError(
                    413,
                    f"the files have more than {uploads.max_bytes:,} characters of text together; send fewer at once.",
                    param="file",
                    code="too_large",
                )
    options: Json = {"title": fields.get("title"), "collection": collection, "metadata": metadata}
    return collection, [
        partial(store.library.add_source, source, doc_id, **options) for doc_id, source in sources.items()
    ]


def checked_id(doc_id: str) -> str:
    """The id back, where a URL can name it. Raises `ApiError`."""
    if {".", ".."} & set(doc_id.split("/")):
        raise ApiError(
            400, f"document id {doc_id[:80]!r} cannot be used; expected one without '.' or '..' as a part.", param="id"
        )
    return doc_id


def _metadata(text: str | None) -> Json | None:
    if text is None or not text.strip():
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"metadata is no JSON: {error}.", param="metadata", code="json_invalid") from error
    if not isinstance(found, dict):
        raise ApiError(400, 'metadata is no JSON object; expected one such as {"team": "travel"}.', param="metadata")
    return found
