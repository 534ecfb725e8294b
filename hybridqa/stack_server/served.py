"""The stacks that one vLLM server may answer with: from a name to a folder that vLLM can load.

Reads the catalog and composes by way of `StackCache`; knows nothing about vLLM. Invariants: a stack is of published,
fresh modules of this base model, all of one collection that this server may serve; a name that is unknown and one that
is not for this server are the same (None); what a client is told names no file of this machine.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hybridqa.catalog import Catalog
from hybridqa.config import Settings
from hybridqa.engine.protocol import Adapter
from hybridqa.errors import (
    AdapterError,
    BaseModelMismatchError,
    HybridQAError,
    InputError,
    ModuleNotFoundInStoreError,
    RankLimitError,
)
from hybridqa.files import is_writable
from hybridqa.models import resolve_model
from hybridqa.modules.registry import verify_module
from hybridqa.modules.stack_parts import read_record
from hybridqa.modules.stacks import StackCache
from hybridqa.stack_server.names import ABOUT, ComposedStack, NamedStack, about, parse
from hybridqa.types import Module, ModuleChoice, ModuleStatus, Weight

log = logging.getLogger(__name__)
ALL = "*"  # every collection of the store


@dataclass(frozen=True, slots=True)
class ServedStack:
    """A stack as it was found: its folder is leased."""

    name: str  # the canonical one of what was asked for
    adapter: Adapter
    modules: tuple[Module, ...]


class ServedStacks:
    """The stacks of one store for one vLLM server; opens the store when it is first asked. Safe to share by threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opening = threading.Lock()
        self._catalog: Catalog | None = None
        self._cache: StackCache | None = None
        self._hashes: dict[str, str] = {}  # of base models, by what vLLM calls them

    @property
    def max_bytes(self) -> int:
        """What stacks may take on disk."""
        return self._settings.stack_cache_mb * 1_000_000

    @property
    def max_rank(self) -> int:
        """The largest rank by the store's settings, where the server's own is not known."""
        return self._settings.max_lora_rank

    def find(self, base_model: str, name: str, max_rank: int) -> ServedStack | None:
        """The stack of that name, composed now or before and leased; None when this server has none of it.

        `base_model` is what vLLM was given as its model. Raises `ValueError`s whose text is for the client, and
        `RuntimeError` for what is wrong with this server.
        """
        try:
            if name == ABOUT:
                raise InputError(about(self._hash(base_model), max_rank))
            return self._find(base_model, name, max_rank)
        except (InputError, BaseModelMismatchError):
            raise
        except RankLimitError as error:
            raise InputError(f"{error} This server was started with --max-lora-rank {max_rank}.") from None
        except (AdapterError, HybridQAError, OSError) as error:
            log.error("%s cannot be served: %s", name, error)
            if isinstance(error, AdapterError):
                raise InputError(
                    f"{name!r} cannot be served: {type(error).__name__}; the server's log says more."
                ) from None
            raise RuntimeError("this server cannot use its store of modules; its log says why.") from None

    def why_not(self, modules: Sequence[Module]) -> str | None:
        """What has happened to modules that were served before, so that they may not answer any more; or None."""
        catalog, _ = self._open()
        for module in modules:
            try:
                now = catalog.get_module(module.collection, module.module_id, module.version)
            except ModuleNotFoundInStoreError:
                return f"module {module.name!r} has been removed"
            if problem := self._unusable(catalog, now):
                return problem
        return None

    def release(self, adapters: Sequence[Adapter]) -> None:
        """Lets go of the folders of stacks that vLLM will not read again."""
        _, cache = self._open()
        names = [adapter.name for adapter in adapters]
        cache.retire(names)
        cache.release(names)

    def changed(self) -> tuple[int, ...]:
        """Another value whenever the catalog may have changed."""
        stamps: list[int] = []
        for suffix in ("", "-wal"):
            with suppress(OSError):
                stat = os.stat(f"{self._settings.catalog_path}{suffix}")  # noqa: PTH116
                stamps += [stat.st_mtime_ns, stat.st_size]
        return tuple(stamps)

    def close(self) -> None:
        """Lets go of all folders; call it when vLLM is gone."""
        with self._opening:
            if self._cache is not None:
                self._cache.close()
            if self._catalog is not None:
                self._catalog.close()
            self._catalog = self._cache = None

    # Inside

    def _open(self) -> tuple[Catalog, StackCache]:
        with self._opening:
            if self._catalog is None:
                settings = self._settings
                self._catalog = Catalog.open(settings.catalog_path, module_dir=settings.module_dir)
            if self._cache is None:
                self._cache = StackCache(self._stack_dir(), self._settings.stack_cache_mb)
            return self._catalog, self._cache

    def _stack_dir(self) -> Path:
        """The store's own, shared with gateways and other servers, where it can be written; else one of this user's."""
        shared = self._settings.module_dir / "stacks"
        if is_writable(shared if shared.is_dir() else shared.parent):
            return shared
        digest = hashlib.sha256(str(shared.absolute()).encode()).hexdigest()[:16]
        return self._settings.cache_dir / "stacks" / digest

    def _find(self, base_model: str, name: str, max_rank: int) -> ServedStack | None:
        catalog, cache = self._open()
        asked = parse(name)
        parts = self._named(catalog, asked) if isinstance(asked, NamedStack) else self._composed(catalog, asked)
        if parts is None:
            return None
        base_model_hash = self._hash(base_model)
        for module, _ in parts:
            if problem := self._unusable(catalog, module):
                raise InputError(f"{name!r} is refused: {problem}.")
            verify_module(module, base_model_hash)
        adapter = cache.stack([ModuleChoice(module, weight, 1.0) for module, weight in parts], max_rank)
        if adapter is None or (isinstance(asked, ComposedStack) and adapter.name != asked.folder):
            raise InputError(f"{name!r} is refused: its record is not that of its modules and weights.")
        return ServedStack(str(asked), adapter, tuple(module for module, _ in parts))

    def _named(self, catalog: Catalog, asked: NamedStack) -> list[tuple[Module, Weight]] | None:
        if not self._may_serve(asked.collection):
            return None
        try:
            return [
                (catalog.get_module(asked.collection, part.module_id, part.version), part.weight)
                for part in asked.parts
            ]
        except ModuleNotFoundInStoreError:
            return None

    def _composed(self, catalog: Catalog, asked: ComposedStack) -> list[tuple[Module, Weight]] | None:
        """By the record that the gateway has left in the store with the stack."""
        record = read_record(self._settings.module_dir / "stacks" / asked.folder)
        if record is None or not record["parts"]:
            return None
        for collection in filter(self._may_serve, catalog.list_collections()):
            with suppress(ModuleNotFoundInStoreError, ValueError):
                found: list[tuple[Module, Weight]] = []
                for part in record["parts"]:
                    module_id, _, version = part["module"].rpartition("@")
                    found.append((catalog.get_module(collection, module_id, int(version)), part["weight"]))
                return found
        return None

    def _may_serve(self, collection: str) -> bool:
        allowed = self._settings.stack_collections
        return ALL in allowed or collection in allowed

    def _unusable(self, catalog: Catalog, module: Module) -> str | None:
        """What speaks against a module that the catalog has."""
        if module.status is not ModuleStatus.PUBLISHED:
            return f"module {module.name!r} was rejected by its gate"
        now = catalog.document_hashes(module.collection, list(module.documents))
        if any(now.get(doc_id) != content_hash for doc_id, content_hash in module.documents.items()):
            return (
                f"module {module.name!r} is stale: its document has changed since; `hybridqa refresh` makes a new one"
            )
        return None

    def _hash(self, base_model: str) -> str:
        """The hash of the base model that vLLM serves."""
        with self._opening:
            known = self._hashes.get(base_model)
            if known is None:
                known = self._hashes[base_model] = resolve_model(base_model, self._settings.cache_dir).hash
            return known
