"""Questions on their way to the store, counted when they are answered.

Knows nothing about HTTP. Invariant: nothing of a question or an answer is changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Unpack

from hybridqa.answering.options import AskOptions
from hybridqa.engine.loop import close_stream
from hybridqa.engine.protocol import Delta
from hybridqa.pipeline import HybridQA
from hybridqa.server.metrics import Metrics
from hybridqa.types import Answer


class Asker:
    """`HybridQA.aask` and `astream`, counted."""

    def __init__(self, store: HybridQA, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics

    async def aask(self, question: str, **options: Unpack[AskOptions]) -> Answer:
        """See `HybridQA.aask`."""
        answer = await self._store.aask(question, **options)
        self._metrics.answered(answer)
        return answer

    async def astream(self, question: str, **options: Unpack[AskOptions]) -> AsyncIterator[Delta | Answer]:
        """See `HybridQA.astream`."""
        pieces = self._store.astream(question, **options)
        try:
            async for piece in pieces:
                if isinstance(piece, Answer):
                    self._metrics.answered(piece)
                yield piece
        finally:
            await close_stream(pieces)
