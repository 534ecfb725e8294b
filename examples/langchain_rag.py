"""A LangChain program that finds with hybridqa and answers with another model: `langchain_rag.py [QUESTION]`.

The other model is SmolLM2 on plain transformers; put `ChatOpenAI(...)` or any other chat model in its place.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.messages import convert_to_openai_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

from hybridqa import HybridQA, Settings
from hybridqa.engine.environment import prepare_environment
from hybridqa.langchain import HybridQARetriever
from hybridqa.models import resolve_model

CORPUS = Path(__file__).resolve().parent / "corpus"
QUESTION = " ".join(sys.argv[1:]) or "Who designed the Lumen Kettle K7?"
prepare_environment()  # before anything loads torch

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the question in one sentence, from this text alone:\n\n{context}"),
        ("human", "{question}"),
    ]
)


def another_model() -> Runnable[PromptValue, str]:
    """SmolLM2 as a transformers pipeline, with nothing of hybridqa's but the files."""
    from transformers import pipeline

    folder = resolve_model("smollm2-135m", Settings().cache_dir).path
    generate = pipeline("text-generation", model=str(folder), dtype="float32")

    def answer(prompt: PromptValue) -> str:
        turns = convert_to_openai_messages(prompt.to_messages())
        (done,) = generate(turns, max_new_tokens=40, do_sample=False, return_full_text=False)
        return str(done["generated_text"]).strip()

    return RunnableLambda(answer)


def joined(documents: list[Document]) -> str:
    """The passages as one text."""
    return "\n\n".join(document.page_content for document in documents)


with tempfile.TemporaryDirectory() as folder, HybridQA.open(folder, create=True) as store:
    store.add(CORPUS)
    retriever = HybridQARetriever(store=store, k=2)
    chain = {"context": retriever | joined, "question": RunnablePassthrough()} | PROMPT | another_model()
    print(QUESTION)
    print((chain | StrOutputParser()).invoke(QUESTION))
    for found in retriever.invoke(QUESTION):
        about = found.metadata
        print(f"  {about['doc_id']} {about['start']}-{about['end']}, evidence {about['evidence']:.2f}")
