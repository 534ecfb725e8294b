"""Documents put in, listed, read and taken out over HTTP; a POST that has returned can be asked about."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hybridqa import HybridQA
from hybridqa.models import ModelFolder
from tests.server.conftest import TEXTS, open_filled, serving


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder) -> Iterator[tuple[HybridQA, str]]:
    """A store of this file's own, since it is written."""
    with (
        open_filled(tmp_path_factory.mktemp("changing"), tiny_model, max_document_mb=0.2) as qa,
        serving(qa) as address,
    ):
        yield qa, address


@pytest.fixture(scope="module")
def http(changing: tuple[HybridQA, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=changing[1], timeout=60) as client:
        yield client


def found(http: httpx.Client, query: str, collection: str = "default") -> list[str]:
    body = {
        "model": "hybridqa-retrieval",
        "messages": [{"role": "user", "content": query}],
        "hybridqa": {"collection": collection, "k": 1},
    }
    return [http.post("/v1/chat/completions", json=body).json()["hybridqa"]["reason"]]


def test_they_are_listed_in_pages_and_read_in_stretches(http: httpx.Client) -> None:
    whole = http.get("/v1/documents").json()
    assert [one["id"] for one in whole["data"]] == sorted(TEXTS) and not whole["has_more"]
    assert whole["data"][1] == {
        "id": "kettle",
        "object": "document",
        "collection": "default",
        "title": "The kettle",
        "characters": len(TEXTS["kettle"]),
        "passages": 1,
        "updated_at": whole["data"][1]["updated_at"],
        "module": "none",
    }
    page = http.get("/v1/documents", params={"limit": 2}).json()
    rest = http.get("/v1/documents", params={"limit": 2, "after": page["data"][-1]["id"]}).json()
    assert page["has_more"] and not rest["has_more"] and page["data"] + rest["data"] == whole["data"]
    read = http.get("/v1/documents/kettle").json()
    assert read["text"] == TEXTS["kettle"] and (read["start"], read["end"]) == (0, len(TEXTS["kettle"]))
    part = http.get("/v1/documents/kettle", params={"start": 4, "end": 9}).json()
    assert part["text"] == TEXTS["kettle"][4:9] and (part["start"], part["end"]) == (4, 9)
    past = http.get("/v1/documents/kettle", params={"start": 10**9}).json()
    assert past["text"] == "" and past["start"] == past["end"] == len(TEXTS["kettle"])
    assert http.get("/v1/documents/nothing").json()["error"]["code"] == "not_found"
    assert http.get("/v1/documents", params={"limit": 0}).status_code == 400


def test_a_text_is_there_when_the_post_has_returned(http: httpx.Client, changing: tuple[HybridQA, str]) -> None:
    body: dict[str, Any] = {"id": "notes/tower.md", "text": "The Brenn tower is 88 metres high.", "title": "Tower"}
    added = http.post("/v1/documents", json={**body, "metadata": {"team": "masonry"}}).json()
    assert [(one["id"], one["result"], one["passages"]) for one in added["data"]] == [("notes/tower.md", "added", 1)]
    asked = http.post(
        "/v1/chat/completions",
        json={"model": "hybridqa-retrieval", "messages": [{"role": "user", "content": "How high is the Brenn tower?"}]},
    ).json()
    assert "notes/tower.md" in json.dumps(asked["hybridqa"]["reason"]) or asked["hybridqa"]["abstained"] is False
    route = changing[0].ask("How high is the Brenn tower?", mode="retrieval").route
    assert route is not None and route.passages[0].passage.doc_id == "notes/tower.md"
    read = http.get("/v1/documents/notes%2Ftower.md").json()
    assert (read["title"], read["metadata"], read["module"]) == ("Tower", {"team": "masonry"}, "none")
    assert http.post("/v1/documents", json=body).json()["data"][0]["result"] == "unchanged"
    body["text"] = "The Brenn tower is 90 metres high."
    assert http.post("/v1/documents", json=body).json()["data"][0]["result"] == "replaced"
    assert http.get("/v1/documents/notes/tower.md").json()["text"] == body["text"]
    gone = http.delete("/v1/documents/notes%2Ftower.md")
    assert gone.json() == {"id": "notes/tower.md", "object": "document", "collection": "default", "deleted": True}
    assert http.delete("/v1/documents/notes%2Ftower.md").status_code == 404


def test_files_are_uploaded_and_named(http: httpx.Client) -> None:
    files = [
        ("file", ("bridge.md", b"# Bridge\n\nThe Kvist bridge has 12 arches.")),
        ("file", ("../../etc/lake.html", b"<h1>Lake</h1><p>The Orn lake is 40 metres deep.</p>")),
    ]
    added = http.post("/v1/documents", files=files, data={"metadata": '{"kind": "sight"}', "collection": "sights"})
    assert [(one["id"], one["result"]) for one in added.json()["data"]] == [
        ("bridge.md", "added"),
        ("lake.html", "added"),
    ]
    lake = http.get("/v1/documents/lake.html", params={"collection": "sights"}).json()
    assert lake["metadata"] == {"kind": "sight"} and "40 metres" in lake["text"] and lake["media_type"] == "text/html"
    one = {"file": ("bridge.md", b"The Kvist bridge has 13 arches.")}
    told = http.post("/v1/documents", files=one, data={"id": "kvist", "title": "Kvist", "collection": "sights"}).json()
    assert (told["data"][0]["id"], told["data"][0]["title"]) == ("kvist", "Kvist")


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"files": {"file": ("a.pdf", b"%PDF-1.7 broken")}}, 400, "a.pdf"),
        ({"files": {"file": ("a.txt", b"")}}, 400, "empty"),
        ({"files": {"file": ("a.txt", b"words")}, "data": {"metadata": "[1]"}}, 400, "no JSON object"),
        ({"files": {"file": ("a.txt", b"words")}, "data": {"metadata": "{"}}, 400, "no JSON"),
        ({"files": {"file": ("a.txt", b"words")}, "data": {"colection": "x"}}, 400, "colection"),
        ({"files": {"other": ("a.txt", b"words")}}, 400, "other"),
        ({"files": {"file": ("a.txt", b"words")}, "data": {"id": "a/../b"}}, 400, "'..'"),
        ({"files": {"file": ("a.txt", b"words")}, "data": {"collection": "../x"}}, 400, "cannot name a collection"),
        ({"files": [("file", ("a.txt", b"w"))] * 2}, 400, "'a.txt'"),
        ({"files": [("file", ("a.txt", b"w")), ("file", ("b.txt", b"w"))], "data": {"id": "x"}}, 400, "for one file"),
        ({"json": {"id": "a"}}, 400, "text"),
        ({"json": {"id": "", "text": "words"}}, 400, "document id"),
        ({"json": {"id": "a", "text": " "}}, 400, "no text"),
        ({"json": {"id": "a", "text": "b", "titel": "c"}}, 400, "titel"),
        (
            {"json": {"id": "a", "text": "b", "metadata": {"c": "d" * 10, "e": [1, {"f": None}]}, "collection": 3}},
            400,
            "co",
        ),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "JSON"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "text/plain"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, ""),
        ({"files": {"file": ("a.txt", b"words " * 60_000)}}, 413, "too large"),
        ({"files": {"file": ("a.txt", b"words " * 40_000)}}, 400, "200,000"),
    ],
)
def test_what_cannot_be_added_is_named_and_leaves_nothing(
    http: httpx.Client, changing: tuple[HybridQA, str], sent: dict[str, Any], status: int, said: str
) -> None:
    before = changing[0].documents()
    done = http.post("/v1/documents", **sent)
    assert done.status_code == status and said in done.json()["error"]["message"], done.text
    assert changing[0].documents() == before


def test_one_bad_file_stops_all_of_them(http: httpx.Client, changing: tuple[HybridQA, str]) -> None:
    before = changing[0].documents()
    files = [("file", ("good.txt", b"Good words.")), ("file", ("bad.docx", b"no zip"))]
    done = http.post("/v1/documents", files=files)
    assert done.status_code == 400 and "bad.docx" in done.text
    assert changing[0].documents() == before


def test_nothing_of_the_servers_disk_is_told(
    http: httpx.Client, changing: tuple[HybridQA, str], tmp_path: Path
) -> None:
    (tmp_path / "local.txt").write_text("A local text.")
    changing[0].add(tmp_path / "local.txt")
    for path in ("/v1/documents", "/v1/documents/local.txt", "/v1/modules", "/openapi.json"):
        assert str(tmp_path.parent) not in http.get(path).text
    changing[0].remove("local.txt")
