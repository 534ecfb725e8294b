"""A stock vLLM server in a process of its own, and a store of modules for it to answer from."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import hybridqa
from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.models import ModelFolder
from hybridqa.modules.manifest import Manifest
from hybridqa.modules.registry import ModuleRegistry, module_id_for
from hybridqa.types import Document, Module, ModuleKind

KEY = "key-of-the-test"
TARGETS = ("q_proj", "v_proj", "down_proj")


class StockServer:
    """`python -m vllm.entrypoints.openai.api_server` with our plug-in; ends with `stop`, at once with `kill`."""

    def __init__(self, model: Path, folder: Path, *options: str, **environment: str) -> None:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"server-{self.port}.log"
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--enforce-eager"]
        command += ["--enable-lora", "--max-model-len", "2048", "--kv-cache-memory-bytes", str(128 << 20)]
        command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048", "--max-num-seqs", "16"]
        root = str(Path(hybridqa.__file__).parent.parent)
        self._command = [*command, "--api-key", KEY, *options]
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"},
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_LOGGING_LEVEL": "INFO",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.start()

    def start(self) -> None:
        """Begins to start, again after a `kill`."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def wait(self, seconds: float = 300) -> StockServer:
        """Returns when it answers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"the server did not start: {self.text()[-4000:]}")

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """SIGKILL to the server and its engine."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """Ends it as its user would."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def ask(self, model: str, **fields: Any) -> httpx.Response:
        """One greedy completion of a few tokens."""
        body = {"model": model, "prompt": "The sea is", "max_tokens": 8, "temperature": 0, **fields}
        return httpx.post(f"{self.url}/v1/completions", json=body, headers=self.headers, timeout=120)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {KEY}"}

    def listed(self) -> list[dict[str, Any]]:
        """The cards of /v1/models."""
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/v1/models", headers=self.headers, timeout=30).json()[
            "data"
        ]
        return found


class ModuleStore:
    """A store whose modules are random adapters for a base model."""

    def __init__(self, folder: Path, model: ModelFolder, make_adapter: Callable[..., Path]) -> None:
        self.folder, self.model, self._make = folder, model, make_adapter
        self.module_dir = folder / "modules" / "default"
        self.module_dir.mkdir(parents=True)
        (folder / "indexes" / "default").mkdir(parents=True)
        path = folder / "indexes" / "default" / "catalog.sqlite3"
        self.catalog = Catalog.open(path, create=True, module_dir=self.module_dir, collection="default")
        self.registry = ModuleRegistry(self.catalog, self.module_dir, model.hash)

    def put(self, doc_id: str, text: str = "", collection: str = "default") -> str:
        """Adds a document or changes it; gives its hash."""
        document = Document(doc_id, collection, "", text or f"text of {doc_id}", f"hash of {doc_id} {text}")
        draft = PassageDraft(0, 0, len(document.text), document.text, "")
        self.catalog.put_document(document, [draft], np.ones((1, 4), dtype=np.float32), "embedder")
        return document.content_hash

    def publish(
        self, doc_id: str, *, collection: str = "default", rank: int = 8, seed: int = 0, passed: bool = True,
        base: str | None = None, plugin: str | None = None, strength: float = 1.0,
    ) -> Module:  # fmt: skip
        """A document with its module's next version, or a plug-in."""
        documents = {} if plugin else {doc_id: self.put(doc_id, collection=collection)}
        staged = self._make(
            self.folder / f"staged-{doc_id}", self.model, rank=rank, alpha=rank, targets=TARGETS, seed=seed,
            strength=strength,
        )  # fmt: skip
        manifest = Manifest(
            module_id=plugin or module_id_for(collection, doc_id), collection=collection, documents=documents,
            base_model=self.model.name, base_model_hash=base or self.model.hash, rank=rank, alpha=rank,
            targets=list(TARGETS), kind=ModuleKind.INSTRUCTIONS if plugin else ModuleKind.DOCUMENT,
        )  # fmt: skip
        registry = self.registry if base is None else ModuleRegistry(self.catalog, self.module_dir, base)
        return registry.publish(staged, manifest, passed)

    def damage(self, module: Module) -> Module:
        """Flips a byte in the module's weights."""
        path = module.path / "adapter_model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        return replace(module)

    def environment(self, collections: Sequence[str] = ("default",)) -> Mapping[str, str]:
        """What a server of this store is started with."""
        return {"HYBRIDQA_STORE": str(self.folder), "HYBRIDQA_STACK_COLLECTIONS": ",".join(collections)}
