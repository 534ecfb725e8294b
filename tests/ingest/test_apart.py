"""Reading in a process of its own: what comes back, what is passed on, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import textwrap
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docx
import pytest

from hybridqa.errors import UnreadableDocumentError
from hybridqa.ingest import apart
from hybridqa.ingest.apart import read_apart
from hybridqa.ingest.readers import SourceText, read_bytes
from hybridqa.ingest.source import Heading

LIMIT = 20_000_000


async def read(data: bytes | Path, name: str, **options: Any) -> SourceText:
    return await read_apart(data, name=name, **{"max_bytes": LIMIT, "limit_s": 60, "memory_mb": 1024, **options})


async def refused(data: bytes | Path, name: str, **options: Any) -> str:
    with pytest.raises(UnreadableDocumentError) as caught:
        await read(data, name, **options)
    assert repr(name) in str(caught.value)
    return str(caught.value)


def processes() -> set[int]:
    """The ids of all that this process has started and not yet buried, and what those have started."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() or int(fields[2]) in found:
            found.add(int(stat.parent.name))
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before, files = processes(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    assert processes() <= before
    assert len(os.listdir("/proc/self/fd")) <= files + 2  # noqa: PTH208  # the loop's own


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts other code in the place of the reader's process: what it may be once a file has taken it over."""

    def put(code: str) -> None:
        (tmp_path / "taken_over.py").write_text(textwrap.dedent(code))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(apart, "WORKER", "taken_over")

    return put  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", "Größe 😀\r\n\r\nzwei\x00\x00 Zeilen " + "mit etwas mehr Text " * 20),
        ("a.md", "---\ntitle: T\n---\n# One\ntext\n## Two\nmore"),
        ("a.html", "<title>A &amp; b</title><h1>Head</h1><p>text"),
        ("no ending", "<!doctype html><p>sniffed"),
        ('it\'s "q" \n \udc80.txt', "a name that JSON has to write otherwise"),
    ],
)
async def test_it_reads_what_is_read_in_process(name: str, content: str, tmp_path: Path) -> None:
    data = content.encode()
    expected = read_bytes(data, name=name, max_bytes=LIMIT)
    found = await read(data, name)
    assert (found.text, found.media_type, found.headings) == (expected.text, expected.media_type, expected.headings)
    assert found.title == expected.title.replace("\n ", "").replace("  ", " ")  # one line, whatever the name is
    (tmp_path / "spool").write_bytes(data)
    assert await read(tmp_path / "spool", name) == found


@pytest.mark.parametrize(("name", "data"), [("a.txt", b""), ("a.pdf", b"no pdf"), ("a.md", b"a\x00\x01" * 99)])
async def test_refusals_are_in_the_readers_own_words(name: str, data: bytes) -> None:
    with pytest.raises(UnreadableDocumentError) as caught:
        read_bytes(data, name=name, max_bytes=LIMIT)
    assert await refused(data, name) == str(caught.value)


async def test_what_is_too_large_starts_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(apart, "WORKER", "no.such.worker")
    assert "expected at most 10" in await refused(b"x" * 11, "a.txt", max_bytes=10)
    (tmp_path / "big").write_bytes(b"x" * 3_000_000)
    assert "expected at most 10" in await refused(tmp_path / "big", "a.txt", max_bytes=10)
    assert "no file" in await refused(tmp_path, "a.txt")
    assert "no file" in await refused(tmp_path / "missing", "a.txt")
    os.mkfifo(tmp_path / "pipe")
    assert "no file" in await refused(tmp_path / "pipe", "a.txt")
    with pytest.raises(UnreadableDocumentError, match="name of 5,000 characters"):
        await read(b"x", "n" * 5_000)


async def test_a_slow_file_is_ended() -> None:
    slow = ("* a\n" * 5_000_000).encode()
    begin = time.perf_counter()
    assert "takes more than 0.5 s" in await refused(slow[:LIMIT], "slow.md", limit_s=0.5)
    assert time.perf_counter() - begin < 3


def many_paragraphs() -> bytes:
    buffer = io.BytesIO()
    document = docx.Document()
    document.add_paragraph("word")
    document.save(buffer)
    out = io.BytesIO()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "word/document.xml":
                paragraph = b"<w:p><w:r><w:t>word</w:t></w:r></w:p>"
                content = content.replace(b"<w:sectPr", paragraph * 500_000 + b"<w:sectPr")
            target.writestr(name, content)
    return out.getvalue()


