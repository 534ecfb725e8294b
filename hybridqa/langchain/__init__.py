"""LangChain components: a retriever and a chat model, over an open store, a store's folder, or a running server.

Knows nothing of how questions are answered. Invariant: importing `hybridqa` loads nothing of this, and this loads no
model; both components say the same of a question, wherever it is answered.
"""

from __future__ import annotations

from hybridqa.errors import MissingPackageError

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    raise MissingPackageError(
        "hybridqa.langchain needs langchain-core; install it with `pip install 'hybridqa[langchain]'`.",
        name="langchain_core",
    ) from error

from hybridqa.langchain.chat import ChatHybridQA
from hybridqa.langchain.retriever import HybridQARetriever

__all__ = ["ChatHybridQA", "HybridQARetriever"]
