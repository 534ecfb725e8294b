"""Requests made up from the server's own description: none gets a 500, and every answer is as described.

A made-up name seldom means anything, so each request is sent again with its names put right: it goes on to where others
stop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks

from hybridqa import HybridQA
from hybridqa.models import ModelFolder
from tests.server.conftest import QUESTION, SECRET, open_filled, serving

EXAMPLES = 40  # of each operation and kind
OPERATIONS = [
    "GET /health",
    "GET /ready",
    "GET /metrics",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /v1/collections",
    "GET /v1/documents",
    "POST /v1/documents",
    "GET /v1/documents/{doc_id}",
    "DELETE /v1/documents/{doc_id}",
    "GET /v1/modules",
    "POST /v1/modules/{module_id}/rollback",
    "POST /v1/search",
    "POST /v1/chat/completions",
    "POST /v1/responses",
]
NOTHING_WRONG = {"/health", "/ready", "/metrics", "/v1/models", "/v1/models/{name}", "/v1/collections"}  # can be asked
CASES = [
    *((one, GenerationMode.POSITIVE) for one in OPERATIONS),
    *((one, GenerationMode.NEGATIVE) for one in OPERATIONS if one.split()[1] not in NOTHING_WRONG),
]
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder) -> Iterator[tuple[HybridQA, str, str]]:
    """A store that is served, where, and a key of it that reaches one collection."""
    with open_filled(tmp_path_factory.mktemp("fuzzed"), tiny_model, max_document_mb=0.2) as qa:
        token, _ = qa.add_key("fuzz", "admin", ["default"])
        with serving(qa) as url:
            yield qa, url, token


@pytest.fixture(scope="module")
def api(fuzzed: tuple[HybridQA, str, str]) -> Any:
    _, url, token = fuzzed
    return schemathesis.openapi.from_url(f"{url}/openapi.json", headers={"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize(("operation", "mode"), CASES, ids=[f"{mode.value}-{name}" for name, mode in CASES])
def test_whatever_is_asked_is_answered_as_described(
    operation: str, mode: GenerationMode, api: Any, fuzzed: tuple[HybridQA, str, str]
) -> None:
    method, path = operation.split()
    headers = {"Authorization": f"Bearer {fuzzed[2]}"}

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(api[path][method].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        for how in ("as it is", "put right", "streamed"):
            if how == "put right":
                right(case)
            elif how == "streamed":
                if not (isinstance(case.body, dict) and "model" in case.body):
                    break
                case.body["stream"] = True
            response = case.call(headers=headers)
            case.validate_response(response, checks=CHECKS)
            assert SECRET not in response.text
            assert "Traceback" not in response.text

    ask()


def test_no_path_is_left_out(api: Any) -> None:
    described = (one.ok() for one in api.get_all_operations())
    assert sorted(f"{one.method.upper()} {one.path}" for one in described) == sorted(OPERATIONS)


def right(case: schemathesis.Case) -> None:
    """Puts names that mean something in the place of those that were made up."""
    doc_id = "ferry" if case.method == "DELETE" else "kettle"
    names = {"doc_id": doc_id, "module_id": "nothing", "name": "hybridqa", "collection": "default"}
    for place in (case.path_parameters, case.query):
        place.update({name: value for name, value in names.items() if name in place})
    body = case.body
    if not isinstance(body, dict):
        return
    if "model" in body:
        body["model"] = "hybridqa"
    for inner in (body, body.get("hybridqa")):
        if isinstance(inner, dict) and "collection" in inner:
            inner["collection"] = "default"
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(body.get(name), int):
            body[name] = min(body[name], 8)
    for name in ("query", "input"):
        if isinstance(body.get(name), str):
            body[name] = QUESTION
    if isinstance(body.get("messages"), list) and body["messages"]:
        body["messages"][-1] = {"role": "user", "content": QUESTION}


def test_the_store_has_stood_it(fuzzed: tuple[HybridQA, str, str]) -> None:
    """After all those."""
    qa, url, token = fuzzed
    headers = {"Authorization": f"Bearer {token}"}
    assert [document.doc_id for document in qa.documents("vault")] == ["secret"]
    assert qa.catalog.check() == []
    assert httpx.get(f"{url}/health").status_code == 200
    body = {"model": "hybridqa", "messages": [{"role": "user", "content": QUESTION}]}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60).status_code == 200
