"""The engine that answers: vLLM, one composed adapter per request, many requests in one batch.

Knows nothing about documents, prompts or modules; `VllmThread` owns vLLM, in this process or behind `VllmProcess`, and
this speaks asyncio. Invariant: a request that is cancelled, or whose iterator is closed, is stopped in vLLM and leaves
nothing behind.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from hybridqa.engine.checks import check_prompt, check_rank, check_sampling, check_target
from hybridqa.engine.protocol import Adapter, Completion, Delta, Sampling, completion_of
from hybridqa.engine.vllm_args import VllmSettings, context_length, vocabulary_size
from hybridqa.engine.vllm_process import VllmProcess
from hybridqa.engine.vllm_thread import Piece, Request, VllmThread
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
        apart: bool = False,
    ) -> None:
        """`apart`: in a process of its own, which is started again when it was lost."""
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
        self._new_runner = partial(VllmProcess if apart else VllmThread, model, self._settings)
        self._runner: VllmThread | VllmProcess = self._new_runner()
        self._entering = threading.Lock()  # of the state: several loops may start it
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
        with self._entering:
            if self._state == "closed":
                raise EngineClosedError("the engine has been closed; make a new one.")
            if self._state == "started" and self._runner.lost:
                self._runner.close()
                self._runner, self._state = self._new_runner(), "new"
            if self._state == "new":
                self._state = "started"
                self._ready = self._runner.start()
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
        pieces = self._pieces(prompt_ids, _params(sampling, room), adapter, sampling.scope)
        try:
            async for piece in pieces:
                tokens += piece.tokens
                before, logprob = logprob, piece.logprob
                usage = Usage(prompt_tokens=len(prompt_ids), completion_tokens=tokens) if piece.finished else None
                reason = (piece.finish_reason or "abort") if piece.finished else None
                yield Delta(piece.text, reason, usage, logprob - before)
        finally:
            await pieces.aclose()

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
            pieces = self._pieces(ids, _scoring_params(cached), adapter, scope)
            try:
                piece = await anext(pieces)
            finally:
                await pieces.aclose()
            # What comes from the cache has no scores. The token before the target must have been computed for this
            # request; where an earlier one left the target itself in the cache, all is computed again.
            found = piece.prompt_logprobs
            told = [one for one in found[-count:] if one is not None]
            known = len(prompt_ids) if piece.cached_tokens is None else piece.cached_tokens
            if len(found) > count and len(told) == count and (not cached or known < len(prompt_ids)):
                return math.fsum(told)
        raise EngineError(f"vLLM gave no scores for the last {count} of {len(ids)} tokens. Ask again.")

    async def _pieces(
        self, prompt_ids: Sequence[int], params: Mapping[str, Any], adapter: Adapter | None, scope: str
    ) -> AsyncGenerator[Piece, None]:
        """What vLLM says of one request, to its end; closing the iterator stops the request in vLLM."""
        if adapter is not None:
            check_rank(adapter, self.max_lora_rank)
        await self.start()
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        def emit(piece: Piece | Exception) -> None:
            with suppress(RuntimeError):  # the loop was closed, so nobody waits for it
                loop.call_soon_threadsafe(inbox.put_nowait, piece)

        request_id = f"request-{next(self._numbers)}"
        runner = self._runner
        runner.submit(Request(request_id, list(prompt_ids), params, adapter, emit, scope))
        finished = False
        try:
            while not finished:
                piece = await inbox.get()
                finished = isinstance(piece, Exception) or piece.finished
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            if not finished:
                runner.abort(request_id)

    async def evict(self, name: str) -> None:
        """Forgets an adapter: its folder is not read again and may be deleted. Requests that use it go on."""
        if self._state == "started":
            try:
                await asyncio.wrap_future(self._runner.evict(name))
            except EngineError:
                if not self._runner.lost:  # which has forgotten all of them
                    raise

    async def close(self) -> None:
        """Frees the model; requests in flight and later calls raise `EngineClosedError`."""
        with self._entering:
            before, self._state = self._state, "closed"
        if before == "started":
            await asyncio.to_thread(self._runner.close)


def _params(sampling: Sampling, room: int) -> dict[str, Any]:
    """vLLM's parameters; at most `room` tokens, where the context ends."""
    return {
        "max_tokens": min(sampling.max_tokens, room),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop": list(sampling.stop),
        "seed": sampling.seed,
        "logprobs": 0,  # the sampled token's alone
        "output_kind": "DELTA",
    }


def _scoring_params(cached: bool) -> dict[str, Any]:
    """vLLM's parameters to have the prompt's own tokens scored; `cached`: but for those in the prefix cache."""
    return {
        "max_tokens": 1,  # the least that vLLM does
        "temperature": 0.0,
        "prompt_logprobs": 0,  # the prompt's tokens' alone
        "detokenize": False,  # of tokens from the cache vLLM hands out ids that mean nothing
        "skip_reading_prefix_cache": not cached,
        "output_kind": "FINAL_ONLY",
    }
