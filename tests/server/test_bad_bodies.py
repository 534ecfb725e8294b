"""Bodies that no client of ours would send: each is refused by name, in the API's own shape, and none is a failure."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

QUESTION = "Who designed the Lumen kettle?"
USER = {"role": "user", "content": QUESTION}
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
SHAPE = {"message", "type", "param", "code"}


def asked(path: str, **more: Any) -> dict[str, Any]:
    turns = {"messages": [USER]} if path == CHAT else {"input": [USER]}
    return {"model": "hybridqa-retrieval", **turns, **more}


def posted(url: str, path: str, body: Any, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
    """The status, and the error where there is one."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    done = httpx.post(f"{url}{path}", content=content, headers={"Content-Type": kind}, timeout=120)
    error = done.json().get("error") or {}
    assert done.status_code == 200 or set(error) == SHAPE
    return done.status_code, error


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"logit_bias": {"5": 3}}, "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "a", "format": "wav"}}, "audio"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"verbosity": "low"}, "verbosity"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"top_k": 5}, "top_k"),
    ({"repetition_penalty": 1.3}, "repetition_penalty"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": [""]}, ""),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, ""),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content.0.text"),
    ({"messages": [{"content": "x"}]}, "messages.0.role"),
    ({"messages": ["x"]}, "messages.0"),
    ({"messages": "x"}, "messages"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}, USER]}, "messages.0.role"),
    ({"messages": [{"role": "function", "content": "x", "name": "a"}, USER]}, "messages.0.role"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}, USER]}, "messages.0.tool_calls"),
    ({"messages": [USER] * 1001}, "messages"),
    ({"stream_options": {"include_usage": "perhaps"}}, "stream_options.include_usage"),
    ({"hybridqa": {"k": 10**30}}, "hybridqa.k"),
    ({"hybridqa": {"rerank": 10_000}}, "hybridqa.rerank"),
    ({"hybridqa": {"hops": 10_000}}, "hybridqa.hops"),
    ({"hybridqa": {"filter": {"doc_ids": "kettle"}}}, "hybridqa.filter.doc_ids"),
]


