"""A LangChain program whose chat model is hybridqa, in a chain that remembers: `langchain_chat.py [QUESTION ...]`.

Each session has a history of its own; the second question is understood through the first.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

from hybridqa import HybridQA
from hybridqa.langchain import ChatHybridQA

CORPUS = Path(__file__).resolve().parent / "corpus"
QUESTIONS = sys.argv[1:] or ["Who designed the Lumen Kettle K7?", "Which wood is its handle made of?"]
PROMPT = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{question}")])
sessions: defaultdict[str, list[BaseMessage]] = defaultdict(list)


def ask(chat: ChatHybridQA, session: str, question: str) -> None:
    """Prints the answer as it is written, then what it cites, and keeps both turns."""
    history = sessions[session]
    print(f"{session}: {question}\n  ", end="")
    said: AIMessageChunk | None = None
    for piece in (PROMPT | chat).stream({"history": history, "question": question}):
        assert isinstance(piece, AIMessageChunk)
        print(piece.text, end="", flush=True)
        said = piece if said is None else said + piece
    assert said is not None
    print(f"  ({said.usage_metadata['total_tokens'] if said.usage_metadata else 0} tokens)")
    for block in said.content_blocks:
        for cited in block.get("annotations", ()) if block["type"] == "text" else ():
            if cited["type"] == "citation":
                print(f"    {block['text'][cited['start_index'] : cited['end_index']]} {cited['title']}: ", end="")
                print(f"“{' '.join(cited['cited_text'].split())}”")
    history += [HumanMessage(question), said]


with tempfile.TemporaryDirectory() as folder:
    with HybridQA.open(folder, create=True) as store:
        store.add(CORPUS)
    with ChatHybridQA(store=folder, model="hybridqa-retrieval", temperature=0, max_tokens=32) as chat:
        for question in QUESTIONS:
            ask(chat, "Ada", question)
        ask(chat, "Ben", QUESTIONS[-1])  # who has asked nothing before
