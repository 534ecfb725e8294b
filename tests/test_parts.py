"""The parts of a store: an engine that is started once, and a closing that closes everything."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridqa import Answer, HybridQA
from hybridqa.engine.reference import ReferenceEngine
from hybridqa.errors import ModelError
from hybridqa.models import ModelFolder

KETTLE = "Maren Holt designed the Lumen kettle in 2031. The Lumen kettle costs 89 euros."


class SlowEngine(ReferenceEngine):
    """A reference engine whose start waits until it is let go on; a start may be made to fail."""

    def __init__(self, model: ModelFolder) -> None:
        super().__init__(model, max_model_len=512)
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.fails = False

    async def start(self) -> None:
        if not self.go_on.is_set():
            self.begun.set()
            await asyncio.to_thread(self.go_on.wait, 60)
            if self.fails:
                raise ModelError("no memory")
        await super().start()


@pytest.fixture
def qa(tmp_path: Path, tiny_model: ModelFolder) -> Iterator[HybridQA]:
    options = {"model": str(tiny_model.path), "engine": "reference", "max_model_len": 512, "max_answer_tokens": 4}
    made = HybridQA.open(tmp_path / "store", create=True, **options)
    yield made
    made.close()


@pytest.fixture
def engines(qa: HybridQA, monkeypatch: pytest.MonkeyPatch) -> list[SlowEngine]:
    """The store's engines, as they are made."""
    made: list[SlowEngine] = []

    def make() -> SlowEngine:
        made.append(SlowEngine(qa.model))
        return made[-1]

    monkeypatch.setattr(qa, "_make_engine", make)
    return made


async def ask_until_loading(qa: HybridQA, engines: list[SlowEngine], number: int = 0) -> asyncio.Task[Answer]:
    """A question that waits for the start of an engine."""
    asking = asyncio.create_task(qa.aask("Who?", mode="closed"))
    while len(engines) <= number or not engines[number].begun.is_set():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    return asking


async def cancelled_while_loading(qa: HybridQA, engines: list[SlowEngine]) -> None:
    asking = await ask_until_loading(qa, engines)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


def test_a_cancelled_first_question_does_not_make_a_second_engine(qa: HybridQA, engines: list[SlowEngine]) -> None:
    asyncio.run(cancelled_while_loading(qa, engines))
    asyncio.run(cancelled_while_loading(qa, engines))
    engines[0].go_on.set()
    assert qa.ask("Who?", mode="closed").usage.completion_tokens > 0
    assert len(engines) == 1


def test_closing_waits_for_an_engine_that_nobody_waits_for(qa: HybridQA, engines: list[SlowEngine]) -> None:
    asyncio.run(cancelled_while_loading(qa, engines))
    threading.Timer(0.2, engines[0].go_on.set).start()
    qa.close()
    assert len(engines) == 1 and engines[0]._closed


@pytest.mark.parametrize("waits", [True, False], ids=["while a question waits", "while none waits"])
def test_a_start_that_failed_is_tried_again(qa: HybridQA, engines: list[SlowEngine], waits: bool) -> None:
    async def fail() -> None:
        asking = await ask_until_loading(qa, engines)
        if not waits:
            asking.cancel()
        engines[0].fails = True
        engines[0].go_on.set()
        with pytest.raises(ModelError if waits else asyncio.CancelledError):
            await asking
        while not engines[0]._closed:
            await asyncio.sleep(0.01)

    asyncio.run(fail())

    async def ask() -> Answer:
        asking = await ask_until_loading(qa, engines, 1)
        engines[1].go_on.set()
        return await asking

    assert asyncio.run(ask()).usage.completion_tokens > 0
    assert len(engines) == 2


def test_an_index_that_cannot_be_written_does_not_stop_the_closing(
    qa: HybridQA, caplog: pytest.LogCaptureFixture
) -> None:
    qa.add_text("kettle", KETTLE)
    folder = qa.settings.index_dir / "dense"
    folder.write_text("in the way")  # as good as a full disk
    assert qa.ask("What does the Lumen kettle cost?").passages
    caplog.clear()
    with caplog.at_level(logging.WARNING, "hybridqa.parts"):
        qa.close()
    assert "could not be written" in caplog.text
    assert qa.catalog._database._closed
