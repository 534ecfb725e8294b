"""The one thread that owns vLLM: it builds it, feeds it requests and adapters, steps it, and hands pieces out.

Knows nothing about asyncio or adapters on disk beyond their folder. Invariants: an adapter that a request needs stays
in vLLM's memory until the request has ended, so vLLM never reads an adapter's folder while it steps (a read that fails
there would kill it); an adapter gets a new integer id, hence a new name inside vLLM, each time it is loaded after
having been forgotten, so nothing cached for an older one can be taken for it.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hybridqa.engine.checks import check_folder
from hybridqa.engine.protocol import Adapter
from hybridqa.engine.vllm_args import VllmSettings, build, linear_targets
from hybridqa.errors import AdapterError, EngineClosedError, EngineError, HybridQAError
from hybridqa.models import ModelFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt on its way through the thread."""

    request_id: str
    prompt_ids: list[int]
    params: Callable[[], Any]  # makes vLLM's SamplingParams, which can be imported in the thread only
    adapter: Adapter | None
    emit: Callable[[Any], None]  # gets vLLM's RequestOutputs, at last one that is finished or an exception


@dataclass(slots=True)
class _Loaded:
    """An adapter in vLLM's memory."""

    number: int  # vLLM's id of it; never used for another
    adapter: Adapter
    users: set[str] = field(default_factory=set)  # ids of the requests that need it
    forgotten: bool = False  # remove it when its last user has ended


class VllmThread:
    """Runs vLLM on a thread of its own; every method may be called from any other thread."""

    def __init__(self, model: ModelFolder, settings: VllmSettings) -> None:
        self._model = model
        self._settings = settings
        self._linear_only = linear_targets(model.path) is not None
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._running: dict[str, Request] = {}  # in vLLM
        self._waiting: deque[Request] = deque()  # for room among the adapters
        self._loaded: dict[str, _Loaded] = {}  # by the adapter's name, least recently used first
        self._numbers = 0
        self._broken: str | None = None
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

    def evict(self, name: str) -> Future[Any]:
        """Forgets an adapter, at once or when its last request has ended; its folder is not read again."""
        return self.call(lambda llm: self._forget(name))

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
        self._ready.set_result(None)
        problem: HybridQAError = EngineClosedError("the engine was closed while it answered; make a new one.")
        try:
            while self._take_commands():
                self._admit()
                if self._running:
                    self._step()
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
                if request.adapter is not None and not self._make_room(request.adapter):
                    continue
                self._waiting.remove(request)
                self._enter(request)
            except Exception as error:  # noqa: BLE001  # this request's own failure
                if request in self._waiting:
                    self._waiting.remove(request)
                self._release(request.request_id)
                request.emit(_as_ours(error))

    def _enter(self, request: Request) -> None:
        if self._broken is not None:
            raise EngineError(f"vLLM cannot go on: {self._broken}. Close the engine and make a new one.")
        lora = None
        if request.adapter is not None:
            loaded = self._loaded.get(request.adapter.name) or self._load(request.adapter)
            loaded.users.add(request.request_id)
            lora = _lora_request(loaded)
        prompt = {"prompt_token_ids": request.prompt_ids}
        self._llm.add_request(request.request_id, prompt, request.params(), lora_request=lora)
        self._running[request.request_id] = request

    def _make_room(self, adapter: Adapter) -> bool:
        """Whether the adapter is loaded, or may be now; drops the least recently used idle one for it."""
        loaded = self._loaded.get(adapter.name)
        if loaded is not None:
            self._loaded[adapter.name] = self._loaded.pop(adapter.name)  # now the most recently used
            return not loaded.forgotten  # forgotten but in use: the old one must go first
        if len(self._loaded) >= self._settings.max_loaded:
            idle = next((name for name, entry in self._loaded.items() if not entry.users), None)
            if idle is None:
                return False
            self._remove(idle)
        return True

    def _load(self, adapter: Adapter) -> _Loaded:
        check_folder(adapter, linear_only=self._linear_only)
        self._numbers += 1
        loaded = _Loaded(self._numbers, adapter)
        try:
            self._llm.add_lora(_lora_request(loaded))
        except Exception as error:
            try:
                self._llm.remove_lora(loaded.number)  # it may have got half way
            except Exception:
                logger.exception("vLLM could not let go of adapter %r", adapter.name)
            raise AdapterError(
                f"the engine could not load adapter {adapter.name!r} from {str(adapter.path)!r}: {error}. "
                "Expected a PEFT LoRA folder for this base model; compose it again."
            ) from error
        self._loaded[adapter.name] = loaded
        return loaded

    def _remove(self, name: str) -> None:
        loaded = self._loaded.pop(name)
        self._llm.remove_lora(loaded.number)

    def _forget(self, name: str) -> None:
        loaded = self._loaded.get(name)
        if loaded is not None:
            loaded.forgotten = True
            if not loaded.users:
                self._remove(name)

    def _release(self, request_id: str) -> None:
        """The request needs its adapter no longer."""
        for name, loaded in list(self._loaded.items()):
            if request_id in loaded.users:
                loaded.users.discard(request_id)
                if loaded.forgotten and not loaded.users:
                    self._remove(name)

    def _drop(self, request_id: str) -> None:
        if self._running.pop(request_id, None) is not None:
            self._llm.abort_request([request_id])
            self._release(request_id)
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
                self._release(output.request_id)
            request.emit(output)

    def _give_up(self, error: Exception) -> None:
        """Fails all requests in vLLM and clears them out of it."""
        failed = list(self._running.values())
        self._running.clear()
        try:
            self._llm.abort_request([request.request_id for request in failed])
            for request in failed:
                self._release(request.request_id)
        except Exception as second:  # noqa: BLE001  # the scheduler's state is beyond repair
            self._broken = f"{type(second).__name__}: {second}"
        for request in failed:
            problem = EngineError(f"a step of vLLM failed: {type(error).__name__}: {error}. Ask again.")
            problem.__cause__ = error
            request.emit(problem)

    def _shut_down(self) -> None:
        import gc

        llm, self._llm = self._llm, None
        try:
            llm.engine_core.shutdown()
        except Exception:
            logger.exception("vLLM did not shut down cleanly")
        del llm
        gc.collect()


def _lora_request(loaded: _Loaded) -> Any:
    from vllm.lora.request import LoRARequest

    name = f"{loaded.adapter.name}#{loaded.number}"  # vLLM tells adapters, and their cached prefixes, apart by name
    return LoRARequest(lora_name=name, lora_int_id=loaded.number, lora_path=str(loaded.adapter.path))


def _as_ours(error: Exception) -> HybridQAError:
    if isinstance(error, HybridQAError):
        return error
    problem = EngineError(f"vLLM refused the request: {type(error).__name__}: {error}.")
    problem.__cause__ = error
    return problem
