"""A real catalog with documents of random or given vectors, and the real embedder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.retrieval.embedder import Embedder
from hybridqa.types import Document

Put = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def embedder(embedder_path: Path) -> Embedder:
    """The default embedder, real weights, loaded once."""
    return Embedder(embedder_path)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """An empty catalog in `tmp_path`."""
    made = Catalog.open(tmp_path / "catalog.sqlite3", create=True)
    yield made
    made.close()


def put_vectors(
    catalog: Catalog, collection: str, doc_id: str, vectors_N_D: np.ndarray, embedder: str = "e", version: str = ""
) -> np.ndarray:
    """A document with one passage for each vector; gives the vectors made unit length."""
    texts = [f"{doc_id}{version} passage {ordinal}" for ordinal in range(len(vectors_N_D))]
    put_texts(catalog, collection, doc_id, texts, vectors_N_D := unit(vectors_N_D), embedder)
    return vectors_N_D


def put_texts(
    catalog: Catalog, collection: str, doc_id: str, texts: Sequence[str], vectors_N_D: np.ndarray, embedder: str = "e"
) -> None:
    """A document whose passages are `texts`, one a line."""
    drafts, start = [], 0
    for ordinal, text in enumerate(texts):
        drafts.append(PassageDraft(ordinal, start, start + len(text), text))
        start += len(text) + 1
    text = "\n".join(texts)
    digest = hashlib.sha256(f"{doc_id}\0{text}".encode()).hexdigest()
    catalog.put_document(Document(doc_id, collection, doc_id, text, digest), drafts, vectors_N_D, embedder)


def unit(vectors_N_D: np.ndarray) -> np.ndarray:
    """The vectors, each of length 1."""
    return (vectors_N_D / np.linalg.norm(vectors_N_D, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def put() -> Put:
    """`put_vectors`, for tests."""
    return put_vectors


@pytest.fixture(scope="session")
def put_text() -> Callable[..., None]:
    """`put_texts`, for tests."""
    return put_texts
