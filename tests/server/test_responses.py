"""The Responses API as the real `openai` client has it, from a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import TypeAdapter

from hybridqa import HybridQA, Message
from hybridqa.engine.protocol import Delta
from hybridqa.errors import EngineError
from hybridqa.models import ModelFolder
from hybridqa.server import responses_schema
from hybridqa.server.responses_reply import ResponsesReply
from hybridqa.server.responses_schema import ResponsesRequest
from hybridqa.types import Answer, Citation, Mode, Passage, ScoredPassage, Usage

QUESTION = "Who designed the Lumen kettle?"
ELSEWHERE = "Which galaxy has the oldest pulsars?"  # nothing is found for it: an answer that ends by itself
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
NEEDED = {name for name, field in Response.model_fields.items() if field.is_required()}


def is_whole(response: Response) -> Response:
    """The response, which has everything that the API says there is, in its types."""
    plain = response.to_dict(mode="json")
    Response.model_validate(plain, strict=True)
    assert set(plain) >= NEEDED and response.object == "response" and response.id.startswith("resp_")
    return response


def test_an_answer_is_the_stores_own(client: OpenAI, store: HybridQA) -> None:
    done = is_whole(client.responses.create(model="hybridqa", input=QUESTION))
    answer = store.ask(QUESTION)
    (item,) = done.output
    assert done.output_text == answer.text and item.type == "message" and item.role == "assistant"
    assert (done.status, item.status) == ("incomplete", "incomplete")  # a random model never ends by itself
    assert done.incomplete_details is not None and done.incomplete_details.reason == "max_output_tokens"
    assert done.usage is not None and done.usage.output_tokens == answer.usage.completion_tokens
    assert (
        done.usage.input_tokens == answer.usage.prompt_tokens and done.usage.total_tokens == answer.usage.total_tokens
    )
    extension = done.model_extra["hybridqa"] if done.model_extra else {}
    assert extension["mode"] == "hybrid" and extension["reason"] == answer.route_reason


def test_an_answer_that_ends_by_itself_is_complete(client: OpenAI, store: HybridQA) -> None:
    done = is_whole(client.responses.create(model="hybridqa", input=ELSEWHERE))
    assert done.status == "completed" and done.incomplete_details is None and done.completed_at is not None
    assert done.output_text == store.ask(ELSEWHERE).text and done.model_extra
    assert done.model_extra["hybridqa"]["abstained"] is True


def test_what_was_asked_for_is_said_back(client: OpenAI) -> None:
    done = is_whole(
        client.responses.create(
            model="hybridqa-retrieval",
            input=QUESTION,
            instructions="Be brief.",
            max_output_tokens=3,
            temperature=0.5,
            top_p=0.9,
            metadata={"ticket": "7"},
            store=True,
            background=False,
            tools=[],
            tool_choice="none",
            text={"format": {"type": "text"}},
            truncation="auto",
            user="somebody",
        )
    )
    assert (done.instructions, done.max_output_tokens, done.temperature, done.top_p) == ("Be brief.", 3, 0.5, 0.9)
    assert done.metadata == {"ticket": "7"} and done.model == "hybridqa-retrieval" and done.user == "somebody"
    assert done.to_dict()["store"] is False and done.truncation == "auto"
    assert done.usage is not None and done.usage.output_tokens == 3


def test_every_parameter_of_the_api_is_known_here() -> None:
    """One that would change an answer is followed or refused; these others change none."""
    passed_over = {
        "access_programs",
        "image",
        "max_tool_calls",  # there are no tools
        "prompt_cache_options",
        "prompt_cache_retention",
        "service_tier",
        "stream_options",  # its `include_obfuscation` pads events
    }
    refused = {*responses_schema._UNHEARD, "previous_response_id", "conversation"}
    known = {*ResponsesRequest.model_fields, *refused, *passed_over}
    assert set(ResponseCreateParamsBase.__annotations__) <= known


def test_a_conversation_keeps_its_turns(client: OpenAI, store: HybridQA) -> None:
    first = client.responses.create(model="hybridqa", input="Tell me about the kettle.")
    turns: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Tell me about the kettle."}]},
        *first.output,
        {"role": "user", "content": "What does it cost?"},
    ]
    done = client.responses.create(model="hybridqa", instructions="Be polite.", input=turns)
    history = (
        Message("system", "Be polite."),
        Message("system", "Be brief."),
        Message("user", "Tell me about the kettle."),
        Message("assistant", first.output_text),
    )
    answer = store.ask("What does it cost?", history=history)
    assert done.output_text == answer.text
    assert done.usage is not None and done.usage.input_tokens == answer.usage.prompt_tokens
    alone = store.ask("What does it cost?")
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens


def test_sampling_is_followed(client: OpenAI) -> None:
    greedy = client.responses.create(model="hybridqa-retrieval", input=QUESTION)
    drawn = client.responses.create(model="hybridqa-retrieval", input=QUESTION, temperature=1.5)
    narrow = client.responses.create(model="hybridqa-retrieval", input=QUESTION, temperature=1.5, top_p=1e-6)
    assert greedy.output_text == narrow.output_text != drawn.output_text


def test_the_extension_chooses_what_may_answer(client: OpenAI) -> None:
    def documents(**extension: Any) -> set[str]:
        done = client.responses.create(
            model="hybridqa-retrieval", input=QUESTION, extra_body={"hybridqa": {"k": 1, **extension}}
        )
        return {citation["doc_id"] for citation in (done.model_extra or {})["hybridqa"]["citations"]}

    assert documents(filter={"doc_ids": ["museum"]}) <= {"museum"}
    assert documents(collection="vault") <= {"secret"}
    with pytest.raises(openai.BadRequestError):
        documents(colection="vault")
    with pytest.raises(openai.NotFoundError, match="no collection 'nowhere'"):
        documents(collection="nowhere")


def told(events: list[Any]) -> list[str]:
    """The events' types, those of text as one; every event is checked."""
    for number, event in enumerate(events):
        EVENT.validate_python(event.to_dict(mode="json"), strict=True)
        assert event.sequence_number == number
    types = [event.type.removeprefix("response.") for event in events]
    return [name for place, name in enumerate(types) if name != types[place - 1] or not place]


