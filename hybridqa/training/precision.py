"""Which precision a machine multiplies faster in.

Knows nothing about models. Invariant: float32 unless it is clearly slower.
"""

from __future__ import annotations

import time
from functools import cache

import torch
import torch.nn.functional as F

FASTER = 1.3  # bfloat16 has to be so many times faster: it is less exact


@cache
def faster_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that has it, and on a CPU whose own instructions make it faster; else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    seconds = {dtype: _seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return torch.bfloat16 if seconds[torch.bfloat16] * FASTER < seconds[torch.float32] else torch.float32


def _seconds(dtype: torch.dtype) -> float:
    """The best of a few products as a small model makes them."""
    x, weight = torch.ones(256, 768, dtype=dtype), torch.ones(2048, 768, dtype=dtype)
    best = float("inf")
    for _ in range(7):  # the first ones prepare
        started = time.perf_counter()
        F.linear(x, weight)
        best = min(best, time.perf_counter() - started)
    return best
