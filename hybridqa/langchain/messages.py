"""LangChain's messages as questions and turns, and replies as LangChain's messages with their citations.

Knows nothing about who answers. Invariant: an annotation's offsets are of the text block that has it, so that
`text[start_index:end_index]` is the marker.

A message's content is plain text. Where its citations stand is told by its `content_blocks`, which LangChain makes from
`response_metadata["citations"]` by the translator that is registered here; `output_version="v1"` keeps them in the
content itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    convert_to_messages,
)
from langchain_core.messages import content as blocks
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.block_translators import register_translator

from hybridqa.errors import InputError
from hybridqa.langchain.source import Json, Reply
from hybridqa.types import Message

PROVIDER = "hybridqa"
_ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant"}
_NO_TEXT = ("reasoning", "tool_call", "tool_call_chunk", "invalid_tool_call", "server_tool_call", "non_standard")


def as_question(messages: Sequence[BaseMessage]) -> tuple[str, tuple[Message, ...]]:
    """The question, and the turns before it. Raises `InputError`."""
    turns = as_turns(messages)
    if not turns or turns[-1].role != "user":
        last = f"of role {turns[-1].role!r}" if turns else "missing"
        raise InputError(f"the last message is {last}; expected a HumanMessage: the question.")
    return turns[-1].content, turns[:-1]


def as_turns(messages: Sequence[Any]) -> tuple[Message, ...]:
    """A conversation as hybridqa has it, from anything that LangChain takes for one. Raises `InputError`."""
    turns = []
    for one in messages:
        if isinstance(one, Message):
            turns.append(one)
        else:
            (message,) = convert_to_messages([one])
            turns.append(Message(_role(message), _text(message)))
    return tuple(turns)


def _role(message: BaseMessage) -> str:
    match message:
        case HumanMessage():
            return "user"
        case AIMessage():
            return "assistant"
        case SystemMessage():
            return "system"
        case ChatMessage() if message.role in _ROLES:
            return _ROLES[message.role]
    raise InputError(
        f"a message of type {message.type!r} cannot be read; expected messages of a person, the model or the system: "
        "hybridqa calls no tools."
    )


def _text(message: BaseMessage) -> str:
    """The message's words. Raises `InputError` for pictures and the like; what a model thought is passed over."""
    if isinstance(message.content, str):
        return message.content
    said = []
    for block in message.content_blocks:
        if block["type"] == "text":
            said.append(block["text"])
        elif not (isinstance(message, AIMessage) and block["type"] in _NO_TEXT):
            raise InputError(f"content of type {block['type']!r} cannot be read; expected text alone.")
    return "".join(said)


def whole(reply: Reply, model: str) -> AIMessage:
    """A reply as a message."""
    return AIMessage(reply.text, usage_metadata=_usage(reply), response_metadata=_about(reply, model))


def piece(text: str) -> AIMessageChunk:
    """Some of a reply's text."""
    return AIMessageChunk(content=text, response_metadata={"model_provider": PROVIDER})


def last(reply: Reply, model: str) -> AIMessageChunk:
    """What comes behind a reply's text."""
    return AIMessageChunk(
        content="", usage_metadata=_usage(reply), response_metadata=_about(reply, model), chunk_position="last"
    )


def _usage(reply: Reply) -> UsageMetadata:
    prompt, completion = reply.usage["prompt_tokens"], reply.usage["completion_tokens"]
    return UsageMetadata(input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion)


def _about(reply: Reply, model: str) -> dict[str, Any]:
    about = {
        **reply.extension,
        "model_name": model,
        "model_provider": PROVIDER,
        "finish_reason": reply.finish_reason,
        "citations": _citations(reply),
    }
    return about if reply.reply_id is None else {**about, "id": reply.reply_id}


def _citations(reply: Reply) -> list[Json]:
    """The citations, with the addresses of what they quote where a server has any."""
    citations = [dict(one) for one in reply.extension["citations"]]
    for (_, place), url in zip(_markers(citations), reply.urls, strict=False):
        citations[place]["url"] = url
    return citations


def _markers(citations: Sequence[Json]) -> list[tuple[tuple[int, int], int]]:
    """Where each marker stands, and which of the citations it is of; in the order of the API's annotations."""
    found = [((start, end), place) for place, one in enumerate(citations) for start, end in one["places"]]
    return sorted(found, key=lambda marker: marker[0])


def _annotations(citations: Sequence[Json]) -> list[blocks.Annotation]:
    found: list[blocks.Annotation] = []
    for (start, end), place in _markers(citations):
        cited = citations[place]
        names = ("number", "doc_id", "passage_id", "start", "end", "score")
        annotation: blocks.Citation = {
            "type": "citation",
            "title": cited["title"] or cited["doc_id"],
            "start_index": start,
            "end_index": end,
            "cited_text": cited["quote"],
            "extras": {name: cited[name] for name in names},
        }
        if "url" in cited:
            annotation["url"] = cited["url"]
        found.append(annotation)
    return found


def _blocks(message: AIMessage) -> list[blocks.ContentBlock]:
    """A message of ours in standard content blocks."""
    if not isinstance(message.content, str):
        raise NotImplementedError  # of version v1: LangChain reads them itself
    annotations = _annotations(cast("list[Json]", message.response_metadata.get("citations") or []))
    if not message.content and not annotations:
        return []
    block: blocks.TextContentBlock = {"type": "text", "text": message.content}
    if annotations:
        block["annotations"] = annotations
    return [block]


register_translator(PROVIDER, _blocks, _blocks)
