"""How a trainer keeps out of the way of a server on the same cores: it takes the time that nobody else wants.

Knows nothing about training. Invariant: what a system does not know or allow is passed over; nothing here fails.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

LAST = 19  # of the ways to be nice


def step_back() -> None:
    """Has every thread of this process, and all that they start, give way to whatever else wants to run.

    A Linux that groups processes by session shares the cores out between the groups first, so that a nice process still
    takes half of them from a server in another session: the group, which should be this process's own, is made nice,
    too. An idle policy, and not a low priority alone: a server's threads sleep and wake thousands of times in each of
    its steps, and only from an idle thread does one that wakes take its core at once.
    """
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(LAST))
    for thread in _threads():
        with suppress(OSError, AttributeError):  # it has ended, or this is no Linux
            os.setpriority(os.PRIO_PROCESS, thread, LAST)
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def _threads() -> list[int]:
    try:
        return [int(entry.name) for entry in Path("/proc/self/task").iterdir()]
    except OSError:
        return [0]
