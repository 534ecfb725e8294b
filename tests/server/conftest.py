"""A store that is served on loopback by the real server, with a tiny random model."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
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
QUESTION = "Who designed the Lumen kettle?"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelFolder) -> Iterator[HybridQA]:
    settings: dict[str, Any] = {"model": str(tiny_model.path), "engine": "reference", "dtype": "float32"}
    folder = tmp_path_factory.mktemp("served")
    with HybridQA.open(folder, create=True, max_model_len=1024, max_answer_tokens=8, **settings) as qa:
        for doc_id, text in TEXTS.items():
            qa.add_text(doc_id, text, title=f"The {doc_id}")
        qa.add_text("secret", "The vault opens with 4711.", collection="vault")
        yield qa


@pytest.fixture(scope="module")
def url(store: HybridQA) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(store), log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield address
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found
