"""Reads a file that nobody vouches for in a process of its own, which can be killed.

Knows nothing about formats or about where the file came from. Invariant: the process and whatever it started are gone
when `read_apart` has ended, however it ended; the event loop never waits for the file; and what comes back is data: a
process that the file has taken over can say what it likes, and have nothing done.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import IO, Any

from hybridqa.errors import UnreadableDocumentError
from hybridqa.ingest.readers import too_large
from hybridqa.ingest.source import Heading, SourceText, normalise, one_line
from hybridqa.processes import import_path

log = logging.getLogger(__name__)
WORKER = "hybridqa.ingest.reader_process"
# What Python needs to find its modules and its temporary files. Keys and settings are no business of a file's reader.
_PASSED_ON = ("HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONUSERBASE", "SYSTEMROOT", "TZ")
_BLOCK = 1 << 20
_OUTPUT_PER_BYTE = 8  # of the allowed size: four of UTF-8 to a character, and as many for headings
_OUTPUT_SPARE = 1 << 20
_ERRORS_KEPT = 1 << 16
_MESSAGE = 2_000  # characters of what the process says
_NAME = 4_096
_GONE_S = 5.0  # after a kill


async def read_apart(
    data: bytes | Path,
    *,
    name: str,
    max_bytes: int,
    limit_s: float,
    memory_mb: int,
    slots: asyncio.Semaphore | None = None,
) -> SourceText:
    """`read_bytes` of a file's content, or of the file at a path, within `limit_s` seconds and `memory_mb`.

    `slots` bounds how many are read at once; waiting for one is no part of the time. Cancelling ends the process.
    Raises `UnreadableDocumentError`.
    """
    if len(name) > _NAME:
        raise UnreadableDocumentError(f"{name[:80]!r}... is a name of {len(name):,} characters; expected {_NAME:,}.")
    if isinstance(data, bytes) and len(data) > max_bytes:
        raise too_large(name, len(data), max_bytes)
    async with AsyncExitStack() as stack:
        if slots is not None:
            await stack.enter_async_context(slots)
        asked = {"name": name, "max_bytes": max_bytes, "limit_s": limit_s, "memory_mb": memory_mb}
        # in memory: the process sees nothing of the file system, and nobody waits for a pipe that nobody reads
        given = stack.enter_context(os.fdopen(os.memfd_create("upload"), "w+b"))
        given.write(json.dumps(asked).encode() + b"\n")
        size = 0
        async for block in _blocks(data, name):
            size += len(block)
            if size > max_bytes:
                raise too_large(name, size, max_bytes)
            given.write(block)
        given.seek(0)
        code, output, errors = await _run(given, name, max_bytes, limit_s)
    return await asyncio.to_thread(_outcome, code, output, errors, name, limit_s, memory_mb)


async def _blocks(data: bytes | Path, name: str) -> AsyncIterator[bytes | memoryview]:
    """The content in pieces that keep the loop from nothing."""
    if isinstance(data, bytes):
        for start in range(0, len(data), _BLOCK):
            yield memoryview(data)[start : start + _BLOCK]
            await asyncio.sleep(0)
        return
    try:
        if not data.is_file():
            raise UnreadableDocumentError(f"{name!r} is no file; expected a document.")
        with data.open("rb") as file:
            while block := await asyncio.to_thread(file.read, _BLOCK):
                yield block
    except OSError as error:
        raise UnreadableDocumentError(f"{name!r} cannot be read: {error.strerror}; send it again.") from error


async def _run(given: IO[bytes], name: str, max_bytes: int, limit_s: float) -> tuple[int, bytes, bytes]:
    """The process's end: its code, what it answered, what it complained of."""
    passed = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-B", "-X", "utf8", "-m", WORKER),
        stdin=given,
        stdout=PIPE,
        stderr=PIPE,
        cwd="/",
        env=passed | import_path(),
        start_new_session=True,  # a group of its own, which is killed whole
        limit=_BLOCK,
    )
    most = _OUTPUT_PER_BYTE * max_bytes + _OUTPUT_SPARE
    try:
        async with asyncio.timeout(limit_s):
            output, errors = await asyncio.gather(
                _taken(process.stdout, most, lambda: _kill(process)), _taken(process.stderr, _ERRORS_KEPT)
            )
            code = await process.wait()
    except TimeoutError:
        await _end(process)
        raise _too_slow(name, limit_s) from None
    except asyncio.CancelledError:
        await _end(process)
        raise
    if len(output) > most:
        raise UnreadableDocumentError(f"{name!r} has too much text; expected at most {max_bytes:,} characters.")
    return code, output, errors


