"""Stores with a tiny random model, one of them served, for what LangChain programs do with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hybridqa import HybridQA
from hybridqa.models import ModelFolder
from tests.server.conftest import open_filled, serving

DATES = {"kettle": "2031-03-08", "museum": "2030-01-01", "ferry": "2029-05-05"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder) -> Iterator[HybridQA]:
    """Three documents with metadata, and a fourth in the collection 'vault'."""
    with open_filled(tmp_path_factory.mktemp("store"), tiny_model) as qa:
        for document in [qa.catalog.get_document("default", doc_id) for doc_id in DATES]:
            about = {"team": "travel" if document.doc_id == "ferry" else "goods", "date": DATES[document.doc_id]}
            qa.add_text(document.doc_id, document.text, title=document.title, metadata=about)
        yield qa


@pytest.fixture(scope="module")
def url(store: HybridQA) -> Iterator[str]:
    """Where it is served."""
    with serving(store) as address:
        yield f"{address}/v1"


@pytest.fixture(params=["in process", "by URL"])
def whom(request: pytest.FixtureRequest) -> dict[str, object]:
    """Whom a component asks, in both ways."""
    if request.param == "in process":
        return {"store": request.getfixturevalue("store")}
    return {"base_url": request.getfixturevalue("url")}