GREEDY = {
    "a.txt": lambda: b"a\n" * 10_000_000,
    "a.md": lambda: b"word *word*\n\n" * 200_000,
    "a.html": lambda: b"<p>word <b>word</b></p>" * 300_000,
    "a.docx": many_paragraphs,
}


@pytest.mark.parametrize("name", GREEDY)
async def test_a_file_that_takes_too_much_memory_is_ended_and_never_read_in_part(name: str) -> None:
    data = GREEDY[name]()
    for memory_mb in (100, 150, 200):
        assert f"takes more than {memory_mb} MB of memory" in await refused(data, name, memory_mb=memory_mb)
    assert len((await read(data, name)).text) > 2_000_000


async def test_cancelling_ends_it() -> None:
    slow = ("* a\n" * 5_000_000).encode()[:LIMIT]
    reading = asyncio.create_task(read(slow, "slow.md"))
    await asyncio.sleep(0.5)
    assert processes()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not processes()


async def test_cancelling_at_any_moment_ends_it() -> None:
    for delay in (0, 0.001, 0.003, 0.01, 0.03, 0.05, 0.1):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(delay):
                await read(("* a\n" * 300_000).encode(), "a.md")


async def test_slots_bound_how_many_read_at_once() -> None:
    slots = asyncio.Semaphore(2)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(processes()))
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    found = await asyncio.gather(*(read(f"text {n}".encode(), "a.txt", slots=slots) for n in range(6)))
    watching.cancel()
    assert [source.text for source in found] == [f"text {n}" for n in range(6)]
    assert most == 2


async def test_the_loop_goes_on_meanwhile() -> None:
    text = "Some words here. " * 1_170_000
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - begin)

    watching = asyncio.create_task(watch())
    assert len((await read(text.encode(), "a.txt")).text) > 19_000_000
    watching.cancel()
    assert longest < 0.25


def test_a_loop_of_another_thread_and_of_uvloop() -> None:
    """As a server runs it."""
    uvloop = pytest.importorskip("uvloop")
    found: list[Any] = []

    def serve() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found.append(runner.run(read(b"# H\nwords", "a.md")))
            found.append(runner.run(refused(("* a\n" * 2_000_000).encode(), "slow.md", limit_s=0.3)))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(60)
    assert found[0].headings == (Heading(0, 1, "H"),)
    assert "takes more than 0.3 s" in found[1]


async def test_it_is_told_no_secret(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDQA_GENERATOR_KEY", "sesame")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    worker(
        """
        import json, os, pathlib, sys
        seen = json.dumps(dict(os.environ)) + json.dumps(sys.argv) + os.getcwd()
        fds = [str(fd.readlink()) for fd in pathlib.Path("/proc/self/fd").iterdir() if fd.is_symlink()]
        print(json.dumps({"title": "", "media_type": "", "headings": []}))
        print(seen, fds, end="")
        """
    )
    text = (await read(b"x", "private-name.txt")).text
    assert "sesame" not in text
    assert "private-name" not in text  # others on the machine may list processes
    assert "memfd:upload" in text
    assert "socket" not in text
    assert "PYTHONPATH" in text


async def test_its_limits_are_set_before_it_looks_at_the_file(worker: Any, tmp_path: Path) -> None:
    worker(
        """
        import json, logging, os, resource
        from hybridqa.ingest import reader_process
        from hybridqa.ingest.source import SourceText

        def read_bytes(data, *, name, max_bytes):
            kinds = ("AS", "CPU", "FSIZE", "CORE", "NOFILE", "NPROC")
            said = {kind: resource.getrlimit(getattr(resource, "RLIMIT_" + kind)) for kind in kinds}
            said["nice"], said["group"] = os.nice(0), os.getpgid(0) == os.getpid()
            try:
                os.write(os.open(data, os.O_CREAT | os.O_WRONLY), b"written")
            except OSError as error:
                said["written"] = str(error)
            print("a library that prints")
            logging.getLogger("pypdf").warning("and one that logs")
            return SourceText("", json.dumps(said), "text/plain")

        reader_process.read_bytes = read_bytes
        reader_process.main()
        """
    )
    path = tmp_path / "written"
    said = json.loads((await read(os.fsencode(path), "a.txt", limit_s=9.5, memory_mb=300)).text)
    assert said["AS"] == [300 << 20, 364 << 20]
    assert said["CPU"] == [11, 12]
    assert said["FSIZE"] == said["CORE"] == said["NPROC"] == [0, 0]
    assert said["NOFILE"] == [64, 64]
    assert said["nice"] >= 10
    assert said["group"]
    assert "too large" in said["written"]
    assert path.stat().st_size == 0


