"""Which adapters vLLM holds in memory, and for which requests.

Knows nothing about asyncio or threads; vLLM's thread alone calls it. Invariants: an adapter that a request needs stays
in vLLM's memory until the request has ended, so vLLM never reads an adapter's folder while it steps (a read that fails
there would kill it); an adapter gets a new integer id, hence a new name inside vLLM, each time it is loaded, so nothing
cached for an older one can be taken for it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from hybridqa.engine.checks import check_folder
from hybridqa.engine.protocol import Adapter
from hybridqa.errors import AdapterError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Loaded:
    """An adapter in vLLM's memory."""

    number: int  # vLLM's id of it; never used for another
    adapter: Adapter
    users: set[str] = field(default_factory=set)  # ids of the requests that need it
    forgotten: bool = False  # remove it when its last user has ended


class LoadedAdapters:
    """At most `capacity` adapters, dropped least recently used first, never while in use."""

    def __init__(self, capacity: int, *, linear_only: bool) -> None:
        self._capacity = capacity
        self._linear_only = linear_only
        self._loaded: dict[str, _Loaded] = {}  # by the adapter's name, least recently used first
        self.loads = 0  # so far; the last is the newest number

    def numbers(self) -> dict[str, int]:
        """vLLM's integer id of each adapter in memory."""
        return {name: entry.number for name, entry in self._loaded.items()}

    def make_room(self, llm: Any, adapter: Adapter) -> bool:
        """Whether the adapter is loaded, or may be now; drops the least recently used idle one for it."""
        loaded = self._loaded.get(adapter.name)
        if loaded is not None:
            self._loaded[adapter.name] = self._loaded.pop(adapter.name)  # now the most recently used
            return not loaded.forgotten  # forgotten but in use: the old one must go first
        if len(self._loaded) >= self._capacity:
            idle = next((name for name, entry in self._loaded.items() if not entry.users), None)
            if idle is None:
                return False
            self._remove(llm, idle)
        return True

    def take(self, llm: Any, adapter: Adapter, request_id: str) -> Any:
        """vLLM's LoRARequest of the adapter, loaded if need be and kept until the request is released.

        There must be room. Raises an `AdapterError`.
        """
        loaded = self._loaded.get(adapter.name) or self._load(llm, adapter)
        loaded.users.add(request_id)
        return _lora_request(loaded)

    def release(self, llm: Any, request_id: str) -> None:
        """The request needs its adapter no longer."""
        for name, loaded in list(self._loaded.items()):
            loaded.users.discard(request_id)
            if loaded.forgotten and not loaded.users:
                self._remove(llm, name)

    def forget(self, llm: Any, name: str) -> None:
        """Removes an adapter, at once or when its last request has ended."""
        loaded = self._loaded.get(name)
        if loaded is not None:
            loaded.forgotten = True
            if not loaded.users:
                self._remove(llm, name)

    def _load(self, llm: Any, adapter: Adapter) -> _Loaded:
        check_folder(adapter, linear_only=self._linear_only)
        self.loads += 1
        loaded = _Loaded(self.loads, adapter)
        try:
            llm.add_lora(_lora_request(loaded))
        except Exception as error:
            try:
                llm.remove_lora(loaded.number)  # it may have got half way
            except Exception:
                logger.exception("vLLM could not let go of adapter %r", adapter.name)
            raise AdapterError(
                f"the engine could not load adapter {adapter.name!r} from {str(adapter.path)!r}: {error}. "
                "Expected a PEFT LoRA folder for this base model; compose it again."
            ) from error
        self._loaded[adapter.name] = loaded
        return loaded

    def _remove(self, llm: Any, name: str) -> None:
        llm.remove_lora(self._loaded.pop(name).number)


def _lora_request(loaded: _Loaded) -> Any:
    from vllm.lora.request import LoRARequest

    name = f"{loaded.adapter.name}#{loaded.number}"  # vLLM tells adapters, and their cached prefixes, apart by name
    return LoRARequest(lora_name=name, lora_int_id=loaded.number, lora_path=str(loaded.adapter.path))
