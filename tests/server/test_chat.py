"""Chat completions as the real `openai` client has them, from a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

from hybridqa import HybridQA, Message
from hybridqa.engine.protocol import Delta
from hybridqa.server.app import create_app
from hybridqa.server.replies import url_citations
from hybridqa.server.sse import COMMENT, kept_alive
from hybridqa.types import Answer, Citation, Mode

QUESTION = "Who designed the Lumen kettle?"
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]


def test_an_answer_is_the_stores_own(client: OpenAI, store: HybridQA) -> None:
    done = client.chat.completions.create(model="hybridqa", messages=ASKED)
    answer = store.ask(QUESTION)
    (choice,) = done.choices
    assert choice.message.content == answer.text and choice.message.role == "assistant"
    assert done.usage is not None and done.usage.total_tokens == answer.usage.total_tokens
    assert (done.object, done.model) == ("chat.completion", "hybridqa") and done.id.startswith("chatcmpl-")
    extension = done.model_extra["hybridqa"] if done.model_extra else {}
    assert extension["mode"] == "hybrid" and extension["reason"] == answer.route_reason
    assert choice.finish_reason == ("length" if answer.finish_reason == "length" else "stop")


def test_a_stream_says_the_same_and_what_it_cost(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="hybridqa-retrieval", messages=ASKED)
    chunks = list(
        client.chat.completions.create(
            model="hybridqa-retrieval", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said.startswith((whole.choices[0].message.content or "").split(" [")[0])
    *_, last, spent = chunks
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.model_extra and last.model_extra["hybridqa"]["mode"] == "retrieval"
    assert spent.choices == [] and spent.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    plain = list(client.chat.completions.create(model="hybridqa-retrieval", messages=ASKED, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in plain)


def test_models_are_the_modes(client: OpenAI, store: HybridQA) -> None:
    assert [model.id for model in client.models.list()] == [
        "hybridqa",
        "hybridqa-retrieval",
        "hybridqa-modules",
        "hybridqa-closed",
    ]
    assert client.models.retrieve("hybridqa-closed").owned_by == "hybridqa"
    closed = client.chat.completions.create(model="hybridqa-closed", messages=ASKED)
    assert closed.choices[0].message.content == store.ask(QUESTION, mode=Mode.CLOSED).text
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4o'") as error:
        client.chat.completions.create(model="gpt-4o", messages=ASKED)
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_a_conversation_keeps_its_turns_and_parts(client: OpenAI, store: HybridQA) -> None:
    parts = [{"type": "text", "text": "Tell me about "}, {"type": "text", "text": "the kettle."}]
    turns: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "It is a kettle."},
        {"role": "user", "content": "What does it cost?"},
    ]
    done = client.chat.completions.create(model="hybridqa", messages=turns)
    history = (
        Message("system", "Be brief."),
        Message("user", "Tell me about the kettle."),
        Message("assistant", "It is a kettle."),
    )
    answer = store.ask("What does it cost?", history=history)
    assert done.choices[0].message.content == answer.text
    assert done.usage is not None and done.usage.prompt_tokens == answer.usage.prompt_tokens


def test_sampling_is_followed(client: OpenAI, store: HybridQA) -> None:
    short = client.chat.completions.create(model="hybridqa-retrieval", messages=ASKED, max_tokens=2)
    assert short.usage is not None and short.usage.completion_tokens == 2
    assert short.choices[0].finish_reason == "length"
    newer = client.chat.completions.create(model="hybridqa-retrieval", messages=ASKED, max_completion_tokens=3)
    assert newer.usage is not None and newer.usage.completion_tokens == 3
    long = client.chat.completions.create(model="hybridqa-retrieval", messages=ASKED, max_tokens=100_000, stop="e")
    assert "e" not in (long.choices[0].message.content or "").split(" [")[0]
    drawn = [
        client.chat.completions.create(model="hybridqa-retrieval", messages=ASKED, temperature=1.5, seed=seed)
        for seed in (1, 1, 2)
    ]
    texts = [done.choices[0].message.content for done in drawn]
    assert texts[0] == texts[1] != texts[2]


def test_the_extension_chooses_what_may_answer(client: OpenAI, store: HybridQA) -> None:
    def documents(**extension: Any) -> set[str]:
        done = client.chat.completions.create(
            model="hybridqa-retrieval", messages=ASKED, extra_body={"hybridqa": extension}
        )
        url = done.model_extra["hybridqa"] if done.model_extra else {}
        return {citation["doc_id"] for citation in url["citations"]}

    assert documents(filter={"doc_ids": ["museum"]}) <= {"museum"}
    assert documents(collection="vault") <= {"secret"}
    for wrong in ({"colection": "vault"}, {"filter": {"since": "someday"}}, {"k": 0}):
        with pytest.raises(openai.BadRequestError):
            documents(**wrong)
    with pytest.raises(openai.NotFoundError, match="no collection 'nowhere'"):
        documents(collection="nowhere")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": "  "}]}, "question is empty"),
    ({"messages": [{"role": "assistant", "content": "Hello."}]}, "role 'user'"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "image_url"),
    ({"messages": ASKED, "n": 2}, "n=2"),
    ({"messages": ASKED, "temperature": 3}, "temperature"),
    ({"messages": ASKED, "tools": [{"type": "function"}]}, "tools"),
    ({"messages": ASKED, "response_format": {"type": "json_object"}}, "response_format"),
    ({"messages": ASKED, "stream": True, "hybridqa": {"filter": {"until": "x"}}}, "until"),
    ({"messages": [{"role": "user", "content": "why " * 2000}]}, "the question"),
    ({"messages": [{"role": "user", "content": "why " * 2000}], "stream": True}, "the question"),
]


@pytest.mark.parametrize(("body", "said"), WRONG)
def test_what_cannot_be_answered_is_named(url: str, body: dict[str, Any], said: str) -> None:
    done = httpx.post(f"{url}/v1/chat/completions", json={"model": "hybridqa", **body}, timeout=60)
    error = done.json()["error"]
    assert done.status_code == 400 and said in f"{error['param']} {error['message']}"
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


def test_every_failure_has_the_same_shape(url: str) -> None:
    for method, path, content, status in (
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"[]", 400),
        ("POST", "/v1/chat/completions", b'"\xff"', 400),
        ("GET", "/v1/chat/completions", b"", 405),
        ("GET", "/v1/nothing", b"", 404),
        ("GET", "/v1/models/%00", b"", 404),
    ):
        done = httpx.request(method, f"{url}{path}", content=content, headers={"Content-Type": "application/json"})
        assert done.status_code == status, path
        assert set(done.json()["error"]) == {"message", "type", "param", "code"}


def test_it_says_whether_it_lives_and_is_ready(url: str) -> None:
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    until = time.monotonic() + 120
    while (found := httpx.get(f"{url}/ready")).status_code == 503 and time.monotonic() < until:
        time.sleep(0.1)
    assert found.status_code == 200 and found.json() == {"status": "ready"}


def test_a_model_that_cannot_be_loaded_is_no_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        HybridQA.open(tmp_path / "store", create=True, model=str(tmp_path / "nothing")) as broken,
        TestClient(create_app(broken), "http://127.0.0.1", raise_server_exceptions=False) as client,
    ):
        wait_for(lambda: client.get("/ready").json() == {"status": "failed"})
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
        done = client.post("/v1/chat/completions", json={"model": "hybridqa", "messages": ASKED})
    assert done.status_code == 500 and done.json()["error"]["type"] == "server_error"
    assert "nothing" not in done.text and "nothing" in caplog.text  # where it lies is the log's to say


LONG: dict[str, Any] = {"model": "hybridqa-retrieval", "messages": ASKED, "max_tokens": 900, "temperature": 2.0}


def wait_for(happened: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_reader_that_hangs_up_ends_its_stream(
    client: OpenAI, store: HybridQA, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, ended = store.astream, []

    def watched(question: str, **options: Any) -> AsyncIterator[Delta | Answer]:
        async def pieces() -> AsyncIterator[Delta | Answer]:
            given = 0
            try:
                async with aclosing(answer(question, **options)) as found:  # type: ignore[type-var]
                    async for piece in found:
                        given += 1
                        yield piece
            finally:
                ended.append(given)

        return pieces()

    monkeypatch.setattr(store, "astream", watched)
    whole = list(client.chat.completions.create(**LONG, stream=True, seed=5))
    wait_for(lambda: ended)
    chunks = client.chat.completions.create(**LONG, stream=True, seed=5)
    for chunk, _ in zip(chunks, range(3), strict=False):
        assert chunk.id
    chunks.close()
    wait_for(lambda: len(ended) == 2)
    assert ended[1] < ended[0] and len(whole) > 100
    assert not asyncio.all_tasks(store._loop._loop)


def test_a_caller_that_hangs_up_ends_its_answer(
    client: OpenAI, store: HybridQA, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, ended = store.aask, []

    async def watched(question: str, **options: Any) -> Answer:
        try:
            return await answer(question, **options)
        except asyncio.CancelledError:
            ended.append(question)
            raise

    monkeypatch.setattr(store, "aask", watched)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(**LONG, timeout=0.3)
    wait_for(lambda: ended)
    wait_for(lambda: not asyncio.all_tasks(store._loop._loop))


def test_annotations_point_at_the_markers() -> None:
    text = "Maren Holt [1] made it, and it costs 89 euros [1, 2]."
    places = ((11, 14), (46, 52))
    citations = (
        Citation(1, "a b", "The kettle", 7, 4, 9, "quote", (places[0], places[1])),
        Citation(2, "c/ä", "", 8, 0, 3, "quo", (places[1],)),
    )
    found = url_citations(Answer(text, Mode.HYBRID, citations=citations), "my docs")
    assert [one["type"] for one in found] == ["url_citation"] * 3
    spans = [(one["url_citation"]["start_index"], one["url_citation"]["end_index"]) for one in found]
    assert [text[start:end] for start, end in spans] == ["[1]", "[1, 2]", "[1, 2]"]
    assert found[0]["url_citation"]["url"] == "/v1/documents/a%20b?collection=my%20docs#char=4,9"
    assert found[2]["url_citation"] == {
        "start_index": 46,
        "end_index": 52,
        "title": "c/ä",
        "url": "/v1/documents/c%2F%C3%A4?collection=my%20docs#char=0,3",
    }


async def test_a_stream_without_news_stays_alive_and_ends_its_source() -> None:
    closed = []

    async def slow() -> AsyncIterator[str]:
        try:
            yield "first"
            await asyncio.sleep(0.25)
            yield "second"
            await asyncio.sleep(9)
        finally:
            closed.append(True)

    events = kept_alive(slow(), 0.1)
    found = [await anext(events) for _ in range(4)]
    assert found == ["first", COMMENT, COMMENT, "second"]
    assert await anext(events) == COMMENT and not closed
    await events.aclose()  # type: ignore[attr-defined]
    assert closed
