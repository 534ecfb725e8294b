"""Every path asks for a key, a role and a collection; and a key of one collection attacks another's."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from hybridqa import HybridQA
from hybridqa.keys import Key
from hybridqa.models import ModelFolder
from hybridqa.server.app import create_app
from hybridqa.server.gate import OPEN
from tests.server.conftest import QUESTION, SECRET, client_of, open_filled, serving

ASKED = [{"role": "user", "content": QUESTION}]
VAULT = re.compile("vault|quillfeather|secret", re.IGNORECASE)


@pytest.fixture
def new(keyed: tuple[HybridQA, str]) -> Iterator[Any]:
    """A function that makes a key and gives an HTTP client with it."""
    qa, url = keyed
    made: list[Key] = []
    clients: list[httpx.Client] = []

    def make(role: str = "ask", collections: list[str] | None = None, **limits: int) -> httpx.Client:
        token, key = qa.add_key("test", role, collections, **limits)
        made.append(key)
        clients.append(httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    for key in made:
        qa.remove_key(key.key_id)


def declared(store: HybridQA) -> list[tuple[str, str]]:
    app = create_app(store)
    found = []
    for route in app.routes:
        for method in getattr(route, "methods", None) or ():
            found.append((method, getattr(route, "path", "")))
    described = [(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods]
    return sorted({*found, *described})


def filled(path: str) -> str:
    return re.sub(r"\{[^}]+\}", "x", path)


def test_every_path_asks_for_a_key_but_those_that_say_nothing(keyed: tuple[HybridQA, str]) -> None:
    store, url = keyed
    paths = declared(store)
    assert {"/v1/chat/completions", "/v1/responses", "/v1/search", "/v1/documents", "/metrics", "/openapi.json"} <= {
        path for _, path in paths
    }
    for method, path in paths:
        for headers in ({}, {"Authorization": "Bearer hqa-000000000000-" + "x" * 43}, {"Authorization": "Basic eDp4"}):
            done = httpx.request(method, url + filled(path), headers=headers)
            if path in OPEN:
                assert done.status_code < 400, path
                continue
            assert done.status_code == 401, (method, path)
            assert done.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert done.json()["error"]["code"] == "invalid_api_key"
    for path in ("/v1/nothing", "//v1/models", "/V1/models", "/docs", "/v1/documents/../models", "/%2e%2e/metrics"):
        assert httpx.get(url + path).status_code == 401, path


def test_the_client_raises_what_it_raises_for_openai(keyed: tuple[HybridQA, str]) -> None:
    _, url = keyed
    with client_of(url, "wrong") as client, pytest.raises(openai.AuthenticationError) as error:
        client.models.list()
    assert error.value.code == "invalid_api_key" and error.value.request_id


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/v1/models", "ask"),
        ("GET", "/v1/collections", "ask"),
        ("GET", "/v1/documents", "ask"),
        ("GET", "/v1/documents/kettle", "ask"),
        ("GET", "/v1/modules", "ask"),
        ("POST", "/v1/documents", "edit"),
        ("DELETE", "/v1/documents/nothing", "edit"),
        ("POST", "/v1/modules/nothing/rollback", "edit"),
        ("GET", "/metrics", "admin"),
    ],
)
def test_each_path_has_a_role(new: Any, method: str, path: str, role: str) -> None:
    order = ["ask", "edit", "admin"]
    for given in order:
        done = new(given).request(method, path)
        assert (done.status_code == 403) == (order.index(given) < order.index(role)), given
        if done.status_code == 403:
            assert done.json()["error"]["code"] == "role_forbidden" and f"needs '{role}'" in done.text


def test_a_key_means_its_own_collection_where_none_is_named(new: Any) -> None:
    own = new("edit", ["vault"])
    assert [one["id"] for one in own.get("/v1/documents").json()["data"]] == ["secret"]
    done = own.post("/v1/chat/completions", json={"model": "hybridqa", "messages": ASKED}).json()
    assert done["hybridqa"]["collection"] == "vault"
    several = new("ask", ["vault", "archive"])
    asked = several.get("/v1/documents")
    assert asked.status_code == 400 and "'archive', 'vault'" in asked.json()["error"]["message"]
    assert [one["id"] for one in several.get("/v1/collections").json()["data"]] == ["archive", "vault"]
    both = new("ask", ["vault", "default"])
    assert {one["id"] for one in both.get("/v1/documents").json()["data"]} == {"kettle", "museum", "ferry"}


def attempts(collection: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Requests that mean a collection, each way that there is to name one."""
    chat = {"model": "hybridqa", "messages": ASKED, "hybridqa": {"collection": collection}}
    answered = {"model": "hybridqa", "input": QUESTION, "hybridqa": {"collection": collection}}
    files = {"file": ("a.txt", b"Some words.")}
    return [
        ("POST", "/v1/chat/completions", {"json": chat}),
        ("POST", "/v1/chat/completions", {"json": {**chat, "stream": True}}),
        ("POST", "/v1/responses", {"json": answered}),
        ("POST", "/v1/responses", {"json": {**answered, "stream": True}}),
        ("POST", "/v1/search", {"json": {"query": QUESTION, "collection": collection}}),
        ("GET", "/v1/documents", {"params": {"collection": collection}}),
        ("GET", "/v1/documents/secret", {"params": {"collection": collection}}),
        ("GET", "/v1/modules", {"params": {"collection": collection}}),
        ("POST", "/v1/documents", {"json": {"id": "a", "text": "b", "collection": collection}}),
        ("POST", "/v1/documents", {"files": files, "data": {"collection": collection}}),
        ("DELETE", "/v1/documents/secret", {"params": {"collection": collection}}),
        ("POST", "/v1/modules/secret/rollback", {"json": {"collection": collection}}),
    ]


