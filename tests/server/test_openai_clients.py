"""Every way in which the real `openai` client can be held: its helpers, raw answers, and the one for asyncio."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from hybridqa import HybridQA
from hybridqa.server import schema
from hybridqa.server.schema import ChatRequest

QUESTION = "Who designed the Lumen kettle?"
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
CHAT: dict[str, Any] = {"model": "hybridqa-retrieval", "messages": ASKED}
# nothing is found for it: the answer ends by itself, where the helper takes one that was cut off for a failure
ENDING: dict[str, Any] = {**CHAT, "messages": [{"role": "user", "content": "Which galaxy has the oldest pulsars?"}]}


@pytest.fixture
async def later(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


def test_a_completion_is_what_the_api_says_it_is(client: OpenAI) -> None:
    done = client.chat.completions.create(**CHAT)
    ChatCompletion.model_validate(done.to_dict(mode="json"), strict=True)
    assert done.choices[0].message.annotations is not None and done.choices[0].message.refusal is None


def test_chunks_are_what_the_api_says_they_are(url: str, client: OpenAI) -> None:
    """With the usage asked for, every chunk has a place for it, empty but in the last; without, none has."""
    for usage in (True, False):
        with client.chat.completions.with_streaming_response.create(
            **CHAT, stream=True, stream_options={"include_usage": usage}
        ) as done:
            assert done.headers["content-type"].startswith("text/event-stream")
            lines = [line.removeprefix("data: ") for line in done.iter_lines() if line]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk, strict=True)
        if usage:
            *before, last = chunks
            assert last["choices"] == [] and last["usage"]["total_tokens"] > 0
            assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in before)
        else:
            assert all("usage" not in chunk and len(chunk["choices"]) == 1 for chunk in chunks)


def test_the_helper_gathers_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(**ENDING, stream_options={"include_usage": True}) as stream:
        events = list(stream)
        done = stream.get_final_completion()
    whole = client.chat.completions.create(**ENDING)
    (choice,) = done.choices
    assert "".join(event.delta for event in events if event.type == "content.delta") == choice.message.content
    assert done.usage == whole.usage
    assert choice.finish_reason == whole.choices[0].finish_reason and choice.message.annotations is not None
    chunks = [event.chunk for event in events if event.type == "chunk"]  # the helper gathers no extension
    assert [chunk.model_extra["hybridqa"]["mode"] for chunk in chunks if chunk.model_extra] == ["retrieval"]


def test_raw_answers(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**CHAT)
    assert raw.status_code == 200 and raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content
    response = client.responses.with_raw_response.create(model="hybridqa-retrieval", input=QUESTION)
    assert response.parse().output_text == raw.parse().choices[0].message.content
    with client.responses.with_streaming_response.create(
        model="hybridqa-retrieval", input=QUESTION, stream=True
    ) as streamed:
        events = [line for line in streamed.iter_lines() if line.startswith("event: ")]
    assert events[0] == "event: response.created" and events[-1] == "event: response.incomplete"


async def test_the_client_for_asyncio(later: AsyncOpenAI, store: HybridQA) -> None:
    answer = await store.aask(QUESTION, mode="retrieval")
    done = await later.chat.completions.create(**CHAT)
    assert done.choices[0].message.content == answer.text
    chunks = await later.chat.completions.create(**CHAT, stream=True)
    said = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
    response = await later.responses.create(model="hybridqa-retrieval", input=QUESTION)
    assert response.output_text == answer.text
    events = await later.responses.create(model="hybridqa-retrieval", input=QUESTION, stream=True)
    told = [event.delta async for event in events if event.type == "response.output_text.delta"]
    assert "".join(told) == said
    async with later.chat.completions.stream(**ENDING) as stream:
        final = await stream.get_final_completion()
    assert (final.choices[0].message.content or "").startswith("I don't know")
    assert "hybridqa" in [model.id async for model in later.models.list()]


def test_every_parameter_of_the_api_is_known_here() -> None:
    """One that would change an answer is followed or refused; these others change none."""
    passed_over = {
        "metadata",
        "parallel_tool_calls",  # there are no tools
        "prediction",  # makes an answer come faster
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
    known = {*ChatRequest.model_fields, *schema._UNHEARD_IN_CHAT, *passed_over}
    assert set(CompletionCreateParamsBase.__annotations__) <= known


def test_what_asks_for_nothing_is_no_error(client: OpenAI) -> None:
    plain = client.chat.completions.create(**CHAT)
    done = client.chat.completions.create(
        **CHAT,
        n=1,
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        logprobs=False,
        tools=[],
        tool_choice="none",
        modalities=["text"],
        response_format={"type": "text"},
        stop=None,
        store=True,
        metadata={"a": "b"},
        user="somebody",
        service_tier="auto",
        reasoning_effort="none",
        extra_body={"top_k": -1, "min_p": 0, "repetition_penalty": 1.0},
    )
    assert done.choices[0].message.content == plain.choices[0].message.content