@pytest.mark.parametrize(("body", "param"), CHANGES, ids=lambda value: str(value)[:40])
def test_what_would_change_an_answer_is_refused_by_name(url: str, body: dict[str, Any], param: str) -> None:
    status, error = posted(url, CHAT, asked(CHAT, **body))
    assert status == 400 and error["type"] == "invalid_request_error"
    assert (error["param"] or "") == param and len(error["message"]) < 500, error


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_unicode_is_refused_by_its_place(url: str, path: str, stream: bool) -> None:
    turns = "messages" if path == CHAT else "input"
    lone = "It is \ud83d."
    for more, place in (
        ({turns: [{"role": "user", "content": lone}]}, f"{turns}.0.content"),
        ({turns: [{"role": "assistant", "content": lone}, USER]}, f"{turns}.0.content"),
        ({turns: [{"role": "user", "content": [{"type": "text", "text": lone}]}]}, f"{turns}.0.content.0.text"),
        ({"model": lone}, "model"),
        ({"user": lone}, "user"),
        ({"metadata": {"a": lone}}, "metadata.a"),
        ({"metadata": {lone: "a"}}, "metadata"),
        ({"hybridqa": {"collection": lone}}, "hybridqa.collection"),
        ({"hybridqa": {"filter": {"doc_ids": [lone]}}}, "hybridqa.filter.doc_ids.0"),
    ):
        status, error = posted(url, path, asked(path, stream=stream, **more))
        assert (status, error["param"]) == (400, place) and "Unicode" in error["message"]


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_what_is_no_json_is_refused(url: str, path: str) -> None:
    whole = json.dumps(asked(path)).encode()
    for body, said in (
        (b"", "required"),
        (b"{", "no JSON"),
        (whole.replace(b"Lumen", b"L\xff\xfemen"), "no JSON in UTF-8"),
        (whole.replace(b"Lumen", b"L\xed\xa0\xbdmen"), "no valid Unicode"),
        (whole[:-1] + b', "temperature": NaN}', "temperature: nan is no number"),
        (whole[:-1] + b', "hybridqa": {"filter": {"metadata": {"a": [Infinity]}}}}', "filter.metadata.a.0: inf"),
        (whole[:-1] + b', "max_tokens": ' + b"9" * 5000 + b"}", "no JSON"),
        (whole[:-1] + b', "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"null", "required"),
        (b"5", "valid dictionary"),
        (b'"text"', "valid dictionary"),
        (b"[1]", "valid dictionary"),
    ):
        status, error = posted(url, path, body)
        assert status == 400 and said in error["message"], (body[:80], error)


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("depth", [100, 450, 900, 960, 1000])
def test_a_deep_body_is_read_or_refused(url: str, path: str, depth: int) -> None:
    deep: Any = "kettle"
    for _ in range(depth):
        deep = {"a": [deep]} if _ % 2 else [deep]
    for place in ({"metadata": {"a": deep}}, {"hybridqa": {"filter": {"metadata": {"a": deep}}}}):
        content = json.dumps(asked(path, **place)) if depth < 600 else nested(path, depth, next(iter(place)))
        status, _error = posted(url, path, content.encode())
        assert status in (200, 400)


def nested(path: str, depth: int, name: str) -> str:
    """A body whose nesting Python's own writer may not write."""
    deep = "[" * depth + "]" * depth
    value = f'{{"a": {deep}}}' if name == "metadata" else f'{{"filter": {{"metadata": {{"a": {deep}}}}}}}'
    return json.dumps(asked(path))[:-1] + f', "{name}": {value}}}'


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
def test_another_type_of_content_is_named(url: str, path: str, kind: str) -> None:
    status, error = posted(url, path, asked(path), kind)
    assert status == 415 and repr(kind) in error["message"] and "application/json" in error["message"]
    assert posted(url, path, asked(path), "application/json; charset=utf-8")[0] == 200


def test_paths_and_methods_that_are_not_there(url: str) -> None:
    for path in ("/v1/nothing", "/v1", "/v1/responses/resp_1", "/v1/%2e%2e/%00"):
        done = httpx.get(f"{url}{path}")
        error = done.json()["error"]
        assert done.status_code == 404 and set(error) == SHAPE and error["type"] == "not_found_error", path
        assert "there is no path" in error["message"]
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        for path in (CHAT, RESPONSES):
            done = httpx.request(method, f"{url}{path}")
            assert done.status_code == 405 and done.headers["allow"] == "POST"
            assert set(done.json()["error"]) == SHAPE and repr(path) in done.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_earlier_turns_of_megabytes_cost_nothing(url: str, path: str) -> None:
    turns = "messages" if path == CHAT else "input"
    long = "the Lumen kettle costs " * 150_000  # 3.4 MB, which would take the tokenizer seconds
    for earlier in (
        [{"role": "user", "content": long}, {"role": "assistant", "content": "Yes."}],
        [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": long}],
    ):
        status, error = posted(url, path, asked(path, **{turns: [*earlier, USER]}))
        assert status == 200, error


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("stream", [True, False])
def test_instructions_that_do_not_fit_are_refused(url: str, path: str, stream: bool) -> None:
    """Rather than left out, as the oldest turns are."""
    turns = "messages" if path == CHAT else "input"
    for words in (600, 100_000):
        long = {"role": "developer", "content": "Be brief. " * words}
        status, error = posted(url, path, asked(path, stream=stream, **{turns: [long, USER]}))
        assert status == 400 and "with the system turns" in error["message"]


def test_an_assistants_turn_may_say_nothing(url: str) -> None:
    for earlier in ({"content": None}, {"content": None, "refusal": "I cannot say."}, {"content": ""}, {}):
        turns = [USER, {"role": "assistant", **earlier}, USER]
        status, error = posted(url, CHAT, asked(CHAT, messages=turns))
        assert status == 200, error


def test_more_tokens_than_there_are_is_as_many_as_there_are(url: str) -> None:
    status, error = posted(url, CHAT, asked(CHAT, max_tokens=10**30, stop="e"))
    assert status == 200, error


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("name", ["k", "modules", "neighbours", "rerank", "hops"])
@pytest.mark.parametrize("value", [10**6, 2**31, 2**63, 10**30, -1, 1.5, "x", True, None])
def test_numbers_of_the_extension(url: str, path: str, name: str, value: Any) -> None:
    status, _error = posted(url, path, asked(path, hybridqa={name: value}))
    assert status in (200, 400)


@pytest.mark.parametrize(
    "chosen",
    [
        {"metadata": {"a": 2**70}},
        {"metadata": {"a": 1e308}},
        {"metadata": {"": ""}},
        {"metadata": {"a\x00b": "\x00"}},
        {"doc_ids": []},
        {"doc_ids": ["\x00", "a" * 100_000]},
        {"doc_ids": ["x"] * 50_000},
        {"since": "9999-12-31T23:59:59-23:59"},
        {"until": "0001-01-01T00:00:00+23:59"},
        {"since": "9999-12-31", "until": "9999-12-31"},
    ],
    ids=lambda value: str(value)[:40],
)
def test_filters(url: str, chosen: dict[str, Any]) -> None:
    status, _error = posted(url, CHAT, asked(CHAT, hybridqa={"filter": chosen}))
    assert status in (200, 400)
