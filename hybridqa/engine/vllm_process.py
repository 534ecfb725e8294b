"""vLLM in a process of its own, asked as `VllmThread` is: it and what serves and searches here share no interpreter.

Knows nothing about asyncio or about what is asked. Invariants: the process ends with this one, whatever ends this one;
when it ends by itself, every request in it fails with an error that says so.
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from hybridqa import errors
from hybridqa.engine.environment import engine_environment
from hybridqa.engine.vllm_args import VllmSettings
from hybridqa.engine.vllm_thread import Piece, Request
from hybridqa.errors import EngineClosedError, EngineError, HybridQAError
from hybridqa.models import ModelFolder
from hybridqa.processes import import_path

log = logging.getLogger(__name__)
WORKER = "hybridqa.engine.vllm_worker"
CLOSE_S = 30.0  # for a step that runs and for the model's memory


class VllmProcess:
    """Starts the process, hands it requests and their pieces back; every method may be called from any thread."""

    def __init__(self, model: ModelFolder, settings: VllmSettings) -> None:
        self._model = model
        self._settings = settings
        self._lock = threading.Lock()  # of what follows, and of the order of what is sent
        self._requests: dict[str, Request] = {}
        self._calls: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._ready: Future[None] = Future()
        self._ended: HybridQAError | None = None  # why nothing more can be asked
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._reader = threading.Thread(target=self._read, name="hybridqa-vllm-process", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether the process has ended, or could not be started, without having been closed."""
        return self._ended is not None and not isinstance(self._ended, EngineClosedError)

    @property
    def pid(self) -> int | None:
        """The process's number, once there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> Future[None]:
        """Begins to load the model; the future is done when it is loaded."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", WORKER, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=engine_environment() | import_path(),
                )
            except OSError as error:
                ours.close()
                self._ended = EngineError(f"the engine's process could not be started: {error.strerror}. Ask again.")
                self._ready.set_exception(self._ended)
                return self._ready
        self._socket = ours
        atexit.register(self.close)
        self._reader.start()
        model = {"path": str(self._model.path), "name": self._model.name, "hash": self._model.hash}
        with self._lock:
            self._send({"model": model, "settings": asdict(self._settings)})
        return self._ready

    def submit(self, request: Request) -> None:
        """Sends a request; what becomes of it is told to its `emit`. Raises `EngineError` when the process is gone."""
        adapter = request.adapter
        told = {
            "op": "request",
            "id": request.request_id,
            "prompt_ids": request.prompt_ids,
            "params": dict(request.params),
            "adapter": None if adapter is None else [adapter.name, str(adapter.path), adapter.rank],
            "scope": request.scope,
        }
        with self._lock:
            self._check()
            self._requests[request.request_id] = request
            self._send(told)

    def abort(self, request_id: str) -> None:
        """Stops a request, wherever it is; nothing more is emitted for it."""
        with self._lock:
            if self._requests.pop(request_id, None) is not None and self._ended is None:
                self._send({"op": "abort", "id": request_id})

    def unfinished(self) -> Future[int]:
        """How many requests there are, in vLLM or on their way to it."""
        return self._call({"op": "unfinished"})

    def evict(self, name: str) -> Future[Any]:
        """Forgets an adapter, at once or when its last request has ended; its folder is not read again."""
        return self._call({"op": "evict", "name": name})

    def close(self) -> None:
        """Stops everything; returns when the process has ended."""
        self._end(EngineClosedError("the engine was closed while it answered; make a new one."))
        atexit.unregister(self.close)
        if self._socket is None or self._process is None:
            return
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)  # which ends it
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            log.warning("the engine's process did not end within %.0f s; it is killed", CLOSE_S)
            self._process.kill()
            self._process.wait()
        if self._reader is not threading.current_thread():
            self._reader.join()
        self._socket.close()

    # Inside

    def _call(self, told: dict[str, Any]) -> Future[Any]:
        number, future = next(self._numbers), Future[Any]()
        with self._lock:
            self._check()
            self._calls[number] = future
            self._send({**told, "call": number})
        return future

    def _check(self) -> None:
        if self._ended is not None:
            raise type(self._ended)(str(self._ended))

    def _send(self, told: dict[str, Any]) -> None:
        assert self._socket is not None
        with suppress(OSError):  # it has ended: the reader finds out, and fails whatever waits
            self._socket.sendall(json.dumps(told).encode() + b"\n")

    def _read(self) -> None:
        assert self._socket is not None and self._process is not None
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    for told in json.loads(line):
                        self._take(*told)
        except (OSError, ValueError):  # it ended in the middle of a line
            pass
        finally:
            why = _why(self._process.wait())
            self._end(EngineError(f"the engine's process has ended by itself ({why}). Ask again: it starts anew."))

    def _take(self, kind: str, *rest: Any) -> None:
        if kind == "piece":
            request_id, text, tokens, logprob, reason, finished, cached, prompt_logprobs = rest
            piece = Piece(text, tokens, logprob, reason, finished, cached, tuple(prompt_logprobs))
            with self._lock:
                request = self._requests.pop(request_id, None) if piece.finished else self._requests.get(request_id)
            if request is not None:
                request.emit(piece)
        elif kind == "failed":
            with self._lock:
                request = self._requests.pop(rest[0], None)
            if request is not None:
                request.emit(_error(*rest[1:]))
        elif kind == "ready":
            self._ready.set_result(None)
        elif kind == "unready":
            self._end(_error(*rest))
        else:
            with self._lock:
                future = self._calls.pop(rest[0], None)
            if future is not None and kind == "called":
                future.set_result(rest[1])
            elif future is not None:
                future.set_exception(_error(*rest[1:]))

    def _end(self, problem: HybridQAError) -> None:
        """Fails whatever waits; the first problem stays."""
        with self._lock:
            if self._ended is not None:
                return
            self._ended = problem
            requests, self._requests = self._requests, {}
            calls, self._calls = self._calls, {}
        if not self._ready.done():
            self._ready.set_exception(problem)
        for request in requests.values():
            request.emit(problem)
        for future in calls.values():
            future.set_exception(problem)


def _error(name: str, message: str) -> HybridQAError:
    kind: type[HybridQAError] = getattr(errors, name, EngineError)
    return kind(message)


def _why(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
