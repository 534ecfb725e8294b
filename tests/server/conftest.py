"""Stores that are served on loopback by the real server, with a tiny random model: one without keys, one with."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from openai import OpenAI

from hybridqa import HybridQA
from hybridqa.models import ModelFolder
from hybridqa.server.app import create_app

TEXTS = {
    "kettle": "The Lumen kettle was designed by Maren Holt. It is sold in Oskvar and costs 89 euros.",
    "museum": "The Veldmoor museum was founded by Anna Voss. A ticket costs 12 crowns.",
    "ferry": "The ferry Solvang crosses the sound in 40 minutes. A bicycle travels free.",
}
SECRET = "The vault opens with quillfeather."
QUESTION = "Who designed the Lumen kettle?"


@contextmanager
def open_filled(folder: Path, model: ModelFolder, **settings: Any) -> Iterator[HybridQA]:
    """An open store with three documents, and a fourth in the collection 'vault'."""
    given: dict[str, Any] = {"model": str(model.path), "engine": "reference", "dtype": "float32", **settings}
    with HybridQA.open(folder, create=True, max_model_len=1024, max_answer_tokens=8, **given) as qa:
        for doc_id, text in TEXTS.items():
            qa.add_text(doc_id, text, title=f"The {doc_id}")
        qa.add_text("secret", SECRET, collection="vault")
        yield qa


@contextmanager
def serving(store: HybridQA) -> Iterator[str]:
    """The address of a server over a store; it has ended when the block ends."""
    server = uvicorn.Server(uvicorn.Config(create_app(store), log_level="warning", timeout_graceful_shutdown=10))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=30)
        assert not thread.is_alive()


def client_of(url: str, key: str = "none") -> OpenAI:
    """The real client."""
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder) -> Iterator[HybridQA]:
    with open_filled(tmp_path_factory.mktemp("served"), tiny_model) as qa:
        yield qa


@pytest.fixture(scope="module")
def url(store: HybridQA) -> Iterator[str]:
    with serving(store) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with client_of(url) as found:
        yield found


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder) -> Iterator[tuple[HybridQA, str]]:
    """A store with keys, and where it is served."""
    with open_filled(tmp_path_factory.mktemp("keyed"), tiny_model) as qa:
        qa.add_key("owner", "admin")
        with serving(qa) as address:
            yield qa, address
