"""A real OpenAI client against a real HTTP server with a real engine behind it: answers, load and every refusal."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated, Any

import pytest

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.config import Settings
from hybridqa.engine.protocol import Sampling
from hybridqa.engine.reference import ReferenceEngine
from hybridqa.errors import ConfigError, EngineError
from hybridqa.models import ModelFolder, load_tokenizer
from hybridqa.training.endpoint import PARALLEL, EndpointGenerator
from hybridqa.training.generator import Prompt
from hybridqa.types import Message

fastapi = pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("openai")

KEY = "sk-secret-of-the-test"
PROMPT = Prompt("The kettle", (Message("system", "Be brief."), Message("user", "Who designed the kettle?")))


class Endpoint:
    """A small OpenAI-compatible server over the reference engine."""

    def __init__(self, engine: ReferenceEngine, prompts: PromptBuilder) -> None:
        self.engine, self.prompts = engine, prompts
        self.asked: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = self.failures = 0
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        config = uvicorn.Config(self.app(), port=self.port, log_level="critical", ws="none", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def app(self) -> Any:
        app = fastapi.FastAPI()

        @app.post("/v1/chat/completions")
        async def chat(request: dict[str, Any], authorization: Annotated[str, fastapi.Header()]) -> dict[str, Any]:
            if authorization != f"Bearer {KEY}":
                raise fastapi.HTTPException(401, f"wrong key: {authorization}")
            if request["model"] != "tiny":
                raise fastapi.HTTPException(404, f"no model {request['model']!r}; {KEY}")
            if self.failures:
                self.failures -= 1
                raise fastapi.HTTPException(503, "busy")
            if "refuse me" in request["messages"][-1]["content"]:
                raise fastapi.HTTPException(400, "filtered")
            self.asked.append(request)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            ids = self.prompts.encode([Message(**turn) for turn in request["messages"]])
            sampling = Sampling(max_tokens=request["max_tokens"], temperature=request["temperature"], seed=0)
            done = await self.engine.generate(ids, sampling)
            self.at_once -= 1
            usage = {"prompt_tokens": done.usage.prompt_tokens, "completion_tokens": done.usage.completion_tokens}
            message = {"role": "assistant", "content": done.text}
            choice = {"index": 0, "message": message, "finish_reason": done.finish_reason}
            total = {**usage, "total_tokens": sum(usage.values())}
            said = {"id": "x", "object": "chat.completion", "created": 0, "model": "tiny"}
            return {**said, "choices": [choice], "usage": total}

        return app

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def endpoint(tiny_model: ModelFolder) -> Iterator[Endpoint]:
    engine = ReferenceEngine(tiny_model, dtype="float32", max_model_len=512)
    asyncio.run(engine.start())
    made = Endpoint(engine, PromptBuilder(load_tokenizer(tiny_model.path), max_model_len=512, context_tokens=300))
    yield made
    made.close()
    asyncio.run(engine.close())


def test_it_writes_what_the_model_behind_it_says(endpoint: Endpoint) -> None:
    settings = Settings(generator_url=endpoint.url, generator_model="tiny", generator_key=KEY)
    generator = EndpointGenerator.from_settings(settings)
    first, again = generator.write([PROMPT, PROMPT], max_tokens=6)
    ids = endpoint.prompts.encode(PROMPT.messages)
    expected = asyncio.run(endpoint.engine.generate(ids, Sampling(max_tokens=6)))
    assert first == again
    assert (first.text, first.finish_reason, first.usage) == (expected.text, expected.finish_reason, expected.usage)
    (plain,) = generator.write([Prompt("Hello")], max_tokens=2, temperature=0.5)
    assert plain.usage.completion_tokens <= 2
    assert endpoint.asked[-1]["messages"] == [{"role": "user", "content": "Hello"}]
    assert endpoint.asked[-1]["temperature"] == 0.5
    assert generator.identity == f"tiny at {endpoint.url}" and generator.strong


def test_many_prompts_keep_their_order_and_few_are_under_way(endpoint: Endpoint) -> None:
    generator = EndpointGenerator(endpoint.url, "tiny", KEY)
    prompts = [Prompt("word " * (number + 1)) for number in range(3 * PARALLEL)]
    written = generator.write(prompts, max_tokens=1)
    lengths = [len(endpoint.prompts.encode([Message("user", prompt.text)])) for prompt in prompts]
    assert [done.usage.prompt_tokens for done in written] == lengths
    assert 1 < endpoint.most_at_once <= PARALLEL


def test_a_busy_server_is_asked_again(endpoint: Endpoint) -> None:
    endpoint.failures = 1
    (done,) = EndpointGenerator(endpoint.url, "tiny", KEY).write([PROMPT], max_tokens=1)
    assert endpoint.failures == 0 and done.finish_reason == "length"


def test_refusals_say_what_to_set_and_never_the_key(endpoint: Endpoint) -> None:
    with pytest.raises(ConfigError, match="generator_key") as refused:
        EndpointGenerator(endpoint.url, "tiny", "sk-wrong").write([PROMPT], max_tokens=1)
    assert "sk-wrong" not in str(refused.value) and refused.value.__suppress_context__
    with pytest.raises(ConfigError, match=r"knows no model 'huge'.*generator_model") as unknown:
        EndpointGenerator(endpoint.url, "huge", KEY).write([PROMPT], max_tokens=1)
    assert KEY not in str(unknown.value)


def test_an_endpoint_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridqa.training.endpoint.RETRIES", 0)
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(EngineError, match=r"cannot be reached.*generator_url"):
            EndpointGenerator(url, "tiny", KEY).write([PROMPT], max_tokens=1)
        taken.listen()  # and now somebody who never answers
        with pytest.raises(EngineError, match="did not answer in time"):
            EndpointGenerator(url, "tiny", KEY, timeout_s=0.2).write([PROMPT], max_tokens=1)


def test_a_prompt_that_is_refused_costs_nothing_else(endpoint: Endpoint) -> None:
    generator = EndpointGenerator(endpoint.url, "tiny", KEY)
    refused = Prompt("refuse me")
    with pytest.raises(EngineError, match="Error code: 400"):  # of everything so far: the request may be at fault
        generator.write([refused, refused], max_tokens=1)
    first, second, third = generator.write([PROMPT, refused, PROMPT], max_tokens=2)
    assert (second.text, second.finish_reason) == ("", "abort") and first == third and first.finish_reason != "abort"
    assert [done.finish_reason for done in generator.write([refused], max_tokens=1)] == ["abort"]


def test_one_that_nobody_closes_closes_its_connections_when_it_goes(endpoint: Endpoint) -> None:
    generator = EndpointGenerator(endpoint.url, "tiny", KEY)
    generator.write([PROMPT], max_tokens=1)
    client = generator._client
    assert not client.is_closed()
    del generator
    gc.collect()
    assert client.is_closed()


def test_the_environments_own_key_goes_nowhere(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ConfigError, match="refuses the key"):
        EndpointGenerator(endpoint.url, "tiny").write([PROMPT], max_tokens=1)


def test_the_key_is_not_shown_and_url_and_model_go_together() -> None:
    settings = Settings(generator_url="http://x/v1", generator_model="m", generator_key=KEY)
    assert KEY not in repr(settings) and KEY not in settings.model_dump_json()
    with pytest.raises(ConfigError, match="'generator_model' is not set"):
        Settings.load(generator_url="http://x/v1")
    with pytest.raises(ConfigError, match="'generator_url' is not set"):
        Settings.load(generator_model="m")