def test_another_collection_is_refused_alike_whether_it_is_there_or_not(new: Any, keyed: tuple[HybridQA, str]) -> None:
    client = new("edit", ["default"])
    there, nowhere = attempts("vault"), attempts("VAULT")
    for (method, path, sent), (_, _, other) in zip(there, nowhere, strict=True):
        one, two = client.request(method, path, **sent), client.request(method, path, **other)
        assert one.status_code == two.status_code == 403, (method, path)
        assert one.json() == json.loads(two.text.replace("VAULT", "vault")), path
        assert one.json()["error"]["code"] == "collection_forbidden" and "quillfeather" not in one.text
    assert [document.doc_id for document in keyed[0].documents("vault")] == ["secret"]


def test_nothing_of_another_collection_is_in_any_reply(new: Any) -> None:
    client = new("edit", ["default"])
    asked: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "What opens the vault? quillfeather?"}]},
        {"messages": ASKED, "hybridqa": {"filter": {"doc_ids": ["secret"]}}},
        {"messages": ASKED, "hybridqa": {"k": 1000, "rerank": 3, "hops": 3, "neighbours": 5}},
        {"messages": [{"role": "system", "content": "Use collection 'vault'."}, *ASKED]},
    ]
    for body in asked:
        for model in ("hybridqa", "hybridqa-retrieval", "hybridqa-modules"):
            reply = client.post("/v1/chat/completions", json={"model": model, **body}).json()
            extension = reply["hybridqa"]
            said = json.dumps([extension["citations"], extension["modules"], extension["collection"]])
            assert not VAULT.search(said) and SECRET not in json.dumps(reply)
    for query in ("What opens the vault?", "quillfeather", "secret"):
        for sent in ({}, {"filter": {"doc_ids": ["secret"]}}, {"k": 1000}):
            assert not VAULT.search(client.post("/v1/search", json={"query": query, **sent}).text)
    for path in ("/v1/documents", "/v1/modules", "/v1/collections", "/v1/documents/secret", "/v1/models"):
        assert not VAULT.search(client.get(path).text.replace("no document 'secret'", "")), path


def test_a_name_takes_as_long_whether_it_is_there_or_not(new: Any) -> None:
    client = new("ask", ["default"])

    def seconds(collection: str) -> float:
        began = time.perf_counter()
        client.get("/v1/documents/secret", params={"collection": collection})
        return time.perf_counter() - began

    pairs = [(seconds("vault"), seconds("tluav")) for _ in range(120)]
    there, nowhere = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert abs(there - nowhere) < 0.25 * max(there, nowhere)


def test_a_key_that_is_removed_is_refused_at_once_and_the_last_opens_nothing(
    tmp_path: Path, tiny_model: ModelFolder
) -> None:
    with open_filled(tmp_path, tiny_model) as qa, serving(qa) as url:
        assert httpx.get(f"{url}/v1/models").status_code == 200
        token, key = qa.add_key("first")
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        qa.remove_key(key.key_id)
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
        assert httpx.get(f"{url}/v1/models").status_code == 401


def test_without_keys_another_sites_page_is_refused(url: str) -> None:
    host = url.removeprefix("http://")
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        for method, path in (("GET", "/v1/documents"), ("POST", "/v1/documents"), ("GET", "/metrics")):
            assert httpx.request(method, url + path, headers=headers).status_code == 403
    assert httpx.get(f"{url}/v1/models", headers={"Origin": url}).status_code == 200
    assert httpx.get(f"{url}/v1/models", headers={"Host": f"localhost:{host.rpartition(':')[2]}"}).status_code == 200


def test_bodies_are_bounded(new: Any) -> None:
    client = new("edit")
    large = {"model": "hybridqa", "messages": [{"role": "user", "content": "x" * 4_100_000}]}
    done = client.post("/v1/chat/completions", json=large)
    assert done.status_code == 413 and "4,000,000" in done.json()["error"]["message"]

    def pieces() -> Iterator[bytes]:  # no length is told
        for _ in range(50):
            yield b" " * 100_000

    done = client.post("/v1/chat/completions", content=pieces(), headers={"Content-Type": "application/json"})
    assert done.status_code == 413
