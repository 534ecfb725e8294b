"""`POST /v1/search`: what is found, with all that speaks for it, and nothing of another collection."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from hybridqa import HybridQA, Message
from hybridqa.answering.options import RetrieveOptions
from hybridqa.server.search import SearchRequest
from hybridqa.types import Filter
from tests.server.conftest import QUESTION, SECRET, TEXTS


def search(url: str, token: str = "", **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.post(f"{url}/v1/search", json={"query": QUESTION, **body}, headers=headers, timeout=60)


def test_passages_come_as_the_store_finds_them(store: HybridQA, url: str) -> None:
    done = search(url, k=2).json()
    route = store.retrieve(QUESTION, k=2)
    assert done["object"] == "list" and [one["passage_id"] for one in done["data"]] == [
        f"{scored.passage.doc_id}#{scored.passage.ordinal}" for scored in route.passages
    ]
    best = done["data"][0]
    assert set(best) == {
        *("passage_id", "doc_id", "collection", "title", "heading", "start", "end", "text"),
        *("score", "dense", "lexical", "evidence", "metadata", "modules"),
    }
    assert (best["doc_id"], best["collection"], best["text"]) == ("kettle", "default", TEXTS["kettle"])
    assert best["evidence"] == pytest.approx(route.evidence["kettle"]) and best["metadata"] == {}


def test_its_names_are_those_of_retrieve() -> None:
    assert set(SearchRequest.model_fields) == {"query", *RetrieveOptions.__annotations__}
    request = SearchRequest.model_validate(
        {
            "query": "q",
            "k": 3,
            "filter": {"doc_ids": ["a"], "until": "2031-01-01"},
            "history": [{"role": "user", "content": "before"}],
            "plugins": ["style"],
            "hops": 2,
        }
    )
    options = request.options()
    assert set(options) <= set(RetrieveOptions.__annotations__)
    assert (options["k"], options["hops"], options["plugins"]) == (3, 2, ["style"])
    assert options["filter"] == Filter(doc_ids=("a",), until="2031-01-01")
    assert options["history"] == (Message("user", "before"),)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"k": 0}, 400, "k:"),
        ({"colection": "vault"}, 400, "colection"),
        ({"neighbours": 1}, 400, "neighbours"),
        ({"query": " "}, 400, "empty"),
        ({"query": 3}, 400, "query"),
        ({"filter": {"since": "someday"}}, 400, "since"),
        ({"collection": "nowhere"}, 404, "no collection 'nowhere'"),
        ({"plugins": ["nobody's"]}, 404, "nobody's"),
        ({"history": [{"role": "tool", "content": "x"}]}, 400, "history"),
    ],
)
def test_what_cannot_be_searched_for_is_named(url: str, body: dict[str, Any], status: int, said: str) -> None:
    done = search(url, **body)
    error = done.json()["error"]
    assert done.status_code == status and said in f"{error['param']} {error['message']}"


def test_a_key_finds_in_its_own_collection_alone(keyed: tuple[HybridQA, str]) -> None:
    qa, url = keyed
    token, _ = qa.add_key("guard", "ask", ["vault"])
    assert search(url).status_code == 401
    assert [one["text"] for one in search(url, token).json()["data"]] == [SECRET]
    assert search(url, token, collection="default").status_code == 403
