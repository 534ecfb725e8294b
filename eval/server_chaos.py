"""What a server loses when everything goes wrong at once: nothing, or this says what.

    make demo && python eval/server_chaos.py [--seconds 300] [--store demo-store] [--output FILE]

Over a copy of the store a real `hybridqa serve` answers while clients ask and stream, others hang up in the middle of a
stream, documents are added, replaced and removed, and module versions are put into service and out of it. By turns the
server (which is started anew) and its engine's process (which it must start anew) are killed with SIGKILL. Then it is
looked at: is every document that was acknowledged there, word for word, and none that was removed? Was each answer of a
module that of one version? Is any request left?
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from serving import Served, chat

from hybridqa import HybridQA
from hybridqa.files import atomic_write_text
from hybridqa.modules.manifest import read_manifest
from hybridqa.provenance import commit, hardware

DOWN = (httpx.TransportError, json.JSONDecodeError)  # what a client sees of a server that was killed
ENDED = "the engine's process has ended by itself (signal 9)"
WORDS = "amber birch cedar delta ember fjord grove heath inlet jetty knoll lagoon".split()


@dataclass
class Ledger:
    """What the clients were told, and what came of it."""

    held: dict[str, str] = field(default_factory=dict)  # id → the text that was acknowledged last
    unsure: dict[str, set[str | None]] = field(default_factory=dict)  # id → what it may also be: no reply came
    answers: list[tuple[str, str]] = field(default_factory=list)  # module version, text
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def fault(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what)


class Chaos:
    """Clients of one server, each on a thread of its own, until they are told to stop."""

    def __init__(self, server: Served, questions: list[str], module_id: str, versions: list[int], seed: int) -> None:
        self.server = server
        self.questions = questions
        self.module_id = module_id
        self.versions = versions
        self.seed = seed
        self.ledger = Ledger()
        self.over = threading.Event()

    def run(self, seconds: float, kill_every_s: float) -> None:
        """Sets all of them loose."""
        clients = [self.ask, self.ask, self.ask_a_module, self.hang_up, self.write, self.write, self.roll]
        threads = [threading.Thread(target=self._looped, args=(work, n)) for n, work in enumerate(clients)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        chance = random.Random(self.seed)
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, kill_every_s * chance.uniform(0.7, 1.3)))
            if time.monotonic() < until:
                if self.ledger.counts["killed"] > self.ledger.counts["engine killed"]:
                    self.ledger.count("engine killed")  # before it is: what follows is its doing
                    self.server.kill_engine()
                else:
                    self.server.kill()
                    self.ledger.count("killed")
                    self.server.start()
        self.over.set()
        for thread in threads:
            thread.join()

    def _looped(self, work: Callable[[httpx.Client, random.Random, int], None], number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        with httpx.Client(base_url=self.server.url, timeout=120) as client:
            while not self.over.is_set():
                try:
                    work(client, chance, number)
                except DOWN:
                    self.ledger.count("cut off")
                    time.sleep(0.2)
                except Exception as error:  # noqa: BLE001  # a fault of the server's, or of this script's
                    self.ledger.fault(f"{work.__name__}: {type(error).__name__}: {error}")

    def ask(self, client: httpx.Client, chance: random.Random, _: int) -> None:
        """A whole answer; what it cites must be in the document, as it was or as it is."""
        done = client.post("/v1/chat/completions", json=chat(chance.choice(self.questions)))
        self._answered(done)

    def ask_a_module(self, client: httpx.Client, chance: random.Random, _: int) -> None:
        """Which version answered, and what it said."""
        done = client.post("/v1/chat/completions", json=chat(self.questions[0], "hybridqa-modules"))
        if (reply := self._answered(done)) and reply["hybridqa"]["modules"]:
            [module] = reply["hybridqa"]["modules"]
            with self.ledger.lock:
                self.ledger.answers.append((module["module"], reply["choices"][0]["message"]["content"]))

    def hang_up(self, client: httpx.Client, chance: random.Random, _: int) -> None:
        """A stream that is left after a few of its lines."""
        body = {**chat(chance.choice(self.questions)), "stream": True}
        left = chance.randrange(0, 12)
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            for line in stream.iter_lines():
                left -= bool(line)
                if left <= 0:
                    break
        self.ledger.count("hung up")

    def write(self, client: httpx.Client, chance: random.Random, number: int) -> None:
        """A document that is added, replaced or removed; when that has returned, it is so."""
        name = f"chaos-{number}-{chance.randrange(6)}"  # of this client alone
        code = f"{chance.choice(WORDS)}-{chance.randrange(10**6)}"
        ledger = self.ledger
        before = ledger.held.get(name)
        if before is not None and chance.random() < 0.3:
            self._unsure(name, None)
            done = client.delete(f"/v1/documents/{name}")
            if done.status_code == 404 and before not in ledger.unsure[name]:
                ledger.fault(f"{name} was acknowledged and is gone")
            self._sure(name, None)
            if client.get(f"/v1/documents/{name}").status_code != 404:
                ledger.fault(f"{name} was removed and is there")
            ledger.count("removed")
            return
        text = f"The password of the {chance.choice(WORDS)} gate, noted by client {number}, is {code}."
        self._unsure(name, text)
        done = client.post("/v1/documents", json={"id": name, "text": text})
        if done.status_code != 200:
            ledger.fault(f"{name} could not be added: {done.status_code} {done.text[:200]}")
            return
        self._sure(name, text)
        ledger.count("written")
        found = client.post("/v1/search", json={"query": text, "k": 5}).json()["data"]
        if not any(one["doc_id"] == name and code in one["text"] for one in found):
            ledger.fault(f"{name} was acknowledged and is not found")

    def roll(self, client: httpx.Client, chance: random.Random, _: int) -> None:
        """Another version into service."""
        body = {"version": chance.choice(self.versions)}
        done = client.post(f"/v1/modules/{self.module_id}/rollback", json=body)
        if done.status_code != 200:
            self.ledger.fault(f"rollback: {done.status_code} {done.text[:200]}")
        self.ledger.count("rolled")
        time.sleep(chance.uniform(0.1, 0.6))

    def _answered(self, done: httpx.Response) -> dict[str, Any] | None:
        if done.status_code == 503 and "retry-after" in done.headers:
            self.ledger.count("sent away")
            return None
        if done.status_code == 503 and ENDED in done.text and self.ledger.counts["engine killed"]:
            self.ledger.count("lost with the engine")
            return None
        if done.status_code != 200:
            self.ledger.fault(f"answer: {done.status_code} {done.text[:200]}")
            return None
        self.ledger.count("answered")
        reply: dict[str, Any] = done.json()
        return reply

    def _unsure(self, name: str, text: str | None) -> None:
        self.ledger.unsure.setdefault(name, {self.ledger.held.get(name)}).add(text)

    def _sure(self, name: str, text: str | None) -> None:
        del self.ledger.unsure[name]
        if text is None:
            self.ledger.held.pop(name, None)
        else:
            self.ledger.held[name] = text

    def settle(self) -> dict[str, Any]:
        """After the storm, with the server alive: what is left open, and which version said what."""
        until = time.monotonic() + 30
        while (left := self.server.metric("hybridqa_requests_open") - 1) > 0 and time.monotonic() < until:
            time.sleep(0.1)
        said: dict[str, str] = {}
        with httpx.Client(base_url=self.server.url, timeout=120) as client:
            for version in self.versions:
                client.post(f"/v1/modules/{self.module_id}/rollback", json={"version": version})
                reply = client.post("/v1/chat/completions", json=chat(self.questions[0], "hybridqa-modules")).json()
                [module] = reply["hybridqa"]["modules"]
                said[module["module"]] = reply["choices"][0]["message"]["content"]
        mixed = [
            (version, text)
            for version, text in self.ledger.answers
            if max(said, key=lambda name: (alike(said[name], text), name == version)) != version
        ]
        return {
            "open_requests": left,
            "versions_that_answered": dict(Counter(version for version, _ in self.ledger.answers)),
            "different_texts_of_versions": len(set(said.values())),
            "mixed_answers": mixed,
        }


def alike(one: str, other: str) -> int:
    """How many characters they begin with alike."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def lost(store: Path, ledger: Ledger, settings: Mapping[str, Any]) -> list[str]:
    """What the store, opened anew, does not hold as it was acknowledged."""
    found = []
    with HybridQA.open(store, **settings) as qa:
        found += qa.catalog.check()
        there = {one.doc_id for one in qa.documents() if one.doc_id.startswith("chaos-")}
        for name in sorted(there | set(ledger.held) | set(ledger.unsure)):
            document = qa.catalog.find_document("default", name)
            text = None if document is None else document.text
            allowed = ledger.unsure.get(name, {ledger.held.get(name)})
            if text not in allowed:
                found.append(f"{name}: {text!r}, expected one of {allowed!r}")
    return found