BEGUN = ["created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"]
ENDED = ["output_text.done", "content_part.done", "output_item.done"]


@pytest.mark.parametrize(("asked", "last"), [(QUESTION, "incomplete"), (ELSEWHERE, "completed")])
def test_a_stream_says_the_same_in_order(client: OpenAI, asked: str, last: str) -> None:
    whole = client.responses.create(model="hybridqa", input=asked)
    events = list(client.responses.create(model="hybridqa", input=asked, stream=True))
    names = [name for name in told(events) if name != "output_text.annotation.added"]
    assert names == [*BEGUN, *ENDED, last]
    end: Any = events[-1]
    final = is_whole(end.response)
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == final.output_text and final.status == last
    assert said.startswith(whole.output_text.split(" [")[0]) and final.usage == whole.usage
    assert final.model_extra and final.model_extra["hybridqa"]["mode"] == "hybrid"
    begun: Any = events[0]
    assert is_whole(begun.response).status == "in_progress" and begun.response.id == final.id
    assert {event.item_id for event in events if "output_text" in event.type} == {final.output[0].id}


def test_the_events_have_their_names(url: str) -> None:
    body = {"model": "hybridqa", "input": QUESTION, "stream": True}
    with httpx.stream("POST", f"{url}/v1/responses", json=body, timeout=60) as done:
        assert done.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in done.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in lines[::2]]
    assert all(f'"type": "{name}"' in data for name, data in zip(names, lines[1::2], strict=True))
    assert names[-1] == "response.incomplete"


