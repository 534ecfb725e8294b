"""Modules over HTTP, and how a change of them reaches a running server: at once, and no answer is of two versions."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from hybridqa import HybridQA
from hybridqa.models import ModelFolder
from hybridqa.modules.manifest import Manifest
from tests.server.conftest import QUESTION, open_filled, serving

ROOT = Path(__file__).parents[2]
VERSIONS = 8
PUBLISHER = """
import json, sys, time
from pathlib import Path
from hybridqa import HybridQA
from hybridqa.modules.manifest import Manifest

store, model, manifest = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
with HybridQA.open(store, model=model, engine="reference") as qa:
    for staged in sys.argv[4:]:
        qa.registry.publish(Path(staged), Manifest(**manifest), True)
        time.sleep(0.5)
    qa.rollback(manifest["module_id"], 2)
    qa.remove("ferry")
"""


def manifest_for(qa: HybridQA, doc_id: str = "kettle") -> dict[str, Any]:
    [summary] = [one for one in qa.documents() if one.doc_id == doc_id]
    return {
        "module_id": qa.module_id(doc_id),
        "collection": "default",
        "documents": {doc_id: summary.content_hash},
        "base_model": "tiny",
        "base_model_hash": qa.model.hash,
        "rank": 8,
        "alpha": 16,
        "targets": ["q_proj"],
    }


def ask(url: str) -> tuple[str, tuple[str, ...]]:
    body = {
        "model": "hybridqa-modules",
        "messages": [{"role": "user", "content": QUESTION}],
        "hybridqa": {"modules": 1},
    }
    done = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert done.status_code == 200, done.text
    reply = done.json()
    named = tuple(one["module"] for one in reply["hybridqa"]["modules"])
    return reply["choices"][0]["message"]["content"], named


def test_versions_are_listed_and_rolled_back(
    tmp_path: Path, tiny_model: ModelFolder, make_adapter: Callable[..., Path]
) -> None:
    with open_filled(tmp_path / "store", tiny_model) as qa, serving(qa) as url:
        assert httpx.get(f"{url}/v1/modules").json() == {"object": "list", "collection": "default", "data": []}
        for seed, passed in ((1, True), (2, True), (3, False)):
            staged = make_adapter(tmp_path / str(seed), tiny_model, seed=seed, strength=0.5)
            qa.registry.publish(staged, Manifest(**manifest_for(qa)), passed)
        module_id = qa.module_id("kettle")
        listed = httpx.get(f"{url}/v1/modules").json()["data"]
        assert [(one["name"], one["status"], one["current"]) for one in listed] == [
            (f"{module_id}@1", "published", False),
            (f"{module_id}@2", "published", True),
            (f"{module_id}@3", "rejected", False),
        ]
        assert listed[0]["documents"] == ["kettle"] and listed[0]["kind"] == "document" and "path" not in listed[0]
        documents = httpx.get(f"{url}/v1/documents").json()["data"]
        assert {one["id"]: one["module"] for one in documents} == {
            "ferry": "none",
            "kettle": "published",
            "museum": "none",
        }
        assert ask(url)[1] == (f"{module_id}@2",)
        path = f"{url}/v1/modules/{module_id}/rollback"
        back = httpx.post(path)
        assert back.status_code == 200 and (back.json()["version"], back.json()["current"]) == (1, True)
        assert ask(url)[1] == (f"{module_id}@1",)
        assert httpx.post(path).status_code == 404  # there is none before it
        rejected = httpx.post(path, json={"version": 3})
        assert rejected.status_code == 409 and "rejected by its gate" in rejected.json()["error"]["message"]
        assert httpx.post(path, json={"version": 2}).json()["version"] == 2
        assert httpx.post(f"{url}/v1/modules/nothing/rollback").json()["error"]["code"] == "not_found"
        assert httpx.post(path, json={"version": 2, "collection": "vault"}).status_code == 404
        qa.add_text("kettle", "The kettle is sold no more.", title="The kettle")
        documents = httpx.get(f"{url}/v1/documents").json()["data"]
        assert {one["id"]: one["module"] for one in documents}["kettle"] == "stale"


def test_what_another_process_publishes_is_answered_with_and_never_mixed(
    tmp_path: Path, tiny_model: ModelFolder, make_adapter: Callable[..., Path]
) -> None:

    with open_filled(tmp_path / "store", tiny_model, stack_cache_mb=1) as qa, serving(qa) as url:
        module_id = qa.module_id("kettle")
        staged = [
            make_adapter(tmp_path / str(seed), tiny_model, seed=seed, strength=0.5) for seed in range(1, VERSIONS + 1)
        ]
        command = [sys.executable, "-c", PUBLISHER, str(tmp_path / "store"), str(tiny_model.path)]
        command += [json.dumps(manifest_for(qa)), *map(str, staged)]
        found: list[tuple[str, tuple[str, ...]]] = []
        failed: list[BaseException] = []
        done = threading.Event()

        def keep_asking() -> None:
            try:
                while not done.is_set():
                    found.append(ask(url))
            except BaseException as error:  # noqa: BLE001  # looked at below
                failed.append(error)

        threads = [threading.Thread(target=keep_asking) for _ in range(3)]
        for thread in threads:
            thread.start()
        ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        after = ask(url)
        done.set()
        for thread in threads:
            thread.join()
        assert not failed
        assert after[1] == (f"{module_id}@2",)
        seen = {named[0] for _, named in found if named}
        assert len(seen) >= 3, seen  # changes came in between
        for version in range(1, VERSIONS + 1):
            qa.rollback(module_id, version)
            text, named = ask(url)
            assert named == (f"{module_id}@{version}",)
            assert {said for said, by in found if by == named} <= {text}, version
        texts = {qa.ask(QUESTION, mode="modules").text}
        for version in (1, 2, 3):
            qa.rollback(module_id, version)
            texts.add(qa.ask(QUESTION, mode="modules").text)
        assert len(texts) >= 3  # or nothing could be told from them


@pytest.mark.parametrize("path", ["/v1/modules", "/v1/documents"])
def test_a_collection_that_is_not_there_is_named(url: str, path: str) -> None:
    done = httpx.get(f"{url}{path}", params={"collection": "nothing"})
    assert done.status_code == 404 and "'nothing'" in done.json()["error"]["message"]
