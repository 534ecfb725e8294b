"""`HybridQARetriever`: what hybridqa finds for a question, as LangChain documents.

Knows nothing of how passages are found. Invariant: a document is a stretch of the one that it names, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from hybridqa.answering.options import RetrieveOptions
from hybridqa.langchain.component import Component
from hybridqa.langchain.messages import as_turns
from hybridqa.langchain.source import Json


class HybridQARetriever(Component, BaseRetriever):
    """Retrieves passages; see `Component` for whom it asks.

    The options may also be given to a call: `retriever.invoke("...", k=2, collection="manuals")`. A call may have a
    `history` beside them, the messages before the question.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return _documents(self._source.retrieve(query, self._retrieve_options(kwargs)))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return _documents(await self._source.aretrieve(query, self._retrieve_options(kwargs)))

    def _retrieve_options(self, given: Mapping[str, Any]) -> RetrieveOptions:
        options = self._options(RetrieveOptions, {name: value for name, value in given.items() if name != "verbose"})
        if "history" in options:
            options["history"] = as_turns(options["history"])
        return cast(RetrieveOptions, options)


def _documents(found: Sequence[Json]) -> list[Document]:
    return [_document(one) for one in found]


def _document(found: Json) -> Document:
    """A passage; what hybridqa knows of it comes before metadata of the same name."""
    about = {name: value for name, value in found.items() if name not in ("text", "metadata")}
    metadata = {"source": found["doc_id"], **found["metadata"], **about}
    return Document(id=found["passage_id"], page_content=found["text"], metadata=metadata)