def test_the_clients_own_helper_gathers_it(client: OpenAI, store: HybridQA) -> None:
    with client.responses.stream(model="hybridqa", input=ELSEWHERE) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert said == final.output_text == store.ask(ELSEWHERE).text
    assert final.status == "completed" and final.usage is not None
    assert final.model_extra and final.model_extra["hybridqa"]["abstained"] is True


@pytest.fixture(scope="module")
def real_store(tmp_path_factory: pytest.TempPathFactory, model_folder: ModelFolder) -> Iterator[HybridQA]:
    """A store whose model writes what can be cited, and ends."""
    folder = tmp_path_factory.mktemp("real")
    settings: dict[str, Any] = {"model": str(model_folder.path), "engine": "reference", "max_model_len": 1024}
    with HybridQA.open(folder, create=True, max_answer_tokens=32, **settings) as qa:
        qa.add_text("kettle", "The Lumen kettle was designed by Maren Holt. It costs 89 euros.", title="The kettle")
        yield qa


def test_citations_are_annotations_whole_and_in_the_stream(
    real_store: HybridQA, store: HybridQA, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "aask", real_store.aask)
    monkeypatch.setattr(store, "astream", real_store.astream)
    done = is_whole(client.responses.create(model="hybridqa-retrieval", input=QUESTION))
    item: Any = done.output[0]
    found = item.content[0].annotations
    assert done.status == "completed" and found
    assert {done.output_text[one.start_index : one.end_index] for one in found} == {"[1]"}
    assert found[0].to_dict() == {
        "type": "url_citation",
        "title": "The kettle",
        "url": found[0].url,
        "start_index": done.output_text.index("[1]"),
        "end_index": done.output_text.index("[1]") + 3,
    }
    assert "/v1/documents/kettle?collection=default#char=" in found[0].url
    events: list[Any] = list(client.responses.create(model="hybridqa-retrieval", input=QUESTION, stream=True))
    assert told(events) == [*BEGUN, "output_text.annotation.added", *ENDED, "completed"]
    added = [event for event in events if event.type == "response.output_text.annotation.added"]
    assert [event.annotation_index for event in added] == list(range(len(added)))
    final = is_whole(events[-1].response)
    text: Any = final.output[0].content[0]  # type: ignore[union-attr]
    assert [event.annotation.to_dict() for event in added] == [one.to_dict() for one in text.annotations]
    assert {final.output_text[one.start_index : one.end_index] for one in text.annotations} == {"[1]"}
    with client.responses.stream(model="hybridqa-retrieval", input=QUESTION) as stream:
        gathered: Any = stream.get_final_response().output[0]
    assert gathered.content[0].annotations == text.annotations


def test_an_annotation_for_each_marker() -> None:
    passage = Passage(7, "a b", "default", 0, 0, 9, "quote")
    citation = Citation(1, "a b", "", 7, 4, 9, "quote", ((3, 6), (11, 14)))
    answer = Answer(
        "It [1] is. [1]", Mode.HYBRID, citations=(citation,), passages=(ScoredPassage(passage, 1.0),), usage=Usage(5, 4)
    )
    reply = ResponsesReply(ResponsesRequest(model="hybridqa", input="?"), "default")
    response = Response.model_validate(reply.whole(answer), strict=True)
    found = response.output[0].content[0].annotations  # type: ignore[union-attr,index]
    assert [(one.start_index, one.end_index, one.title) for one in found] == [(3, 6, "a b"), (11, 14, "a b")]  # type: ignore[union-attr]


def failing(store: HybridQA, after: int) -> Any:
    """`astream` of a store whose engine fails when it has said so many pieces."""
    answer = store.astream

    async def pieces(question: str, **options: Any) -> AsyncIterator[Delta | Answer]:
        stream = answer(question, **options)
        for _ in range(after):
            yield await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        raise EngineError("a step of vLLM failed.")

    return pieces


