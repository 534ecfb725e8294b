"""The engine that answers: vLLM in this process, one composed adapter per request, many requests in one batch.

Knows nothing about documents, prompts or modules; `VllmThread` owns vLLM, this speaks asyncio. Invariant: a request
that is cancelled, or whose iterator is closed, is stopped in vLLM and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from hybridqa.engine.checks import check_prompt, check_rank, check_sampling, check_target
from hybridqa.engine.protocol import Adapter, Completion, Delta, Sampling, completion_of
from hybridqa.engine.vllm_args import VllmSettings, context_length, vocabulary_size
from hybridqa.engine.vllm_thread import Request, VllmThread
from hybridqa.errors import EngineClosedError, EngineError
from hybridqa.models import ModelFolder
from hybridqa.types import Usage


class VllmEngine:
    """Serves a base model and any number of adapters; loads nothing before `start`. May be used from several loops."""

    def __init__(
        self,
        model: ModelFolder,
        *,
        dtype: str = "auto",
        max_model_len: int = 4096,
        max_lora_rank: int = 64,
        max_stacks: int = 4,
        kv_cache_mb: int | None = None,
        max_requests: int = 32,
        seed: int = 0,
    ) -> None:
        self._settings = VllmSettings(
            dtype=dtype,
            max_model_len=context_length(model.path, max_model_len),
            max_lora_rank=max_lora_rank,
            max_stacks=max_stacks,
            kv_cache_mb=kv_cache_mb,
            max_requests=max_requests,
            seed=seed,
        )
        self._vocab_size = vocabulary_size(model.path)
        self._thread = VllmThread(model, self._settings)
        self._numbers = itertools.count(1)
        self._state = "new"

    @property
    def max_model_len(self) -> int:
        """Prompt plus completion, in tokens."""
        return self._settings.max_model_len

    @property
    def max_lora_rank(self) -> int:
        """The largest rank of one adapter."""
        return self._settings.max_lora_rank

    async def start(self) -> None:
        """Loads the model; a second call waits for the first. Raises `ModelError` or `EngineError`."""
        if self._state == "closed":
            raise EngineClosedError("the engine has been closed; make a new one.")
        if self._state == "new":
            self._state = "started"
            self._ready = self._thread.start()
        await asyncio.shield(asyncio.wrap_future(self._ready))

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
        check_prompt(prompt_ids, self.max_model_len, self._vocab_size)
        check_sampling(sampling)
        room = self.max_model_len - len(prompt_ids)
        tokens, logprob = 0, 0.0
        outputs = self._outputs(prompt_ids, lambda: _params(sampling, room), adapter, sampling.scope)
        try:
            async for item in outputs:
                output = item.outputs[0]
                tokens += len(output.token_ids)
                before, logprob = logprob, output.cumulative_logprob or 0.0
                usage = Usage(prompt_tokens=len(prompt_ids), completion_tokens=tokens) if item.finished else None
                reason = (output.finish_reason or "abort") if item.finished else None
                yield Delta(output.text, reason, usage, logprob - before)
        finally:
            await outputs.aclose()

    async def score(
        self, prompt_ids: Sequence[int], target_ids: Sequence[int], adapter: Adapter | None = None, *, scope: str = ""
    ) -> float:
        """The log-probability of `target_ids` behind the prompt, in nats: the sum over its tokens.

        Costs little more than the target's tokens where vLLM still has the prompt in its prefix cache. Raises as
        `generate` does.
        """
        check_target(prompt_ids, target_ids, self.max_model_len, self._vocab_size)
        ids, count = [*prompt_ids, *target_ids], len(target_ids)
        for cached in (True, False):
            outputs = self._outputs(ids, partial(_scoring_params, cached), adapter, scope)
            try:
                item = await anext(outputs)
            finally:
                await outputs.aclose()
            # What comes from the cache has no scores. The token before the target must have been computed for this
            # request; where an earlier one left the target itself in the cache, all is computed again.
            found = item.prompt_logprobs or []
            known = len(prompt_ids) if item.num_cached_tokens is None else item.num_cached_tokens
            if len(found) > count and (not cached or known < len(prompt_ids)):
                return math.fsum(at[token].logprob for at, token in zip(found[-count:], target_ids, strict=True))
        raise EngineError(f"vLLM gave no scores for the last {count} of {len(ids)} tokens. Ask again.")

    async def _outputs(
        self, prompt_ids: Sequence[int], params: Callable[[], Any], adapter: Adapter | None, scope: str
    ) -> AsyncGenerator[Any, None]:
        """vLLM's outputs for one request, to the finished one; closing the iterator stops the request in vLLM."""
        if adapter is not None:
            check_rank(adapter, self.max_lora_rank)
        await self.start()
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Any] = asyncio.Queue()

        def emit(item: Any) -> None:
            with suppress(RuntimeError):  # the loop was closed, so nobody waits for it
                loop.call_soon_threadsafe(inbox.put_nowait, item)

        request_id = f"request-{next(self._numbers)}"
        self._thread.submit(Request(request_id, list(prompt_ids), params, adapter, emit, scope))
        finished = False
        try:
            while not finished:
                item = await inbox.get()
                finished = isinstance(item, Exception) or item.finished
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            if not finished:
                self._thread.abort(request_id)

    async def evict(self, name: str) -> None:
        """Forgets an adapter: its folder is not read again and may be deleted. Requests that use it go on."""
        if self._state == "started":
            await asyncio.wrap_future(self._thread.evict(name))

    async def close(self) -> None:
        """Frees the model; requests in flight and later calls raise `EngineClosedError`."""
        if self._state == "started":
            self._state = "closed"
            await asyncio.to_thread(self._thread.close)
        self._state = "closed"


def _params(sampling: Sampling, room: int) -> Any:
    """vLLM's parameters; at most `room` tokens, where the context ends."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=min(sampling.max_tokens, room),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop=list(sampling.stop),
        seed=sampling.seed,
        logprobs=0,  # the sampled token's alone
        output_kind=RequestOutputKind.DELTA,
    )


def _scoring_params(cached: bool) -> Any:
    """vLLM's parameters to have the prompt's own tokens scored; `cached`: but for those in the prefix cache."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,  # the least that vLLM does
        temperature=0.0,
        prompt_logprobs=0,  # the prompt's tokens' alone
        detokenize=False,  # of tokens from the cache vLLM hands out ids that mean nothing
        skip_reading_prefix_cache=not cached,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