async def _taken(
    stream: asyncio.StreamReader | None, most: int = 0, too_much: Callable[[], None] = lambda: None
) -> bytes:
    """What comes out of a pipe; it is read to its end, and little more than `most` is kept."""
    assert stream is not None
    taken = bytearray()
    while block := await stream.read(_BLOCK):
        if len(taken) <= most:
            taken += block
        else:
            too_much()
    return bytes(taken)


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _end(process: Process) -> None:
    """Kills it with all of its group, also where it has ended itself and left others behind."""
    _kill(process)
    with suppress(TimeoutError):
        async with asyncio.timeout(_GONE_S):
            await asyncio.gather(_taken(process.stdout), _taken(process.stderr), process.wait())


def _outcome(code: int, output: bytes, errors: bytes, name: str, limit_s: float, memory_mb: int) -> SourceText:
    """The text that a process has answered. Raises `UnreadableDocumentError`."""
    if code in (-signal.SIGALRM, -signal.SIGXCPU):
        raise _too_slow(name, limit_s)
    head, text = _parsed(output) if code == 0 else (None, "")
    if head is not None and "error" in head:
        raise UnreadableDocumentError(str(head["error"])[:_MESSAGE])
    if code == -signal.SIGKILL or (head is not None and head.get("out_of") == "memory"):
        raise UnreadableDocumentError(
            f"{name!r} takes more than {memory_mb:,} MB of memory to read; expected a file that takes less. Split it, "
            "or raise `parse_memory_mb` in hybridqa.toml."
        )
    if head is None:
        log.warning("the reader of %r ended with %d: %r", name, code, errors[-_MESSAGE:].decode("utf-8", "replace"))
    source = None if head is None else _source(head, text)
    if source is None:
        raise UnreadableDocumentError(
            f"{name!r} cannot be read: its reader ended with {_cause(code)}; expected a file that other programs open. "
            "Save it anew from one, then send it again."
        )
    return source


def _parsed(output: bytes) -> tuple[dict[str, Any] | None, str]:
    line, _, rest = output.partition(b"\n")
    try:
        head, text = json.loads(line), rest.decode("utf-8")
    except (ValueError, RecursionError):
        return None, ""
    return (head, text) if isinstance(head, dict) else (None, "")


def _source(head: dict[str, Any], text: str) -> SourceText | None:
    """What the answer says, where it is what a reader can have said."""
    match head:
        case {"title": str(title), "media_type": str(media_type), "headings": list(found)}:
            headings = tuple(heading for heading in map(_heading, found) if heading is not None)
            if len(headings) == len(found) and all(heading.start <= len(text) for heading in headings):
                return SourceText(one_line(normalise(title)), text, media_type, headings)
    return None


def _heading(found: object) -> Heading | None:
    match found:
        case [int(start), int(level), str(title)] if start >= 0:
            return Heading(start, level, one_line(normalise(title)))
    return None


def _cause(code: int) -> str:
    return signal.Signals(-code).name if -code in {one.value for one in signal.Signals} else str(code)


def _too_slow(name: str, limit_s: float) -> UnreadableDocumentError:
    return UnreadableDocumentError(
        f"{name!r} takes more than {limit_s:g} s to read; expected a file that takes less. Split it, or raise "
        "`parse_seconds` in hybridqa.toml."
    )
