"""One stock vLLM server as its gateway sees it: is it there, what does it serve, how many requests does it run for us.

Speaks HTTP by way of OpenAI's client; knows nothing about stores, and nothing of other servers. Invariant: the key goes
to the server and nowhere else: no message holds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import openai

from hybridqa.errors import ConfigError, EngineError, HybridQAError, ModelError
from hybridqa.models import ModelFolder, model_hash
from hybridqa.stack_server.names import ABOUT, read_about

log = logging.getLogger(__name__)
T = TypeVar("T")
CONNECT_S = 5.0
LOOK_S = 30.0  # for what a server says of itself; its first word may need the hash of a large model
HEALTH_S = 5.0
_OWN: tuple[type[Exception], ...] = (openai.APIConnectionError, OSError)
try:
    from httpx import HTTPError
except ImportError:
    UNREACHABLE = _OWN
else:
    UNREACHABLE = (*_OWN, HTTPError)  # older clients let its errors through
FAILED: tuple[type[Exception], ...] = (openai.OpenAIError, *UNREACHABLE)


@dataclass(frozen=True, slots=True)
class ServerCard:
    """What a server says that it serves."""

    model: str  # the name to ask it for the base model by
    root: str  # what vLLM was given as its model
    max_model_len: int | None
    base_hash: str | None  # of the base model, where the plug-in is there to say it
    max_lora_rank: int | None
    stacks: bool  # whether it answers for stacks


class RemoteServer:
    """A server's address, client and state; lives on one event loop."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.card: ServerCard | None = None  # None until it was found fit, and while it is down
        self.problem = "it has not been asked yet"  # why there is no card
        self.running = 0  # requests of ours
        self.stacks: set[str] = set()  # names that it has answered for
        timeout = openai.Timeout(
            None, connect=CONNECT_S
        )  # a prompt may wait long; who is gone is found by `is_healthy`
        self._client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key or "none", max_retries=0, timeout=timeout)
        self._steps: set[asyncio.Timeout] = set()  # waits for the server, to be cut short when it is lost

    async def look(self) -> ServerCard:
        """Asks the server what it serves. Raises `EngineError` when it cannot be reached or refuses the key."""
        try:
            listed = await self._client.with_options(timeout=LOOK_S).models.list()
            about = await self._about()
        except openai.APIStatusError as error:
            raise EngineError(self.refusal(error)) from None  # a chained one could show the request's headers
        except UNREACHABLE as error:
            raise EngineError(
                f"no vLLM server answers at {self.url!r}: {type(error).__name__}. Start it, or mend engine_urls."
            ) from None
        base = next((card for card in listed.data if not (card.model_extra or {}).get("parent")), None)
        extra = (base.model_extra if base is not None else None) or {}
        if base is None or "root" not in extra:
            raise EngineError(f"what answers at {self.url!r} is no vLLM server; mend engine_urls.")
        base_hash, rank = about or (None, None)
        return ServerCard(base.id, str(extra["root"]), extra.get("max_model_len"), base_hash, rank, about is not None)

    async def _about(self) -> tuple[str, int | None] | None:
        try:
            await self._client.with_options(timeout=LOOK_S).completions.create(model=ABOUT, prompt=[0], max_tokens=1)
        except openai.BadRequestError as error:
            return read_about(said(error))
        except (openai.NotFoundError, openai.InternalServerError):  # no plug-in, or one without a store
            pass
        return None

    async def is_healthy(self) -> bool:
        """Whether the server and its engine are alive."""
        try:
            await self._client.with_options(timeout=HEALTH_S).get(f"{self.url}/health", cast_to=object)
        except FAILED:
            return False
        return True

    async def complete(self, **fields: Any) -> Any:
        """One request to /v1/completions: whole, or its stream. Raises as `wait` does."""
        return await self.wait(self._client.completions.create(**fields))

    async def unload(self, name: str) -> None:
        """Has the server forget an adapter; requests that run with it go on. Never raises for a server that is gone."""
        self.stacks.discard(name)
        try:
            await self._client.with_options(timeout=LOOK_S).post(
                "/unload_lora_adapter", body={"lora_name": name}, cast_to=object
            )
        except openai.NotFoundError:  # it never had it, or has forgotten it
            pass
        except FAILED as error:
            log.info("%s could not be told to forget %s: %s", self.url, name, type(error).__name__)

    async def wait(self, work: Awaitable[T]) -> T:
        """What `work` gives; `TimeoutError` when the server is lost meanwhile."""
        async with asyncio.timeout(None) as step:
            self._steps.add(step)
            try:
                return await work
            finally:
                self._steps.discard(step)

    def mark_down(self, problem: str) -> None:
        """No request goes there first until it has been found fit again; those that run there go on."""
        self.card, self.problem = None, problem

    def lose(self, problem: str) -> None:
        """Marks the server as down and cuts short whatever waits for it."""
        self.mark_down(problem)
        self.stacks.clear()
        now = asyncio.get_running_loop().time()
        for step in self._steps:
            if step.when() is None:
                step.reschedule(now)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def refusal(self, error: openai.APIStatusError) -> str:
        """What the server has answered, in our words."""
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return f"the vLLM server at {self.url!r} refuses the key; set engine_key to the one of its --api-key."
        return f"the vLLM server at {self.url!r} answered {error.status_code}: {said(error)}"


async def fit(server: RemoteServer, model: ModelFolder, length: int, rank: int) -> ServerCard:
    """The server's card when it serves this base model, contexts of `length` tokens and adapters of `rank`.

    Raises `EngineError` when it cannot be reached, `ModelError` for another base model, `ConfigError` for limits.
    """
    card = await server.look()
    await check_model(server.url, card, model)
    if card.max_model_len is not None and card.max_model_len < length:
        raise ConfigError(
            f"the vLLM server at {server.url!r} takes {card.max_model_len} tokens; expected at least {length}. Start "
            f"it with --max-model-len {length}, or set HYBRIDQA_MAX_MODEL_LEN={card.max_model_len}."
        )
    if card.max_lora_rank is not None and card.max_lora_rank < rank:
        raise ConfigError(
            f"the vLLM server at {server.url!r} takes adapters of rank {card.max_lora_rank}; expected at least {rank}. "
            f"Start it with --max-lora-rank {rank}, or set HYBRIDQA_MAX_LORA_RANK={card.max_lora_rank}."
        )
    if not card.stacks:
        log.warning(
            "the vLLM server at %r answers for no stacks, so questions get no modules there: start it with "
            "--enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and HYBRIDQA_STORE",
            server.url,
        )
    return card


async def check_model(url: str, card: ServerCard, model: ModelFolder) -> None:
    """Raises `ModelError` when the server is known to serve another base model."""
    found = card.base_hash
    if found is None and card.root not in (model.name, str(model.path)) and Path(card.root).is_dir():
        try:
            found = await asyncio.to_thread(_hash_of, card.root)
        except (HybridQAError, OSError) as error:
            log.info("the model of the server at %r cannot be compared: %s", url, error)
    if found is not None and found != model.hash:
        raise ModelError(
            f"the vLLM server at {url!r} serves the base model {card.root!r} ({found[:12]}); expected {model.name!r} "
            f"({model.hash[:12]}). Start it with --model {model.path}, or set `model` to what it serves."
        )


@lru_cache(maxsize=8)
def _hash_of(folder: str) -> str:
    return model_hash(Path(folder))


def said(error: openai.APIStatusError) -> str:
    """The server's own words."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error.message)
