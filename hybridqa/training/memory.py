"""How much memory this process has held at most, and giving back what it holds no longer.

Knows nothing about what for. Invariant: a machine that cannot say is told apart from one that held nothing.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import suppress
from pathlib import Path


def forget_peak() -> None:
    """Has `peak_memory` speak of what is held from now on, where the system can (Linux); else it goes on as before."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def give_back() -> None:
    """Hands what nothing holds any more back to the system and the GPU: between two jobs, not within one.

    A CPU allocator keeps freed blocks in pieces that the next job's do not fit in, so that a long run would grow.
    """
    gc.collect()
    _trim()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _trim() -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # of glibc alone
            ctypes.CDLL(None).malloc_trim(0)


class Slack:
    """Keeps within a job what the allocator holds beside what is in use from growing; call `limit` between two rows.

    Rows are of many lengths, so that one's freed blocks rarely fit the next: without this, a long document's job holds
    several times what a short one's does.
    """

    def __init__(self, most_mb: int = 128) -> None:
        """Up to `most_mb` (of 10**6 bytes) may be added between two times of giving back."""
        self._most = most_mb * 1_000_000
        self._least: int | None = None  # held since the last time

    def limit(self) -> None:
        """Gives back what is free where more is held than before by more than that; else it costs microseconds."""
        held = _held()
        if held is None:
            return
        self._least = held if self._least is None else min(self._least, held)
        if held > self._least + self._most:
            _trim()
            self._least = None  # the next row's own blocks are no growth


def _held() -> int | None:
    """Bytes that this process holds in memory; None where the system cannot say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def peak_gpu_memory() -> float | None:
    """The most that tensors took of the GPU's memory since `forget_peak`, in MB; None where there is none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return round(float(torch.cuda.max_memory_allocated()) / 1e6, 1)


def peak_memory() -> float | None:
    """The most that this process has held in memory, in MB (10**6 bytes); None where the system cannot say.

    Since `forget_peak`, where that could be done; else since the process began.
    """
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return round(int(kilobytes) * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
