"""Uploaded files, read where they can do no harm: a few at a time, each in a process that can be killed.

Knows nothing about storage. Invariant: the event loop goes on whatever a file holds.
"""

from __future__ import annotations

import asyncio

from hybridqa.ingest.apart import read_apart
from hybridqa.ingest.source import SourceText

AT_ONCE = 2


class Uploads:
    """Reads uploads within bounds."""

    def __init__(self, *, max_bytes: int, limit_s: float, memory_mb: int) -> None:
        self.max_bytes = max_bytes
        self._limit_s = limit_s
        self._memory_mb = memory_mb
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def read(self, data: bytes, *, name: str) -> SourceText:
        """What a reader makes of a file. Raises `UnreadableDocumentError`."""
        return await read_apart(
            data,
            name=name,
            max_bytes=self.max_bytes,
            limit_s=self._limit_s,
            memory_mb=self._memory_mb,
            slots=self._slots,
        )
