"""The engine's loop as other threads and loops see it: interrupts and cancellations end what they cut off."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from hybridqa.engine.loop import EngineLoop, together


@pytest.fixture
def loop() -> Iterator[EngineLoop]:
    made = EngineLoop()
    yield made
    made.close()


class Tidying:
    """A stream that never ends by itself and takes a moment to tidy up."""

    def __init__(self) -> None:
        self.waits = threading.Event()
        self.tidied = False

    async def pieces(self) -> AsyncIterator[int]:
        try:
            yield 1
            self.waits.set()
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            self.tidied = True


def test_a_stream_is_read_to_its_end_or_closed(loop: EngineLoop) -> None:
    async def three() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    async def read() -> list[int]:
        return [piece async for piece in loop.aiterate(three())]

    assert list(loop.iterate(three())) == asyncio.run(read()) == [0, 1, 2]
    stream = Tidying()
    reading = loop.iterate(stream.pieces())
    assert next(reading) == 1
    reading.close()  # type: ignore[attr-defined]
    assert stream.tidied


def test_a_cancelled_stream_ends_with_the_cancellation(loop: EngineLoop) -> None:
    stream = Tidying()

    async def read() -> None:
        async with asyncio.timeout(0.2):
            async for _ in loop.aiterate(stream.pieces()):
                pass

    with pytest.raises(TimeoutError):
        asyncio.run(read())
    assert stream.tidied


def test_ctrl_c_in_a_stream_is_a_keyboard_interrupt(loop: EngineLoop) -> None:
    stream = Tidying()
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        stream.waits.wait(30)
        signal.pthread_kill(main, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in loop.iterate(stream.pieces()):
                pass
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert stream.tidied


def test_a_stream_outlives_its_loop_in_peace() -> None:
    made = EngineLoop()
    reading = made.iterate(Tidying().pieces())
    assert next(reading) == 1
    made.close()
    reading.close()  # type: ignore[attr-defined]


async def test_together_stops_the_rest_when_one_fails() -> None:
    ended: list[str] = []

    async def work(name: str, seconds: float) -> str:
        await asyncio.sleep(seconds)
        if name == "bad":
            raise ValueError(name)
        ended.append(name)
        return name

    assert await together(work(name, 0.01) for name in "ab") == ["a", "b"]
    assert await together(work(name, 0) for name in "") == []
    ended.clear()
    with pytest.raises(ValueError, match="bad"):
        await together(work(name, seconds) for name, seconds in (("a", 0.0), ("bad", 0.05), ("c", 0.1), ("d", 0.1)))
    await asyncio.sleep(0.2)
    assert ended == ["a"]
