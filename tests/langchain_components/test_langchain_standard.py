"""The standard suites of langchain-tests, in process and against a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from hybridqa import HybridQA
from hybridqa.langchain import ChatHybridQA, HybridQARetriever

pytestmark = pytest.mark.filterwarnings("ignore:.* is in beta")  # the suite's own: events of version 3
ADDRESS = "http://127.0.0.1:8000/v1"  # nobody listens there: the unit tests connect to nothing


class Retrieves(RetrieversIntegrationTests):
    """What is said once for both ways."""

    whom: dict[str, Any]

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return HybridQARetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return self.whom

    @property
    def retriever_query_example(self) -> str:
        return "Who designed the Lumen kettle?"


class TestRetrieverInProcess(Retrieves):
    @pytest.fixture(autouse=True)
    def _ask(self, store: HybridQA) -> None:
        self.whom = {"store": store}


class TestRetrieverByUrl(Retrieves):
    @pytest.fixture(autouse=True)
    def _ask(self, url: str) -> None:
        self.whom = {"base_url": url}


class Chats(ChatModelIntegrationTests):
    """What is said once for all ways. No tools, and so no structured output: the class has no `bind_tools`."""

    whom: dict[str, Any]
    mode = "hybridqa-closed"  # it has an answer to "Hello", which is about none of the documents

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatHybridQA

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**self.whom, "model": self.mode}

    @property
    def model_override_value(self) -> str:
        return "hybridqa-retrieval"


class TestChatInProcess(Chats):
    @pytest.fixture(autouse=True)
    def _ask(self, store: HybridQA) -> None:
        self.whom = {"store": store}


class TestChatByUrl(Chats):
    @pytest.fixture(autouse=True)
    def _ask(self, url: str) -> None:
        self.whom = {"base_url": url}


class TestChatThatAbstains(Chats):
    """Hybrid mode, the default, which says of "Hello" that nothing was found."""

    mode = "hybridqa"

    @pytest.fixture(autouse=True)
    def _ask(self, url: str) -> None:
        self.whom = {"base_url": url}


class TestChatUnitByUrl(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatHybridQA

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": ADDRESS, "collection": "manuals", "filter": {"team": "travel"}}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"HYBRIDQA_API_KEY": "hq-key"}, {"base_url": ADDRESS}, {"api_key": "hq-key"}


class TestChatUnitInProcess(ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _somewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        HybridQA.open(tmp_path / "store", create=True).close()
        monkeypatch.chdir(tmp_path)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatHybridQA

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"store": "store", "settings": {"passages": 2}}
