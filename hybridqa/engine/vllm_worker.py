"""The process in which vLLM runs: `python -m hybridqa.engine.vllm_worker FD`, started by `VllmProcess`.

Reads what is asked from a socket, a JSON object a line, and writes what vLLM says, a JSON list a line. Knows nothing
about what is asked. Invariant: it ends when the other end of the socket does, or when vLLM cannot go on, and for
nothing that is sent to its terminal or its group: whoever started it decides when answers have ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from hybridqa.engine.protocol import Adapter
from hybridqa.engine.vllm_args import VllmSettings
from hybridqa.engine.vllm_thread import Piece, Request, VllmThread
from hybridqa.errors import EngineError, HybridQAError
from hybridqa.models import ModelFolder


class Said:
    """What is to be sent, one line for each step of vLLM."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._waiting: list[tuple[Any, ...]] = []

    def add(self, *told: Any) -> None:
        """Keeps it for the next line."""
        with self._lock:
            self._waiting.append(told)

    def send(self) -> None:
        """Sends what was kept."""
        with self._lock:
            told, self._waiting = self._waiting, []
            if told:
                with suppress(OSError):  # nobody listens: the end of the socket ends this process
                    self._connection.sendall(json.dumps(told).encode() + b"\n")

    def say(self, *told: Any) -> None:
        """Sends it now."""
        self.add(*told)
        self.send()


def main() -> None:
    """Serves the socket with the number that is given."""
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rb") as lines:
        said = Said(connection)
        first = json.loads(lines.readline() or b"{}")
        if not first:  # whoever started it is gone already
            return
        model = ModelFolder(**{**first["model"], "path": Path(first["model"]["path"])})
        thread = VllmThread(model, VllmSettings(**first["settings"]), after_step=said.send)
        ready = thread.start()
        ready.add_done_callback(lambda done: _say_ready(done, said))
        threading.Thread(target=_end_with, args=(thread,), daemon=True).start()
        for line in lines:
            _take(json.loads(line), thread, said)
        if ready.done():  # else it loads, and nobody waits for that
            thread.close()
        os._exit(0)  # vLLM's threads and exit handlers have nothing left to do


def _end_with(thread: VllmThread) -> None:
    """Ends the process when its thread has ended: it could answer nothing more, and is started anew."""
    thread.join()
    os._exit(1)


def _take(told: dict[str, Any], thread: VllmThread, said: Said) -> None:
    if told["op"] == "request":
        adapter = None
        if told["adapter"] is not None:
            name, path, rank = told["adapter"]
            adapter = Adapter(name, Path(path), rank)
        emit = _emitter(told["id"], said)
        request = Request(told["id"], told["prompt_ids"], told["params"], adapter, emit, told["scope"])
        _try(lambda: thread.submit(request), lambda *error: said.say("failed", told["id"], *error))
    elif told["op"] == "abort":
        thread.abort(told["id"])
    else:
        begin = thread.unfinished if told["op"] == "unfinished" else lambda: thread.evict(told["name"])
        _try(
            lambda: begin().add_done_callback(lambda done: _say_called(told["call"], done, said)),
            lambda *error: said.say("refused", told["call"], *error),
        )


def _emitter(request_id: str, said: Said) -> Callable[[Piece | Exception], None]:
    def emit(piece: Piece | Exception) -> None:
        if isinstance(piece, Exception):
            said.add("failed", request_id, *_error(piece))
        else:
            said.add(
                *("piece", request_id, piece.text, piece.tokens, piece.logprob, piece.finish_reason),
                *(piece.finished, piece.cached_tokens, piece.prompt_logprobs),
            )

    return emit


def _say_ready(done: Future[None], said: Said) -> None:
    error = done.exception()
    said.say(*(("ready",) if error is None else ("unready", *_error(error))))


def _say_called(number: int, done: Future[Any], said: Said) -> None:
    error = done.exception()
    said.say(*(("called", number, done.result()) if error is None else ("refused", number, *_error(error))))


def _try(work: Callable[[], None], fail: Callable[..., None]) -> None:
    try:
        work()
    except HybridQAError as error:
        fail(*_error(error))


def _error(error: BaseException) -> tuple[str, str]:
    """Its kind and its message, as `VllmProcess` makes it again."""
    if isinstance(error, HybridQAError):
        return type(error).__name__, str(error)
    return EngineError.__name__, f"the engine failed: {type(error).__name__}: {error}."


if __name__ == "__main__":
    main()
