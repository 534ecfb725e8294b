"""What a LangChain program gets from the retriever, the same in process and by URL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from hybridqa import Filter, HybridQA
from hybridqa.errors import InputError, NotFoundError
from hybridqa.langchain import HybridQARetriever
from hybridqa.models import ModelFolder
from hybridqa.modules.manifest import Manifest, write_manifest
from tests.server.conftest import QUESTION, SECRET, TEXTS, open_filled, serving

Whom = dict[str, Any]


def ids(found: list[Document]) -> list[str]:
    return [one.metadata["doc_id"] for one in found]


def test_documents_say_what_they_are(store: HybridQA, whom: Whom) -> None:
    found = HybridQARetriever(**whom).invoke(QUESTION)
    best, route = found[0], store.retrieve(QUESTION)
    assert ids(found) == [scored.passage.doc_id for scored in route.passages] and len(found) == 3
    passage = route.passages[0].passage
    assert (best.page_content, best.id) == (TEXTS["kettle"], f"kettle#{passage.ordinal}")
    about = best.metadata
    assert (about["doc_id"], about["source"], about["title"]) == ("kettle", "kettle", "The kettle")
    assert TEXTS["kettle"][about["start"] : about["end"]] == best.page_content
    assert (about["score"], about["dense"]) == pytest.approx((route.passages[0].score, route.passages[0].dense))
    assert about["evidence"] == pytest.approx(route.evidence["kettle"]) and about["modules"] == []
    assert (about["team"], about["date"]) == ("goods", "2031-03-08")  # the document's own


async def test_asyncio_finds_the_same(whom: Whom) -> None:
    retriever = HybridQARetriever(**whom, k=2)
    assert await retriever.ainvoke(QUESTION) == retriever.invoke(QUESTION)
    assert await retriever.abatch([QUESTION, "A ticket?"]) == retriever.batch([QUESTION, "A ticket?"])


def test_how_many_may_be_said_twice(whom: Whom) -> None:
    retriever = HybridQARetriever(**whom, k=1)
    assert len(retriever.invoke(QUESTION)) == 1
    assert len(retriever.invoke(QUESTION, k=2)) == 2  # the call's counts
    assert len(retriever.invoke(QUESTION, k=None)) == 1


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (Filter(doc_ids=("museum",)), {"museum"}),
        (Filter(since="2031-01-01"), {"kettle"}),
        ({"team": "goods"}, {"kettle", "museum"}),
        ({"team": ["travel"], "date": "2029-05-05"}, {"ferry"}),
        ({"doc_ids": ["ferry", "museum"], "until": "2029-12-31"}, {"ferry"}),
        ({"metadata": {"team": "travel"}}, {"ferry"}),
        ({"team": "nobody"}, set()),
        ({}, set(TEXTS)),
    ],
)
def test_a_filter_decides_what_is_found(whom: Whom, chosen: Any, expected: set[str]) -> None:
    assert set(ids(HybridQARetriever(**whom).invoke(QUESTION, filter=chosen))) == expected
    assert set(ids(HybridQARetriever(**whom, filter=chosen).invoke(QUESTION))) == expected


def test_a_constructor_s_filter_stays_until_another_is_given(whom: Whom) -> None:
    retriever = HybridQARetriever(**whom, filter={"team": "travel"})
    assert ids(retriever.invoke(QUESTION, filter=None)) == ["ferry"]
    assert set(ids(retriever.invoke(QUESTION, filter={"team": "goods"}))) == {"kettle", "museum"}


def test_a_collection_never_sees_another_s(whom: Whom) -> None:
    retriever = HybridQARetriever(**whom)
    asked = "With which number does the vault open?"
    assert "secret" not in ids(retriever.invoke(asked, k=50))
    (found,) = retriever.invoke(asked, k=50, collection="vault")
    assert found.page_content == SECRET and found.metadata["collection"] == "vault"
    (found,) = HybridQARetriever(**whom, collection="vault").invoke(QUESTION)
    assert found.metadata["doc_id"] == "secret"


def test_a_question_that_nothing_is_about_finds_what_is_nearest(whom: Whom) -> None:
    found = HybridQARetriever(**whom, k=3).invoke("How do volcanoes erupt?")
    assert len(found) == 3 and all(one.metadata["evidence"] < 0.05 for one in found)


def test_a_question_may_follow_others(store: HybridQA, whom: Whom) -> None:
    history = [HumanMessage("Who founded the Veldmoor museum?"), AIMessage("Anna Voss.")]
    retriever = HybridQARetriever(**whom, k=1)
    assert ids(retriever.invoke("What does it cost there?", history=history)) == ["museum"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0},
        {"k": 2.5},
        {"filter": "team=travel"},
        {"filter": {"year": {"$gt": 2030}}},
        {"filter": {"$and": []}},
        {"filter": {"since": "2031-01-01", "team": "travel"}},
        {"filter": {"since": "someday"}},
        {"hops": 0},
        {"rerank": -1},
    ],
)
def test_a_value_that_cannot_be_used_is_refused(whom: Whom, wrong: dict[str, Any]) -> None:
    (name,) = wrong
    said = "since" if "someday" in str(wrong) else name
    with pytest.raises(InputError, match=said):
        HybridQARetriever(**whom).invoke(QUESTION, **wrong)
    with pytest.raises(ValidationError, match=said):
        HybridQARetriever(**whom, **wrong)


def test_a_name_that_is_none_is_refused(whom: Whom) -> None:
    with pytest.raises(TypeError, match="no option 'colection'"):
        HybridQARetriever(**whom).invoke(QUESTION, colection="vault")
    with pytest.raises(ValidationError, match="colection"):
        HybridQARetriever(**whom, colection="vault")
    with pytest.raises((NotFoundError, openai.NotFoundError), match="no collection 'nowhere'"):
        HybridQARetriever(**whom, collection="nowhere").invoke(QUESTION)
    with pytest.raises((InputError, openai.BadRequestError), match="empty"):
        HybridQARetriever(**whom).invoke("  ")


def test_it_stands_in_a_chain(whom: Whom) -> None:
    chain = HybridQARetriever(**whom, k=1) | RunnableLambda(lambda found: found[0].page_content)
    assert chain.invoke(QUESTION) == TEXTS["kettle"]
    assert HybridQARetriever(**whom).with_config(tags=["x"]).bind(k=1).invoke(QUESTION)[0].page_content


@pytest.fixture
def with_module(
    tmp_path: Path, tiny_model: ModelFolder, make_adapter: Callable[..., Path]
) -> Iterator[tuple[HybridQA, str]]:
    with open_filled(tmp_path / "store", tiny_model) as qa:
        folder = make_adapter(tmp_path / "lora", tiny_model, rank=8)
        hashes = {document.doc_id: document.content_hash for document in qa.documents("default")}
        about: dict[str, Any] = {"module_id": "of-the-kettle", "collection": "default", "kind": "document"}
        about |= {"documents": {"kettle": hashes["kettle"]}, "base_model": "tiny", "base_model_hash": qa.model.hash}
        targets = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
        write_manifest(folder, Manifest(**about, rank=8, alpha=16, targets=targets, metrics={"gate": {"passed": True}}))
        qa.import_module(folder)
        with serving(qa) as address:
            yield qa, address


def test_modules_come_with_their_evidence(with_module: tuple[HybridQA, str]) -> None:
    qa, address = with_module
    (module,) = qa.modules()
    for whom in ({"store": qa}, {"base_url": address}):
        found = {one.metadata["doc_id"]: one.metadata for one in HybridQARetriever(**whom).invoke(QUESTION)}
        (told,) = found["kettle"]["modules"]
        assert (told["module"], told["documents"]) == (module.name, ["kettle"])
        assert told["evidence"] == pytest.approx(found["kettle"]["evidence"]) and told["evidence"] > 0.35
        assert found["museum"]["modules"] == []
        assert not HybridQARetriever(**whom, modules=0).invoke(QUESTION)[0].metadata["modules"]
