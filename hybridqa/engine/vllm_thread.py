"""The one thread that owns vLLM: it builds it, feeds it requests and adapters, steps it, and hands pieces out.

Knows nothing about asyncio. Invariant: vLLM is touched by this thread alone, and a request that fails, or a step that
fails, is answered with an error while the thread goes on.
"""

from __future__ import annotations

import atexit
import gc
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hybridqa.engine.loaded_adapters import LoadedAdapters
from hybridqa.engine.protocol import Adapter
from hybridqa.engine.vllm_args import VllmSettings, build, linear_targets
from hybridqa.errors import EngineClosedError, EngineError, HybridQAError
from hybridqa.models import ModelFolder

logger = logging.getLogger(__name__)
_census = threading.Lock()
_alive: set[VllmThread] = set()  # that have vLLM loaded, in this process


@dataclass(frozen=True, slots=True)
class Piece:
    """What vLLM says of a request at one step."""

    text: str
    tokens: int  # new ones
    logprob: float  # of all tokens so far, in nats
    finish_reason: str | None
    finished: bool
    cached_tokens: int | None  # of the prompt; None: vLLM does not say
    prompt_logprobs: tuple[float | None, ...] = ()  # of the prompt's last tokens, where they were asked for


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt on its way through the thread."""

    request_id: str
    prompt_ids: list[int]
    params: Mapping[str, Any]  # of vLLM's SamplingParams; "output_kind" by its name
    adapter: Adapter | None
    emit: Callable[[Piece | Exception], None]  # at last one that is finished, or an exception
    scope: str = ""  # whose cached prompts it may profit by


class VllmThread:
    """Runs vLLM on a thread of its own; every method may be called from any other thread."""

    lost = False  # it ends with its process

    def __init__(
        self, model: ModelFolder, settings: VllmSettings, *, after_step: Callable[[], None] = lambda: None
    ) -> None:
        """`after_step` is called on the thread when pieces may have been emitted."""
        self._model = model
        self._settings = settings
        self._after_step = after_step
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._running: dict[str, Request] = {}  # in vLLM
        self._waiting: deque[Request] = deque()  # for room among the adapters
        self.adapters = LoadedAdapters(settings.max_loaded, linear_only=linear_targets(model.path) is not None)
        self._closed = False
        self._gate = threading.Lock()  # nothing enters the inbox once closed
        self._llm: Any = None
        self._thread = threading.Thread(target=self._run, name="hybridqa-vllm", daemon=True)
        self._ready: Future[None] = Future()

    def start(self) -> Future[None]:
        """Begins to load the model; the future is done when it is loaded."""
        atexit.register(self.close)  # a daemon thread inside native code at exit can crash the interpreter
        self._thread.start()
        return self._ready

    def submit(self, request: Request) -> None:
        """Queues a request; what becomes of it is told to its `emit`."""
        self._post(lambda: self._waiting.append(request))

    def abort(self, request_id: str) -> None:
        """Stops a request, wherever it is; nothing more is emitted for it."""
        with suppress(EngineClosedError):  # then it was stopped by the closing
            self._post(lambda: self._drop(request_id))

    def call(self, function: Callable[[Any], Any]) -> Future[Any]:
        """Runs `function(llm)` between two steps."""
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(self._llm))
            except Exception as error:  # noqa: BLE001  # handed to the caller
                future.set_exception(error)

        self._post(run)
        return future

    def unfinished(self) -> Future[int]:
        """How many requests there are, in vLLM or on their way to it."""
        return self.call(lambda llm: llm.get_num_unfinished_requests() + len(self._waiting))

    def evict(self, name: str) -> Future[Any]:
        """Forgets an adapter, at once or when its last request has ended; its folder is not read again."""
        return self.call(lambda llm: self.adapters.forget(llm, name))

    def join(self) -> None:
        """Returns when the thread has ended, whatever ended it."""
        self._thread.join()

    def close(self) -> None:
        """Stops everything and frees the model; returns when that is done."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()
        atexit.unregister(self.close)

    def _post(self, command: Callable[[], None]) -> None:
        with self._gate:
            if self._closed:
                raise EngineClosedError("the engine has been closed; make a new one.")
            self._inbox.put(command)

    def _run(self) -> None:
        try:
            self._llm = build(self._model, self._settings)
        except BaseException as error:  # noqa: BLE001  # handed to whoever waits for the start
            with self._gate:
                self._closed = True
            self._ready.set_exception(error)
            return
        with _census:
            _alive.add(self)
        self._ready.set_result(None)
        problem: HybridQAError = EngineClosedError("the engine was closed while it answered; make a new one.")
        try:
            while self._take_commands():
                self._admit()
                if self._running:
                    self._step()
                self._after_step()
        except Exception as error:
            logger.exception("the engine's thread failed")
            problem = EngineError(f"the engine failed: {type(error).__name__}: {error}. Make a new one.")
        with self._gate:
            self._closed = True
        while not self._inbox.empty():  # what came in since: requests are failed below, calls are answered
            if (command := self._inbox.get()) is not None:
                command()
        for request in [*self._running.values(), *self._waiting]:
            request.emit(problem)
        self._after_step()
        self._shut_down()

    def _take_commands(self) -> bool:
        """Runs what is in the inbox, waiting for it when there is nothing else to do; False: close."""
        wait = not self._running and not self._waiting
        while True:
            try:
                command = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False

    def _admit(self) -> None:
        """Hands waiting requests to vLLM; those whose adapter finds no room go on waiting, and let others pass."""
        for request in list(self._waiting):
            try:
                if request.adapter is not None and not self.adapters.make_room(self._llm, request.adapter):
                    continue
                self._waiting.remove(request)
                self._enter(request)
            except Exception as error:  # noqa: BLE001  # this request's own failure
                if request in self._waiting:
                    self._waiting.remove(request)
                self.adapters.release(self._llm, request.request_id)
                request.emit(_as_ours(error))

    def _enter(self, request: Request) -> None:
        lora = None
        if request.adapter is not None:
            lora = self.adapters.take(self._llm, request.adapter, request.request_id)
        prompt: dict[str, Any] = {"prompt_token_ids": request.prompt_ids}
        if request.scope:
            prompt["cache_salt"] = request.scope
        self._llm.add_request(request.request_id, prompt, _sampling_params(request.params), lora_request=lora)
        self._running[request.request_id] = request

    def _drop(self, request_id: str) -> None:
        if self._running.pop(request_id, None) is not None:
            self._llm.abort_request([request_id])
            self.adapters.release(self._llm, request_id)
        else:
            self._waiting = deque(request for request in self._waiting if request.request_id != request_id)

    def _step(self) -> None:
        try:
            outputs = self._llm.step()
        except Exception as error:
            logger.exception("a step of vLLM failed; the requests in it are given up")
            self._give_up(error)
            return
        for output in outputs:
            request = self._running.get(output.request_id)
            if request is None:
                continue
            if output.finished:
                del self._running[output.request_id]
                self.adapters.release(self._llm, output.request_id)
            request.emit(_piece(output, request))

    def _give_up(self, error: Exception) -> None:
        """Fails all requests in vLLM and clears them out of it; raises when that cannot be done."""
        failed = list(self._running.values())
        self._running.clear()
        for request in failed:
            problem = EngineError(f"a step of vLLM failed: {type(error).__name__}: {error}. Ask again.")
            problem.__cause__ = error
            request.emit(problem)
        self._llm.abort_request([request.request_id for request in failed])
        for request in failed:
            self.adapters.release(self._llm, request.request_id)

    def _shut_down(self) -> None:
        """Frees the model; what engines of one process share goes with the last of them."""
        llm, self._llm = self._llm, None
        with _census:
            _alive.discard(self)
            last = not _alive
        try:
            if last:
                llm.engine_core.shutdown()
            else:
                llm.engine_core._finalizer.detach()  # it would take torch.distributed from under the others
        except Exception:
            logger.exception("vLLM did not shut down cleanly")
        del llm
        gc.collect()


def _sampling_params(fields: Mapping[str, Any]) -> Any:
    """vLLM's own object, which can be imported where vLLM runs only."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(**{**fields, "output_kind": RequestOutputKind[fields["output_kind"]]})


def _piece(output: Any, request: Request) -> Piece:
    new = output.outputs[0]
    at = output.prompt_logprobs or ()
    ids = request.prompt_ids[len(request.prompt_ids) - len(at) :]
    told = [known.get(token) if known else None for known, token in zip(at, ids, strict=True)]
    return Piece(
        new.text,
        len(new.token_ids),
        new.cumulative_logprob or 0.0,
        new.finish_reason,
        output.finished,
        output.num_cached_tokens,
        tuple(None if one is None else one.logprob for one in told),
    )


def _as_ours(error: Exception) -> HybridQAError:
    if isinstance(error, HybridQAError):
        return error
    problem = EngineError(f"vLLM refused the request: {type(error).__name__}: {error}.")
    problem.__cause__ = error
    return problem
