"""How much memory this process has held at most.

Knows nothing about what for. Invariant: a machine that cannot say is told apart from one that held nothing.
"""

from __future__ import annotations

import sys


def peak_memory() -> float | None:
    """The most that this process has held in memory so far, in MB (10**6 bytes); None where the system cannot say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
