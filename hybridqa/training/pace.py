"""How a trainer keeps out of the way of a server on the same cores: it counts a tenth of what the server counts.

Knows nothing about training. Invariant: what a system does not know or allow is passed over; nothing here fails.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NICE = 10  # a tenth of a core that somebody else wants, all of one that nobody wants; at 19, or idle, it would starve


def step_back() -> None:
    """Lowers the priority of every thread of this process, and so of all that they start.

    A Linux that groups processes by session shares the cores out between the groups first, so that a nice process still
    takes half of them from a server in another session: the group, which should be this process's own, is made nice,
    too.
    """
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICE))
    for thread in _threads():
        with suppress(OSError, AttributeError):  # it has ended, or this is no Unix
            nicer = max(NICE, os.getpriority(os.PRIO_PROCESS, thread))  # one cannot go back
            os.setpriority(os.PRIO_PROCESS, thread, nicer)


def _threads() -> list[int]:
    try:
        return [int(entry.name) for entry in Path("/proc/self/task").iterdir()]
    except OSError:
        return [0]