async def test_it_imports_what_reading_needs_and_no_more(worker: Any) -> None:
    worker(
        """
        import json, sys
        from hybridqa.ingest import reader_process
        print(json.dumps({"title": "", "media_type": "", "headings": []}))
        print("loaded:", *sys.modules, end="")
        """
    )
    loaded = set((await read(b"x", "a.txt")).text.split())
    assert "hybridqa.ingest.readers" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "sqlite3", "pypdf", "docx", "lxml", "markdown_it", "asyncio"}


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
        ("raise SystemExit(7)", "ended with 7"),
        ("1 / 0", "ended with 1"),
        ("", "ended with 0"),
        ("print('no json')", "ended with 0"),
        ("print('[' * 100_000)", "ended with 0"),
        ("print('[1]')", "ended with 0"),
        ("print('{}')", "ended with 0"),
        ("import json; print(json.dumps({'title': 1, 'media_type': '', 'headings': []}))", "ended with 0"),
        ("import json; print(json.dumps({'title': '', 'media_type': '', 'headings': [[0, 1]]}))", "ended with 0"),
        ("import json; print(json.dumps({'title': '', 'media_type': '', 'headings': [[9, 1, 'a']]}))", "ended with 0"),
        ("import json; print(json.dumps({'title': '', 'media_type': '', 'headings': [[-1, 1, 'a']]}))", "ended with 0"),
        ("import json; print(json.dumps({'title': '', 'media_type': '', 'headings': {}}))", "ended with 0"),
        (
            "import json, sys; sys.stdout.buffer.write(json.dumps({'title': '', 'media_type': '', 'headings': []})"
            ".encode() + b'\\n\\xff\\xfe')",
            "ended with 0",
        ),
        ("import pickle, sys; sys.stdout.buffer.write(pickle.dumps(print))", "ended with 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "MB of memory"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "takes more than"),
        ("import signal, time; signal.alarm(1); time.sleep(9)", "takes more than"),
    ],
)
async def test_whatever_it_does_the_file_is_refused(
    worker: Any, code: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker(code)
    with caplog.at_level(logging.WARNING):
        assert cause in await refused(b"text", "hostile.pdf")
    if "ended" in cause and cause != "ended with 0":
        assert "hostile.pdf" in caplog.text


async def test_why_it_failed_is_in_the_log_on_one_line(worker: Any, caplog: pytest.LogCaptureFixture) -> None:
    worker("raise RuntimeError('the cause\\nof it ' + 'x' * 100_000)")
    await refused(b"text", "a.txt")
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 5_000


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.write(1, bytes(1 << 20))",
        "import os\nwhile True: os.write(1, b'{' + b' ' * (1 << 20))",
    ],
)
async def test_an_endless_answer_is_cut_off(worker: Any, code: str) -> None:
    worker(code)
    assert "too much text" in await refused(b"text", "a.txt", max_bytes=1_000_000)


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.write(2, bytes(1 << 20))",  # complains for ever
        "import os, time; os.close(1); os.close(2); time.sleep(60)",  # says that it is done, and stays
        "import os, time\nif os.fork() == 0: time.sleep(60)",  # leaves a child behind that holds the pipe
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
    ],
)
async def test_whoever_stays_is_ended_with_all_it_started(worker: Any, code: str) -> None:
    worker(code)
    begin = time.perf_counter()
    assert "takes more than 1 s" in await refused(b"text", "a.txt", limit_s=1)
    assert time.perf_counter() - begin < 3


async def test_an_error_of_the_process_is_a_short_one(worker: Any) -> None:
    worker("import json; print(json.dumps({'error': \"'a.txt' \" + 'x' * 100_000}))")
    assert len(await refused(b"text", "a.txt")) <= 2_000