def with_versions(store: Path, settings: Mapping[str, Any]) -> tuple[str, list[int]]:
    """A document's module in the store with three versions: as it is, turned round, and halved."""
    from safetensors.torch import load_file, save_file

    with HybridQA.open(store, **settings) as qa:
        [module] = [one for one in qa.modules() if one.current and "lumen-kettle.md" in one.documents]
        versions = [module.version]
        for factor in (-1.0, 0.5):
            with tempfile.TemporaryDirectory() as folder:
                staged = Path(folder, "staged")
                shutil.copytree(module.path, staged)
                file = staged / "adapter_model.safetensors"
                weights = {key: value * factor if "lora_B" in key else value for key, value in load_file(file).items()}
                save_file(weights, file, metadata={"format": "pt"})
                versions.append(qa.registry.publish(staged, read_manifest(module.path), True).version)
    return module.module_id, versions


def main() -> None:
    """Runs it, writes the record, and ends with 1 when anything was wrong."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--store", type=Path, default=Path("demo-store"))
    known.add_argument("--seconds", type=float, default=300)
    known.add_argument("--kill-every", type=float, default=40)
    known.add_argument("--seed", type=int, default=0)
    known.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "server_chaos.json")
    options = known.parse_args()
    settings = {"dtype": "float32", "max_answer_tokens": 32}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        shutil.copytree(options.store, store)
        module_id, versions = with_versions(store, settings)
        lines = (Path(__file__).parents[1] / "examples" / "questions.jsonl").read_text().splitlines()
        asked = [json.loads(line) for line in lines]
        asked.sort(key=lambda one: "lumen-kettle.md" not in one["doc_ids"])  # the first is of the module's document
        with Served(store, settings, Path(folder, "log")) as server:
            chaos = Chaos(server, [one["question"] for one in asked], module_id, versions, options.seed)
            chaos.run(options.seconds, options.kill_every)
            after = chaos.settle()
        missing = lost(store, chaos.ledger, settings)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "hardware": hardware(),
        "settings": settings,
        "seed": options.seed,
        "seconds": options.seconds,
        "counts": dict(sorted(chaos.ledger.counts.items())),
        "documents_acknowledged": len(chaos.ledger.held),
        "documents_without_a_reply": len(chaos.ledger.unsure),
        "lost_or_changed": missing,
        "faults": chaos.ledger.wrong,
        **after,
    }
    atomic_write_text(options.output, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps({key: record[key] for key in list(record)[5:]}, indent=2, ensure_ascii=False))
    if missing or chaos.ledger.wrong or after["mixed_answers"] or after["open_requests"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
