"""The engine that asks stock vLLM servers: one gateway, many servers, and it goes on when some of them die.

Knows nothing about documents or modules; a composed stack is asked for by its name, and the servers find it in the
store that they share. Invariants: a request that has given its first piece is never begun again elsewhere; one that has
not is tried on every server before it fails; closing its iterator closes the HTTP stream, which stops it in vLLM.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import openai

from hybridqa.engine.checks import check_prompt, check_rank, check_sampling, check_target
from hybridqa.engine.protocol import Adapter, Completion, Delta, Sampling, completion_of
from hybridqa.engine.remote_server import FAILED, UNREACHABLE, RemoteServer
from hybridqa.engine.remote_servers import RemoteServers
from hybridqa.engine.vllm_args import context_length, vocabulary_size
from hybridqa.errors import AdapterError, EngineClosedError, EngineError, HybridQAError, InputError
from hybridqa.models import ModelFolder
from hybridqa.stack_server.names import name_of
from hybridqa.types import Usage

T = TypeVar("T")
TRY_NEXT: tuple[type[Exception], ...] = (*FAILED, HybridQAError)
# What a server would otherwise take from the model's own generation_config.json: an engine here decodes as it is told.
PLAIN = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


class RemoteEngine:
    """Serves from the vLLM servers at `urls`; asks none before `start`. Lives on one event loop."""

    def __init__(
        self,
        model: ModelFolder,
        urls: Sequence[str],
        key: str = "",
        *,
        max_model_len: int = 4096,
        max_lora_rank: int = 64,
    ) -> None:
        """Each server must take at least `max_model_len` tokens (or the model's own limit) and `max_lora_rank`."""
        self._max_model_len = context_length(model.path, max_model_len)
        self._max_lora_rank = max_lora_rank
        self._vocab_size = vocabulary_size(model.path)
        self._servers = RemoteServers(urls, key, model, self._max_model_len, max_lora_rank)
        self._closed = False

    @property
    def max_model_len(self) -> int:
        """Prompt plus completion, in tokens."""
        return self._max_model_len

    @property
    def max_lora_rank(self) -> int:
        """The largest rank of one adapter."""
        return self._max_lora_rank

    async def start(self) -> None:
        """Looks at every server; a second call does nothing.

        Raises `EngineError` when none can be reached, `ModelError` for one with another base model, `ConfigError` for
        one that takes less than was asked for. Those that cannot be reached now are tried again later.
        """
        self._check_open()
        await self._servers.open()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: Adapter | None = None
    ) -> Completion:
        """One whole completion; cancelling the task stops the generation in vLLM.

        Raises `QuestionError`, an `AdapterError`, or `EngineError`, for this request alone.
        """
        return await completion_of(self.stream(prompt_ids, sampling, adapter))

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: Adapter | None = None
    ) -> AsyncGenerator[Delta, None]:
        """The completion in pieces; closing the iterator stops the generation in vLLM. Raises as `generate` does."""
        check_prompt(prompt_ids, self._max_model_len, self._vocab_size)
        check_sampling(sampling)
        fields = {
            "prompt": list(prompt_ids),
            "max_tokens": min(sampling.max_tokens, self._max_model_len - len(prompt_ids)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": list(sampling.stop) or None,
            "seed": sampling.seed,
            "logprobs": 0,  # the sampled token's alone
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": _extra(sampling.scope),
        }

        async def begin(server: RemoteServer, model: str) -> tuple[Any, Any]:
            chunks = await server.complete(model=model, **fields)
            try:
                return chunks, await server.wait(anext(chunks, None))
            except BaseException:
                await chunks.close()
                raise

        async with self._served(adapter, begin) as (server, (chunks, chunk)):
            text, logprob, reason, usage = "", 0.0, None, None
            try:
                while chunk is not None:
                    usage = chunk.usage or usage
                    for choice in chunk.choices:
                        text, reason = text + choice.text, choice.finish_reason or reason
                        logprob += math.fsum(choice.logprobs.token_logprobs or ()) if choice.logprobs else 0.0
                    if reason is None:
                        yield Delta(text, logprob=logprob)
                        text, logprob = "", 0.0
                    chunk = await server.wait(anext(chunks, None))
            finally:
                await chunks.close()
            if reason is None or usage is None:
                raise EngineError(f"the vLLM server at {server.url!r} ended a request half way. Ask again.")
            yield Delta(text, reason, Usage(usage.prompt_tokens, usage.completion_tokens), logprob)

    async def score(
        self, prompt_ids: Sequence[int], target_ids: Sequence[int], adapter: Adapter | None = None, *, scope: str = ""
    ) -> float:
        """The log-probability of `target_ids` behind the prompt, in nats: the sum over its tokens.

        vLLM reads the whole prompt anew for it. Raises as `generate` does.
        """
        check_target(prompt_ids, target_ids, self._max_model_len, self._vocab_size)
        fields = {"prompt": [*prompt_ids, *target_ids], "max_tokens": 1, "temperature": 0.0}
        extra = {**_extra(scope), "prompt_logprobs": 0}  # the prompt's tokens' alone

        async def ask(server: RemoteServer, model: str) -> Any:
            return await server.complete(model=model, extra_body=extra, **fields)

        async with self._served(adapter, ask) as (server, done):
            found = (done.choices[0].model_extra or {}).get("prompt_logprobs") or []
            if len(found) != len(prompt_ids) + len(target_ids):
                raise EngineError(f"the vLLM server at {server.url!r} gave no scores. Ask again.")
            told = zip(found[-len(target_ids) :], target_ids, strict=True)
            return math.fsum(float(at[str(token)]["logprob"]) for at, token in told)

    async def evict(self, name: str) -> None:
        """Has every server that has answered with an adapter forget it; requests that use it go on."""
        asked = name_of(name)
        await asyncio.gather(*(server.unload(asked) for server in self._servers.all if asked in server.stacks))

    async def close(self) -> None:
        """Lets go of the servers; requests in flight and later calls raise `EngineClosedError`."""
        self._closed = True
        await self._servers.close()

    # Inside

    @asynccontextmanager
    async def _served(
        self, adapter: Adapter | None, begin: Callable[[RemoteServer, str], Awaitable[T]]
    ) -> AsyncIterator[tuple[RemoteServer, T]]:
        """What `begin(server, model)` gives on the first server where it succeeds; errors in the block are final."""
        stack = None
        if adapter is not None:
            check_rank(adapter, self._max_lora_rank)
            try:
                stack = name_of(adapter.name)
            except InputError as error:
                raise AdapterError(f"a remote engine answers with stacks of its store alone: {error}") from None
        await self.start()
        problems: list[HybridQAError] = []
        for server in self._servers.order(stack):
            server.running += 1
            try:
                try:
                    if server.card is None:  # none is up that has not been tried
                        await self._servers.enlist(server)
                    result = await self._begun(server, stack, begin)
                except TRY_NEXT as error:
                    problems.append(self._explained(server, error, stack))
                    continue
                if stack is not None:
                    server.stacks.add(stack)
                try:
                    yield server, result
                except FAILED as error:
                    problem = self._explained(server, error, stack)
                    raise EngineError(f"an answer broke off half way: {problem} Ask again.") from None
                return
            finally:
                server.running -= 1
        if problems and all(isinstance(problem, AdapterError) for problem in problems):
            raise problems[0]
        raise EngineError(f"no vLLM server could answer: {' '.join(map(str, problems))}")

    async def _begun(
        self, server: RemoteServer, stack: str | None, begin: Callable[[RemoteServer, str], Awaitable[T]]
    ) -> T:
        """What `begin` gives; on a connection that breaks, tried once more: a kept one may just have been closed."""
        assert server.card is not None
        model = stack or server.card.model
        try:
            return await begin(server, model)
        except UNREACHABLE as error:
            if isinstance(error, TimeoutError | openai.APITimeoutError):
                raise
            return await begin(server, model)

    def _explained(self, server: RemoteServer, error: Exception, stack: str | None) -> HybridQAError:
        """The error in our words; a server that cannot be reached is marked as down. Raises what no server mends."""
        self._check_open()
        if isinstance(error, HybridQAError):
            return error
        if not isinstance(error, openai.APIStatusError):
            why = f"no vLLM server answers at {server.url!r} any more ({type(error).__name__})."
            if isinstance(error, openai.APIError) and not isinstance(error, openai.APIConnectionError):
                return EngineError(f"the vLLM server at {server.url!r} failed: {error.message}")  # told within a stream
            server.mark_down(why)
            return EngineError(why)
        text = server.refusal(error)
        if isinstance(error, openai.NotFoundError):
            if stack is None:  # it has been started anew with another model
                server.mark_down(text)
                return EngineError(text)
            return AdapterError(
                f"the vLLM server at {server.url!r} does not know {stack!r}; expected HYBRIDQA_STORE there to be this "
                "store, and stack_collections to hold the collection."
            )
        if isinstance(error, openai.BadRequestError):
            raise (EngineError(text) if stack is None else AdapterError(text)) from None
        return EngineError(text)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the engine has been closed; make a new one.")


def _extra(scope: str) -> dict[str, Any]:
    """What vLLM's servers take beyond OpenAI's parameters."""
    return {**PLAIN, "cache_salt": scope} if scope else PLAIN
