"""vLLM's API server, seen from a resolver: what it serves, what is running, and how to load and unload a stack.

Of vLLM's own objects only this file knows more than the resolver's interface says. Invariants: an adapter is in the
server's list only once the engine has loaded it; what cannot be looked at counts as in use; nothing here raises where
vLLM has another shape: then there is no `Serving`, and the resolver does with what vLLM hands it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from types import FrameType
from typing import Any

from hybridqa.stack_server.names import PREFIX

log = logging.getLogger(__name__)
_NEEDED = ("lora_requests", "lora_id_counter", "lora_resolver_lock", "engine_client")  # of vLLM 0.32's


class Serving:
    """One server's `OpenAIServingModels`; lives on the server's event loop."""

    def __init__(self, models: Any) -> None:
        self._models = models

    @classmethod
    def calling(cls, frame: FrameType | None) -> Serving | None:
        """The one whose method has called the coroutine with this frame.

        vLLM tells a resolver two names and nothing of itself, but a resolver that cannot see what is still listed has
        to keep every adapter for ever, and cannot say why one was not loaded.
        """
        caller = frame.f_back if frame is not None else None
        models = caller.f_locals.get("self") if caller is not None else None
        return cls(models) if all(hasattr(models, name) for name in _NEEDED) else None

    @property
    def max_lora_rank(self) -> int | None:
        """What the server was started with; None where it does not say."""
        config = getattr(getattr(self._models.engine_client, "vllm_config", None), "lora_config", None)
        rank = getattr(config, "max_lora_rank", None)
        return rank if isinstance(rank, int) else None

    @property
    def is_dead(self) -> bool:
        """Whether the engine behind the server has ended."""
        return bool(getattr(self._models.engine_client, "errored", False))

    @property
    def api_servers(self) -> int:
        """How many processes hand out integer ids to one engine."""
        parallel = getattr(getattr(self._models.engine_client, "vllm_config", None), "parallel_config", None)
        return int(getattr(parallel, "_api_process_count", 1))

    def listed(self) -> dict[str, Any]:
        """The server's adapters by the name that they are asked by; the others than ours are left out."""
        return {name: request for name, request in self._models.lora_requests.items() if name.startswith(PREFIX)}

    def next_id(self) -> int:
        """vLLM's next integer id of an adapter; never given twice."""
        return int(self._models.lora_id_counter.inc(1))

    async def load(self, request: Any) -> None:
        """Has the engine read an adapter's folder now. Raises what the engine raises, and leaves nothing behind."""
        try:
            await self._models.engine_client.add_lora(request)
        except BaseException:
            try:
                await self._models.engine_client.remove_lora(request.lora_int_id)  # it may have got half way
            except Exception as error:  # noqa: BLE001  # the first is the one to tell
                log.warning("vLLM could not let go of %r: %s", request.lora_name, error)
            raise

    def unlist(self, names: Iterable[str]) -> None:
        """Takes adapters out of the list, as an unload over HTTP does: requests that run with them go on."""
        for name in names:
            self._models.lora_requests.pop(name, None)

    def running(self) -> set[str] | None:
        """The names inside vLLM of the adapters that running requests have; None where that cannot be seen."""
        states = getattr(getattr(self._models.engine_client, "output_processor", None), "request_states", None)
        if not isinstance(states, dict):
            return None
        return {name for state in list(states.values()) if (name := getattr(state, "lora_name", None))}

    def prune_locks(self) -> None:
        """Forgets the locks of names that are not listed: vLLM makes one for every name that anybody makes up."""
        locks = self._models.lora_resolver_lock
        for name, lock in list(locks.items()):
            if name not in self._models.lora_requests and not lock.locked():
                locks.pop(name, None)
