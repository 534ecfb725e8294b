"""The process that reads one file that nobody vouches for; `apart` starts it.

A line of JSON and then the file come on its input; a line of JSON and then the text leave on its output. Knows nothing
about who asks or what becomes of the text. Invariant: it has set its own limits before it looks at the file, so that
whatever the file does ends with this process: it takes no more memory and time than it was given, writes no file, and
starts no other process.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from hybridqa.errors import HybridQAError
from hybridqa.ingest.readers import read_bytes

_MB = 1 << 20
_OPEN_FILES = 64
_AT_LAST = 64 * _MB  # more memory, to say that there was not enough
_PATIENCE = 10  # lower than a server's own threads


def main() -> None:
    """Reads the file and says what came of it."""
    source = sys.stdin.buffer
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no part of the answer
    asked = json.loads(source.readline())
    _limit(asked["limit_s"], asked["memory_mb"] * _MB)
    head, text = _read(source.read(), asked)
    answer.write(json.dumps(head).encode() + b"\n" + text)
    answer.flush()
    os._exit(0)  # nothing is left to be tidied, and a large tree takes a while to be


def _read(data: bytes, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    try:
        source = read_bytes(data, name=asked["name"], max_bytes=asked["max_bytes"])
        headings = [[heading.start, heading.level, heading.title] for heading in source.headings]
        head = {"title": source.title, "media_type": source.media_type, "headings": headings}
        return head, source.text.encode("utf-8")
    except HybridQAError as error:
        return {"error": str(error)}, b""
    except MemoryError:
        pass  # what was held on to goes with it
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return {"out_of": "memory"}, b""


def _limit(limit_s: float, memory: int) -> None:
    logging.disable(logging.CRITICAL)  # a damaged file can have more said of it than it has bytes
    warnings.simplefilter("ignore")
    seconds = math.ceil(limit_s) + 1  # the parent is the first to lose patience; this is for when it is gone
    signal.alarm(seconds)
    os.nice(_PATIENCE)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # a machine without memory ends this one first
    for what, most, spare in (
        (resource.RLIMIT_AS, memory, _AT_LAST),
        (resource.RLIMIT_CPU, seconds, 1),
        (resource.RLIMIT_NOFILE, _OPEN_FILES, 0),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
    ):
        hard = resource.getrlimit(what)[1]
        allowed = most + spare if hard == resource.RLIM_INFINITY else min(most + spare, hard)
        resource.setrlimit(what, (min(most, allowed), allowed))


if __name__ == "__main__":
    main()
