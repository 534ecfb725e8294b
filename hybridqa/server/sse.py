"""Server-sent events, with a comment now and then while there is nothing to say.

Knows nothing about what is said. Invariant: when the reader goes, the source of the events is closed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from hybridqa.engine.loop import close_stream

KEEP_ALIVE_S = 10.0  # proxies close what is silent for a minute or less
COMMENT = ": keep-alive\n\n"
DONE = "data: [DONE]\n\n"


def event(data: Any, name: str | None = None) -> str:
    """One event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def kept_alive(events: AsyncIterator[str], every_s: float = KEEP_ALIVE_S) -> AsyncIterator[str]:
    """The events, with a comment whenever none came for so many seconds."""
    coming: asyncio.Task[str] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([coming], timeout=every_s)
            if not done:
                yield COMMENT
                continue
            try:
                said = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield said
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming])
        await close_stream(events)
