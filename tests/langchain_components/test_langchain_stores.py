"""Whom components ask: what they open is shared and given back, what they send is a key's, and no secret is written."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.load import dumps
from pydantic import ValidationError

from hybridqa import HybridQA
from hybridqa.errors import EngineClosedError, StoreNotFoundError
from hybridqa.langchain import ChatHybridQA, HybridQARetriever
from hybridqa.models import ModelFolder
from hybridqa.pipeline import HybridQA as Pipeline
from tests.server.conftest import QUESTION, open_filled, serving

Opened = list[Pipeline]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: ModelFolder) -> Path:
    with open_filled(tmp_path / "store", tiny_model):
        return tmp_path / "store"


@pytest.fixture
def settings(tiny_model: ModelFolder) -> dict[str, Any]:
    return {"model": str(tiny_model.path), "engine": "reference", "dtype": "float32", "max_answer_tokens": 8}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """The stores that were opened meanwhile."""
    found: Opened = []
    begin = Pipeline.__init__

    def noted(self: Pipeline, *given: Any) -> None:
        begin(self, *given)
        found.append(self)

    monkeypatch.setattr(Pipeline, "__init__", noted)
    yield found
    assert all(store._closed for store in found)


def test_components_of_one_folder_share_a_store(folder: Path, settings: dict[str, Any], opened: Opened) -> None:
    chat = ChatHybridQA(store=folder, settings=settings)
    retriever = HybridQARetriever(store=str(folder), settings=settings)
    assert not opened  # nothing before the first question
    with chat, retriever:
        assert chat.invoke(QUESTION).content and retriever.invoke(QUESTION, k=1)
        assert chat.with_config(tags=["x"]).invoke(QUESTION).content
        assert len(opened) == 1
        retriever.close()
        assert not opened[0]._closed and chat.invoke(QUESTION).content
    assert opened[0]._closed
    for component in (chat, retriever):
        component.close()  # once more
        with pytest.raises(EngineClosedError, match="this component is closed"):
            component.invoke(QUESTION)
    with ChatHybridQA(store=folder, settings=settings) as again:
        assert again.invoke(QUESTION).content and len(opened) == 2


def test_a_component_that_nobody_has_keeps_no_store_open(
    folder: Path, settings: dict[str, Any], opened: Opened
) -> None:
    forgotten, kept = (HybridQARetriever(store=folder, settings=settings, k=1) for _ in range(2))
    assert forgotten.invoke(QUESTION) == kept.invoke(QUESTION)
    del forgotten
    gc.collect()
    kept.close()
    assert opened[0]._closed


async def test_many_tasks_open_it_once(folder: Path, settings: dict[str, Any], opened: Opened) -> None:
    async with ChatHybridQA(store=folder, settings=settings) as chat:
        await asyncio.gather(*(chat.ainvoke(QUESTION) for _ in range(8)))
    assert len(opened) == 1


def test_other_settings_are_another_store(folder: Path, settings: dict[str, Any], opened: Opened) -> None:
    with (
        HybridQARetriever(store=folder, settings=settings) as one,
        HybridQARetriever(store=folder, settings={**settings, "passages": 1}) as other,
    ):
        assert (len(one.invoke(QUESTION)), len(other.invoke(QUESTION))) == (3, 1)
        assert len(opened) == 2


def test_an_open_store_stays_its_owner_s(store: HybridQA) -> None:
    with ChatHybridQA(store=store) as chat:
        assert chat.invoke(QUESTION).content
    assert store.ask(QUESTION).text


def test_whom_to_ask_must_be_clear(store: HybridQA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(ValidationError, match="two places"):
        ChatHybridQA(store=store, base_url=url)
    with pytest.raises(ValidationError, match="is no address"):
        ChatHybridQA(base_url="localhost:8000")
    with pytest.raises(StoreNotFoundError, match="nowhere"):
        ChatHybridQA(store=tmp_path / "nowhere")
    with pytest.raises(ValidationError, match="expected store= to be its folder"):
        ChatHybridQA(store=store, settings={"passages": 1})
    with pytest.raises(ValidationError, match="a secret"):
        ChatHybridQA(store=tmp_path, settings={"generator_key": "x"})
    monkeypatch.setenv("HYBRIDQA_BASE_URL", url)
    assert HybridQARetriever(k=1).invoke(QUESTION)
    assert ChatHybridQA(store=store)._identifying_params["base_url"] is None
    monkeypatch.delenv("HYBRIDQA_BASE_URL")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreNotFoundError, match="no store"):
        HybridQARetriever().invoke(QUESTION)


def test_an_address_may_leave_the_version_out(url: str) -> None:
    assert HybridQARetriever(base_url=url.removesuffix("/v1"), k=1).invoke(QUESTION)


def test_a_server_that_is_not_there_or_no_hybridqa_is_told(url: str) -> None:
    absent = ChatHybridQA(base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(openai.APIConnectionError):
        absent.invoke(QUESTION)
    with pytest.raises(openai.APIConnectionError):
        asyncio.run(absent.ainvoke(QUESTION))
    with pytest.raises(openai.NotFoundError):
        HybridQARetriever(base_url=f"{url}/elsewhere").invoke(QUESTION)


def test_one_component_serves_many_loops(url: str) -> None:
    with ChatHybridQA(base_url=url) as chat:
        texts = {asyncio.run(chat.ainvoke(QUESTION)).text for _ in range(3)}
    assert len(texts) == 1


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder) -> Iterator[tuple[str, str]]:
    """A server with keys, and one that reaches the vault alone."""
    with open_filled(tmp_path_factory.mktemp("keyed"), tiny_model) as qa:
        token, _ = qa.add_key("guard", "ask", ["vault"])
        with serving(qa) as address:
            yield address, token


def test_a_key_opens_its_collections(keyed: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    address, token = keyed
    with pytest.raises(openai.AuthenticationError):
        HybridQARetriever(base_url=address).invoke(QUESTION)
    retriever = HybridQARetriever(base_url=address, api_key=token)
    assert [one.metadata["doc_id"] for one in retriever.invoke(QUESTION)] == ["secret"]  # the only one it reaches
    with pytest.raises(openai.PermissionDeniedError):
        retriever.invoke(QUESTION, collection="default")
    monkeypatch.setenv("HYBRIDQA_API_KEY", token)
    chat = ChatHybridQA(base_url=address)
    assert chat.invoke("With which number does the vault open?").response_metadata["collection"] == "vault"
    for told in (repr(chat), str(chat.asdict()), dumps(chat), dumps(retriever), chat._get_llm_string()):
        assert told and token not in told


def test_a_cache_never_answers_for_another_store(store: HybridQA, tmp_path: Path, tiny_model: ModelFolder) -> None:
    set_llm_cache(InMemoryCache())
    try:
        with open_filled(tmp_path / "other", tiny_model) as other:
            for doc_id in ("kettle", "museum", "ferry"):
                other.remove(doc_id)
            one, two = ChatHybridQA(store=store), ChatHybridQA(store=other)
            assert one.invoke(QUESTION).text == one.invoke(QUESTION).text == store.ask(QUESTION).text
            assert two.invoke(QUESTION).response_metadata["abstained"] is True
            vault = one.invoke(QUESTION, collection="vault")
            assert vault.response_metadata["collection"] == "vault"
            assert one.invoke(QUESTION, filter={"team": "nobody"}).response_metadata["abstained"] is True
    finally:
        set_llm_cache(None)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_langchain_the_command_is_named() -> None:
    code = (
        "import sys\nsys.modules['langchain_core'] = None\n"
        "try:\n    import hybridqa.langchain\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    said = run_python(code)
    assert "MissingPackageError" in said and "pip install 'hybridqa[langchain]'" in said


def test_importing_loads_no_model_code_and_no_server() -> None:
    heavy = ["torch", "vllm", "fastapi", "openai", "sentence_transformers"]
    assert run_python(f"import sys, hybridqa.langchain\nprint([n for n in {heavy} if n in sys.modules])") == "[]\n"
