"""What a LangChain program gets from the chat model, the same in process and by URL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core._api import LangChainDeprecationWarning
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableConfig
from langchain_core.runnables.history import RunnableWithMessageHistory
from pydantic import ValidationError

from hybridqa import HybridQA, Message
from hybridqa.errors import InputError, NotFoundError
from hybridqa.langchain import ChatHybridQA
from hybridqa.models import ModelFolder
from tests.server.conftest import QUESTION, open_filled, serving

Whom = dict[str, Any]


def summed(pieces: list[AIMessageChunk]) -> AIMessageChunk:
    whole, *rest = pieces
    for one in rest:
        whole = whole + one
    return whole


def test_a_message_is_the_stores_answer(store: HybridQA, whom: Whom) -> None:
    message, answer = ChatHybridQA(**whom).invoke(QUESTION), store.ask(QUESTION)
    assert isinstance(message, AIMessage) and message.content == message.text == answer.text
    spent = answer.usage
    assert message.usage_metadata == {
        "input_tokens": spent.prompt_tokens,
        "output_tokens": spent.completion_tokens,
        "total_tokens": spent.total_tokens,
    }
    about = message.response_metadata
    assert (about["model_name"], about["mode"], about["collection"]) == ("hybridqa", "hybrid", "default")
    assert about["finish_reason"] == answer.finish_reason and about["model_provider"] == "hybridqa"
    assert about["abstained"] is False and about["modules"] == [] and about["reason"] == answer.route_reason
    assert message.content_blocks[0]["type"] == "text" and message.id


async def test_asyncio_says_the_same(whom: Whom) -> None:
    chat = ChatHybridQA(**whom)
    assert (await chat.ainvoke(QUESTION)).content == chat.invoke(QUESTION).content
    one, other = await chat.abatch([QUESTION, "What does a ticket cost?"])
    assert [one.content, other.content] == [
        found.content for found in chat.batch([QUESTION, "What does a ticket cost?"])
    ]


async def test_the_pieces_of_a_stream_are_the_whole(store: HybridQA, whom: Whom) -> None:
    chat = ChatHybridQA(**whom, max_tokens=12)
    pieces = list(chat.stream(QUESTION))
    whole = summed(pieces)
    _, answer = list(store.stream(QUESTION, max_tokens=12))[-2:]
    assert len(pieces) > 3 and whole.text == answer.text  # type: ignore[union-attr]
    assert [piece.usage_metadata is not None for piece in pieces].count(True) == 1
    assert whole.usage_metadata and whole.usage_metadata["output_tokens"] == 12
    assert pieces[-1].chunk_position == "last" and whole.response_metadata["model_name"] == "hybridqa"
    assert whole.response_metadata["finish_reason"] == "length"
    later = summed([piece async for piece in chat.astream(QUESTION)])
    assert (later.text, later.usage_metadata) == (whole.text, whole.usage_metadata)


def test_a_stream_that_is_left_ends_its_answer(store: HybridQA, whom: Whom) -> None:
    pieces = ChatHybridQA(**whom, max_tokens=900, temperature=2.0, seed=5).stream(QUESTION)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert ChatHybridQA(**whom).invoke(QUESTION).content  # and the engine has room for the next


def test_the_model_s_name_is_the_mode(store: HybridQA, whom: Whom) -> None:
    chat = ChatHybridQA(model="hybridqa-retrieval", temperature=0, **whom)
    assert chat.invoke(QUESTION).response_metadata["mode"] == "retrieval"
    closed = chat.invoke(QUESTION, model="hybridqa-closed")
    assert closed.content == store.ask(QUESTION, mode="closed").text
    assert closed.response_metadata["model_name"] == "hybridqa-closed"
    (*_, last) = chat.stream(QUESTION, model="hybridqa-closed")
    assert last.response_metadata["mode"] == "closed" or last.chunk_position == "last"
    assert chat.bind(model="hybridqa-closed").invoke(QUESTION).content == closed.content
    with pytest.raises((InputError, openai.NotFoundError), match="no model 'gpt-4o'"):
        chat.invoke(QUESTION, model="gpt-4o")


def test_sampling_is_followed(store: HybridQA, whom: Whom) -> None:
    def text(**options: Any) -> str:
        return ChatHybridQA(model="hybridqa-closed", **whom).invoke(QUESTION, **options).text

    greedy = store.ask(QUESTION, mode="closed", max_tokens=8).text
    assert text(temperature=0) == text() == greedy
    assert text(temperature=1.5, seed=1) == text(temperature=1.5, seed=1) != text(temperature=1.5, seed=2)
    assert text(temperature=1.5, top_p=1e-6) == greedy
    short = ChatHybridQA(model="hybridqa-closed", max_tokens=2, **whom).invoke(QUESTION)
    assert short.usage_metadata and short.usage_metadata["output_tokens"] == 2
    letter = greedy[3]
    assert letter not in text(stop=[letter]) and letter not in text(stop=letter)
    kept = ChatHybridQA(model="hybridqa-closed", stop=letter, **whom)
    assert letter not in kept.invoke(QUESTION).text


def test_a_conversation_keeps_its_turns(store: HybridQA, whom: Whom) -> None:
    asked = "What does it cost?"
    history = (Message("system", "Be brief."), Message("user", "The kettle."), Message("assistant", "Nice."))
    answer = store.ask(asked, history=history)
    said: list[LanguageModelInput] = [
        [SystemMessage("Be brief."), HumanMessage("The kettle."), AIMessage("Nice."), HumanMessage(asked)],
        [("system", "Be brief."), ("human", "The kettle."), ("ai", "Nice."), ("human", asked)],
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "The kettle."}]},
            ChatMessage(role="assistant", content="Nice."),
            HumanMessage(content_blocks=[{"type": "text", "text": asked}]),
        ],
    ]
    for turns in said:
        message = ChatHybridQA(**whom).invoke(turns)
        assert message.text == answer.text
        assert message.usage_metadata and message.usage_metadata["input_tokens"] == answer.usage.prompt_tokens


def test_what_documents_may_answer_is_chosen(whom: Whom) -> None:
    chat = ChatHybridQA(model="hybridqa-retrieval", **whom)

    def documents(**options: Any) -> set[str]:
        return {one["doc_id"] for one in chat.invoke(QUESTION, **options).response_metadata["citations"]}

    assert documents(filter={"team": "travel"}) <= {"ferry"}
    assert documents(collection="vault") <= {"secret"}
    assert chat.invoke(QUESTION, filter={"team": "nobody"}).response_metadata["abstained"] is True
    with pytest.raises((NotFoundError, openai.NotFoundError), match="no collection 'nowhere'"):
        chat.invoke(QUESTION, collection="nowhere")


def test_it_stands_in_a_chain(store: HybridQA, whom: Whom) -> None:
    chat = ChatHybridQA(**whom)
    prompt = ChatPromptTemplate.from_messages([("human", "{question}")])
    chain = prompt | chat.with_config(tags=["x"]) | StrOutputParser()
    assert chain.invoke({"question": QUESTION}) == store.ask(QUESTION).text
    assert "".join(chain.stream({"question": QUESTION}))
    free = chat.configurable_fields(model=ConfigurableField(id="model"))
    closed = free.with_config(configurable={"model": "hybridqa-closed"}).invoke(QUESTION)
    assert closed.response_metadata["mode"] == "closed"


def test_a_history_may_be_kept_by_langchain(store: HybridQA, whom: Whom) -> None:
    with pytest.warns(LangChainDeprecationWarning, match=r"short-term memory|persistence"):  # both, and still much used
        kept = InMemoryChatMessageHistory()
        chain = RunnableWithMessageHistory(ChatHybridQA(**whom), lambda session_id: kept)
    config: RunnableConfig = {"configurable": {"session_id": "ada"}}
    first = chain.invoke([HumanMessage(QUESTION)], config)
    second = chain.invoke([HumanMessage("What does it cost?")], config)
    history = (Message("user", QUESTION), Message("assistant", first.text))
    assert second.text == store.ask("What does it cost?", history=history).text
    assert [type(turn).__name__ for turn in kept.messages] == ["HumanMessage", "AIMessage"] * 2


def test_callbacks_count_the_tokens_once(whom: Whom) -> None:
    counted = UsageMetadataCallbackHandler()
    chat = ChatHybridQA(**whom)
    message = chat.invoke(QUESTION, config={"callbacks": [counted]})
    assert counted.usage_metadata == {"hybridqa": message.usage_metadata}
    streamed = UsageMetadataCallbackHandler()
    list(chat.stream(QUESTION, config={"callbacks": [streamed]}))
    assert streamed.usage_metadata == counted.usage_metadata


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([HumanMessage("Who?"), AIMessage("Ada.")], "role 'assistant'"),
        ([SystemMessage("Be brief.")], "role 'system'"),
        ([], "missing"),
        ([ToolMessage("3", tool_call_id="1"), HumanMessage("Who?")], "type 'tool'"),
        ([ChatMessage(role="critic", content="No."), HumanMessage("Who?")], "type 'chat'"),
        ([HumanMessage([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}])], "image"),
        (
            [HumanMessage([{"type": "text", "text": "Who?"}, {"type": "file", "base64": "eA==", "mime_type": "a/b"}])],
            "file",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(whom: Whom, messages: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ChatHybridQA(**whom).invoke(messages)


def test_what_is_no_option_is_refused(whom: Whom) -> None:
    chat = ChatHybridQA(**whom)
    for name in ("tools", "mode", "history", "response_format", "colection"):
        with pytest.raises(TypeError, match=name):
            chat.invoke(QUESTION, **{name: []})
    with pytest.raises(NotImplementedError):
        chat.bind_tools([])
    with pytest.raises(NotImplementedError):
        chat.with_structured_output({"title": "x", "type": "object"})
    for wrong in ({"temperature": 3}, {"max_tokens": 0}, {"top_p": 0}, {"k": 0}):
        (name,) = wrong
        with pytest.raises(InputError, match=name):
            chat.invoke(QUESTION, **wrong)
        with pytest.raises(ValidationError, match=name):
            ChatHybridQA(**whom, **wrong)


def test_tokens_are_the_base_model_s(store: HybridQA, url: str) -> None:
    assert ChatHybridQA(store=store).get_num_tokens("Hello there.") == len(store.prompts.encode_plain("Hello there."))
    with pytest.raises(NotImplementedError, match="custom_get_token_ids"):
        ChatHybridQA(base_url=url).get_num_tokens("Hello there.")
    assert ChatHybridQA(base_url=url, custom_get_token_ids=lambda text: [1, 2]).get_num_tokens("Hello") == 2


# Citations: a model that reads


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory, model_folder: ModelFolder) -> Iterator[tuple[HybridQA, str]]:
    """A store with the default model, which repeats what stands in its passages, and where it is served."""
    with open_filled(tmp_path_factory.mktemp("reading"), model_folder) as qa, serving(qa) as address:
        yield qa, f"{address}/v1"


@pytest.mark.parametrize("way", ["in process", "by URL"])
async def test_citations_are_annotations_of_the_text(reading: tuple[HybridQA, str], way: str) -> None:
    qa, url = reading
    whom: Whom = {"store": qa} if way == "in process" else {"base_url": url}
    chat = ChatHybridQA(**whom, model="hybridqa-retrieval", max_tokens=14)
    kept = ChatHybridQA(**whom, model="hybridqa-retrieval", max_tokens=14, output_version="v1")
    found = [
        chat.invoke(QUESTION),
        await chat.ainvoke(QUESTION),
        summed(list(chat.stream(QUESTION))),
        summed([piece async for piece in chat.astream(QUESTION)]),
        kept.invoke(QUESTION),
        summed(list(kept.stream(QUESTION))),
    ]
    for message in found:
        (block,) = message.content_blocks
        assert block["type"] == "text" and block["text"] == message.text
        annotations = [one for one in block["annotations"] if one["type"] == "citation"]
        assert annotations == block["annotations"] and "kettle" in {one["extras"]["doc_id"] for one in annotations}
        for one in annotations:
            about = one["extras"]
            assert block["text"][one["start_index"] : one["end_index"]] == f"[{about['number']}]"
            cited = qa.catalog.get_document("default", about["doc_id"])
            assert cited.text[about["start"] : about["end"]] == one["cited_text"] and one["title"] == cited.title
            shown = f"{url}/documents/{cited.doc_id}?collection=default#char={about['start']},{about['end']}"
            assert one.get("url") == (shown if way == "by URL" else None)
    assert isinstance(found[0].content, str) and isinstance(found[4].content, list)
