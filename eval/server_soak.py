"""Whether a server that works for an hour keeps its memory.

    make demo && python eval/server_soak.py [--minutes 60] [--store demo-store] [--output FILE]

Over a copy of the store a real `hybridqa serve` answers clients without a pause: whole answers, streams, streams that
are left, uploads, replacements and removals. Its resident memory is read every quarter of a minute. The record has the
growth over the second half, in MB an hour, as a straight line's slope with the interval of its error (Student's t over
the means of twenty stretches, since neighbouring readings are alike).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from scipy import stats
from serving import Served, chat, questions_of

from hybridqa.files import atomic_write_text
from hybridqa.provenance import commit, hardware

STRETCHES = 20
MODES = ("hybridqa", "hybridqa-retrieval", "hybridqa-modules", "hybridqa-closed")


class Clients:
    """Clients of a server, each on a thread of its own, until they are told to stop."""

    def __init__(self, url: str, questions: Sequence[str], seed: int) -> None:
        self._url = url
        self._questions = questions
        self._seed = seed
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def start(self) -> None:
        """Begins."""
        for number, work in enumerate((self.ask, self.stream, self.leave, self.write)):
            thread = threading.Thread(target=self._looped, args=(work, number))
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Ends, when the requests in work have."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _looped(self, work: Callable[[httpx.Client, random.Random], None], number: int) -> None:
        chance = random.Random(self._seed * 1000 + number)
        with httpx.Client(base_url=self._url, timeout=300) as client:
            while not self._over.is_set():
                try:
                    work(client, chance)
                    self.counts[work.__name__] += 1
                except (httpx.HTTPError, KeyError, ValueError) as error:
                    self.failures.append(f"{work.__name__}: {type(error).__name__}: {error}"[:300])

    def ask(self, client: httpx.Client, chance: random.Random) -> None:
        """A whole answer."""
        body = chat(chance.choice(self._questions), chance.choice(MODES))
        client.post("/v1/chat/completions", json=body).raise_for_status()

    def stream(self, client: httpx.Client, chance: random.Random) -> None:
        """An answer as it is written."""
        self._streamed(client, chance, None)

    def leave(self, client: httpx.Client, chance: random.Random) -> None:
        """An answer that is left after some of it."""
        self._streamed(client, chance, chance.randrange(0, 10))

    def _streamed(self, client: httpx.Client, chance: random.Random, left: int | None) -> None:
        body = {**chat(chance.choice(self._questions)), "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            stream.raise_for_status()
            for count, _ in enumerate(stream.iter_lines()):
                if left is not None and count >= left:
                    break

    def write(self, client: httpx.Client, chance: random.Random) -> None:
        """A file that is uploaded, and removed again sometimes."""
        name = f"soak-{chance.randrange(40)}.md"
        words = " ".join(chance.choice(self._questions) for _ in range(chance.randrange(5, 200)))
        client.post("/v1/documents", files={"file": (name, f"# {name}\n\n{words}".encode())}).raise_for_status()
        if chance.random() < 0.5:
            client.delete(f"/v1/documents/{name}").raise_for_status()
        time.sleep(0.5)


def slope(seconds: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """The straight line through the means of the stretches, in units an hour, and its 95% interval."""
    size = max(1, len(values) // STRETCHES)
    hours = [statistics.fmean(seconds[at : at + size]) / 3600 for at in range(0, len(values) - size + 1, size)]
    means = [statistics.fmean(values[at : at + size]) for at in range(0, len(values) - size + 1, size)]
    if max(means) == min(means):
        return {"mean": 0.0, "low": 0.0, "high": 0.0}
    line = stats.linregress(hours, means)
    half = stats.t.ppf(0.975, len(means) - 2) * line.stderr
    return {"mean": float(line.slope), "low": float(line.slope - half), "high": float(line.slope + half)}


def main() -> None:
    """Runs it and writes the record; ends with 1 when a request failed."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--store", type=Path, default=Path("demo-store"))
    known.add_argument("--minutes", type=float, default=60)
    known.add_argument("--every", type=float, default=15, help="seconds between two readings")
    known.add_argument("--seed", type=int, default=0)
    known.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "server_soak.json")
    options = known.parse_args()
    questions = [one["question"] for one in questions_of(Path(__file__).parents[1] / "examples" / "questions.jsonl")]
    readings: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        shutil.copytree(options.store, store)
        with Served(store, {}, Path(folder, "log")) as server:
            clients = Clients(server.url, questions, options.seed)
            clients.start()
            began = time.monotonic()
            try:
                while (passed := time.monotonic() - began) < options.minutes * 60:
                    readings.append((passed, server.memory_mb()))
                    time.sleep(options.every)
            finally:
                clients.stop()
            time.sleep(1)
            left = server.metric("hybridqa_requests_open") - 1
    record: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "hardware": hardware(),
        "seed": options.seed,
        "minutes": options.minutes,
        "counts": dict(sorted(clients.counts.items())),
        "failures": clients.failures,
        "open_requests": left,
        "memory_mb": {
            "first": readings[0][1],
            "half": readings[len(readings) // 2][1],
            "last": readings[-1][1],
            "most": max(value for _, value in readings),
        },
        "readings": [[round(at), round(value, 1)] for at, value in readings],
    }
    second_half = readings[len(readings) // 2 :]
    if len(second_half) >= 3:
        record["growth_mb_an_hour"] = slope(*zip(*second_half, strict=True))
    atomic_write_text(options.output, json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: value for key, value in record.items() if key != "readings"}, indent=2))
    if clients.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
