"""A `hybridqa serve` process for the measurements of the server; imported by the scripts beside it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

START_S = 180.0


class Served:
    """A store that is served by a process of its own, at one port for all its lives."""

    def __init__(self, store: Path, settings: Mapping[str, object] = {}, log: Path | None = None) -> None:
        self._store = store
        self._settings = {f"HYBRIDQA_{name.upper()}": str(value) for name, value in settings.items()}
        self._log = log
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> float:
        """Starts it; gives the seconds until its models were loaded."""
        began = time.monotonic()
        command = [sys.executable, "-m", "hybridqa", "--store", str(self._store), "serve", "--port", str(self.port)]
        with (self._log or Path(os.devnull)).open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **self._settings}, stdout=log, stderr=log, start_new_session=True
            )
        while time.monotonic() - began < START_S:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}; its log: {self._log}")
            try:
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return time.monotonic() - began
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise TimeoutError(f"the server was not ready after {START_S:.0f} s; its log: {self._log}")

    def kill(self) -> None:
        """SIGKILL to the server alone, as the kernel's when memory is short; what it has started must end by itself."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def kill_engine(self) -> None:
        """SIGKILL to the engine's process alone."""
        for pid in self._processes():
            with suppress(OSError):
                if b"vllm_worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM to all of it, as an operator."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def memory_mb(self) -> float:
        """What the server and its engine hold, in MB: the sum of their resident sets."""
        held = 0
        for pid in self._processes():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    held += int(line.split()[1]) if line.startswith("VmRSS:") else 0
        if not held:
            raise RuntimeError("the server has ended")
        return held / 1000

    def _processes(self) -> list[int]:
        """The numbers of the server and of what it has started."""
        assert self.process is not None
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError):
                    session = entry.joinpath("stat").read_text().rpartition(")")[2].split()[3]
                    found += [int(entry.name)] if int(session) == self.process.pid else []
        return found

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def chat(question: str, model: str = "hybridqa", **extension: Any) -> dict[str, Any]:
    """The body of a question."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}]}
    return {**body, "hybridqa": extension} if extension else body


def questions_of(path: Path) -> list[dict[str, Any]]:
    """Questions in JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