def test_a_failure_in_the_stream_is_told_in_it(
    client: OpenAI, store: HybridQA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "astream", failing(store, 3))
    events = list(client.responses.create(model="hybridqa", input=QUESTION, stream=True))
    assert told(events) == [*BEGUN, "failed"]
    end: Any = events[-1]
    failed = is_whole(end.response)
    assert failed.status == "failed" and failed.error is not None and failed.error.code == "server_error"
    assert "step of vLLM" in failed.error.message and failed.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert failed.output_text == "".join(event.delta for event in events if event.type == "response.output_text.delta")


def test_a_failure_before_the_stream_has_its_status(
    client: OpenAI, store: HybridQA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "astream", failing(store, 0))
    with pytest.raises(openai.InternalServerError, match="step of vLLM") as error:
        client.responses.create(model="hybridqa", input=QUESTION, stream=True)
    assert (error.value.status_code, error.value.code) == (503, "engine_error")


USER = {"role": "user", "content": "Who?"}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id", "not kept"),
    ({"conversation": "conv_1"}, "conversation", "not kept"),
    ({"conversation": {"id": "conv_1"}}, "conversation", "not kept"),
    ({"background": True}, "background", "True"),
    ({"tools": [{"type": "web_search"}]}, "tools", "web_search"),
    ({"tool_choice": "required"}, "tool_choice", "required"),
    ({"text": {"format": {"type": "json_object"}}}, "text.format", "json_object"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "low"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort", "high"),
    ({"include": ["message.output_text.logprobs"]}, "include", "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs", "3"),
    ({"truncation": "disabled"}, "truncation", "disabled"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "pmpt_1"),
    ({"max_tokens": 3}, "max_tokens", "left out"),
    ({"seed": 3}, "seed", "left out"),
    ({"max_output_tokens": 0}, "max_output_tokens", "greater"),
    ({"metadata": {"a": 1}}, "metadata.a", "string"),
    ({"metadata": {"a" * 65: "b"}}, "metadata", "64"),
    ({"metadata": {"a": "b" * 513}}, "metadata.a", "512"),
    ({"metadata": {str(n): "b" for n in range(17)}}, "metadata", "16"),
    ({"input": []}, "input", "at least 1"),
    ({"input": ""}, "", "question is empty"),
    ({"input": None}, "input", "valid"),
    ({"input": [{"role": "assistant", "content": "Hello."}]}, "input", "role 'user'"),
    ({"input": [{"role": "tool", "content": "x"}, USER]}, "input.0.role", "tool"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}, USER]}, "input.0", "not kept"),
    ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}, USER]}, "input.0.type", "function"),
    ({"input": [{"type": "message", "content": "b"}]}, "input.0.role", "role ''"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0", "input_image"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0", "input_text"),
    ({"input": "why " * 2000}, "", "the question"),
    ({"input": "why " * 2000, "stream": True}, "", "the question"),
    ({"temperature": 3}, "temperature", "less"),
]


@pytest.mark.parametrize(("body", "param", "said"), WRONG)
def test_what_cannot_be_answered_is_named(url: str, body: dict[str, Any], param: str, said: str) -> None:
    done = httpx.post(f"{url}/v1/responses", json={"model": "hybridqa", "input": "Who?", **body}, timeout=60)
    error = done.json()["error"]
    assert done.status_code == 400 and said in error["message"], error
    assert param in ("", error["param"]) or error["param"].startswith(param), error
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


def test_a_model_that_is_none_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4o'"):
        client.responses.create(model="gpt-4o", input=QUESTION)


def test_a_refusal_may_stand_in_a_conversation(url: str) -> None:
    turns = [
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot say."}]},
        {"role": "user", "content": "Who?"},
    ]
    request = ResponsesRequest.model_validate({"model": "hybridqa", "input": turns})
    assert request.conversation().history[1] == Message("assistant", "I cannot say.")
