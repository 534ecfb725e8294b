"""Measures what a trainer takes from a server on the same cores, and what the server leaves to the trainer.

    python eval/trainer_beside_server.py [--server own stock] [--paces ...] [--repeats 8] [--output FILE]

A real engine answers (`own`: in a process of its own, as `hybridqa serve` has it; `stock`: vLLM's own server) while the
trainer's process distils a document without end. The trainer is stopped (SIGSTOP) for one half of each repetition and
goes on in the other, in turns the first and the second half, so that both halves have the same machine. Decode speed
counts tokens after each request's first. Then the trainer's steps are counted for a while, with the server at rest and
never at rest. `built in` is the trainer as it is; the other paces are what it could do instead. The machine must be
quiet. Prints a table and writes a JSON record.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybridqa.config import Settings
from hybridqa.engine.environment import prepare_environment
from hybridqa.engine.protocol import Engine, Sampling
from hybridqa.evaluation.provenance import command_line
from hybridqa.evaluation.statistics import ratio_interval
from hybridqa.files import atomic_write_text
from hybridqa.models import DEFAULT_MODEL, ModelFolder, resolve_model
from hybridqa.provenance import commit, hardware
from hybridqa.training.facts import find_facts
from hybridqa.training.lesson import Job
from hybridqa.training.pairs import ask_pair
from hybridqa.training.process import environment
from hybridqa.training.recipe import Recipe
from hybridqa.training.synthesis import Curriculum

DOCUMENT = Path(__file__).parent.parent / "examples" / "corpus" / "lumen-kettle.md"
WORKER = (
    "import sys, os; from hybridqa.training import assignment, pace, worker; worker.end_with_parent(); "
    "assignment.SAY_EVERY = 0; "  # every step is told
)
RUN = "; sys.exit(worker.main(sys.argv[1:]))"
PACES = {  # what the trainer's process does before it works
    "built in": "pace.step_back()",
    "none": "pass",
    "nice 19": "os.nice(19); open('/proc/self/autogroup', 'w').write('19')",
    "idle": "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); open('/proc/self/autogroup', 'w').write('19')",
}
LENGTH = 1024
SETTLE_S = 1.0
STEPS_S = 20.0  # how long the trainer's steps are counted


def main() -> None:
    """Measures every server with every pace, and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", nargs="+", choices=("own", "stock"), default=["own", "stock"])
    parser.add_argument("--paces", nargs="+", choices=list(PACES), default=list(PACES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4], help="requests at once")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "trainer_beside_server.json")
    options = parser.parse_args()
    prepare_environment()  # before anything imports torch, as `hybridqa serve` does
    model = resolve_model(DEFAULT_MODEL, Settings().cache_dir)
    begun = time.perf_counter()
    arms: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        job_in(Path(folder), model)
        for server in options.server:
            arms[server] = asyncio.run(measure(server, model, Path(folder), options))
    result = {
        "command": command_line(),
        "commit": commit(),
        "hardware": {**hardware(), "cores": sorted(os.sched_getaffinity(0)), "load": os.getloadavg()[0]},
        "model": {"name": model.name, "hash": model.hash},
        "seed": options.seed,
        "settings": {
            "tokens": options.tokens,
            "repeats": options.repeats,
            "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
        },
        "unit": {"decode": "tokens a second", "trainer": "steps a second", "share": "beside / alone, 95% by bootstrap"},
        "servers": arms,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    atomic_write_text(options.output, json.dumps(result, indent=2) + "\n")
    print(table(arms))


def job_in(folder: Path, model: ModelFolder) -> None:
    """A job that outlasts every measurement: the facts of one document, asked for by rule."""
    text = DOCUMENT.read_text(encoding="utf-8")
    pairs = tuple(ask_pair(fact) for fact in find_facts([text]))
    Job(
        collection="default",
        doc_id=DOCUMENT.name,
        content_hash="measured",
        module_id="measured",
        model_name=model.name,
        model_path=str(model.path),
        model_hash=model.hash,
        context_tokens=LENGTH,
        max_model_len=2 * LENGTH,
        recipe=asdict(Recipe(steps=1_000_000)),
        curriculum=Curriculum(DOCUMENT.stem, (text[:1500],), pairs[4:], pairs[:4], {}),
    ).save(folder / "job")


class RunningTrainer:
    """The trainer's process, which counts its steps as it takes them."""

    def __init__(self, pace: str, folder: Path) -> None:
        words = [sys.executable, "-P", "-c", f"{WORKER}{PACES[pace]}{RUN}", str(folder / "job")]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), start_new_session=True
        )
        self.steps = 0
        self._begun = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line) if line.startswith(b"{") else {}
            if event.get("stage") in ("failed", "done"):
                sys.exit(f"the trainer ended: {event}")
            if event.get("stage") == "train":
                self.steps = event["step"]
                if self.steps > 1:
                    self._begun.set()

    def wait(self) -> None:
        """Returns when it takes steps."""
        while not self._begun.wait(1):
            if self._process.poll() is not None:
                sys.exit("the trainer's process ended")

    def pause(self, stopped: bool) -> None:
        """Stops it or has it go on."""
        os.kill(self._process.pid, signal.SIGSTOP if stopped else signal.SIGCONT)

    def end(self) -> None:
        """Kills it: nothing of it is kept."""
        self._process.kill()
        self._process.wait()


async def measure(kind: str, model: ModelFolder, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One server beside a trainer of every pace."""
    found: dict[str, Any] = {}
    async with serving(kind, model, folder, options.seed) as engine:
        draw = random.Random(options.seed)
        for batch in options.batches:
            await rate(engine, draw, batch, 4)  # warm
        for pace in options.paces:
            trainer = RunningTrainer(pace, folder)
            try:
                await asyncio.to_thread(trainer.wait)
                found[pace] = await beside(engine, trainer, draw, options)
            finally:
                trainer.end()
            shares = ", ".join(
                f"batch {batch} {found[pace]['decode'][str(batch)]['share']}" for batch in options.batches
            )
            sys.stderr.write(f"{kind}, {pace}: {shares}, trainer {found[pace]['trainer']}\n")
    return found


async def beside(
    engine: Engine, trainer: RunningTrainer, draw: random.Random, options: argparse.Namespace
) -> dict[str, Any]:
    """Decode speeds with the trainer stopped and at work, and its steps with the server busy and at rest."""
    speeds: dict[int, dict[bool, list[float]]] = {batch: {True: [], False: []} for batch in options.batches}
    for repeat in range(options.repeats):
        for batch in options.batches:
            for stopped in (True, False) if repeat % 2 else (False, True):
                trainer.pause(stopped)
                await asyncio.sleep(SETTLE_S)
                speeds[batch][stopped].append(await rate(engine, draw, batch, options.tokens))
    trainer.pause(False)
    steps, begun = trainer.steps, time.perf_counter()
    await asyncio.sleep(STEPS_S)
    rates = [(trainer.steps - steps) / (time.perf_counter() - begun)]
    steps, begun = trainer.steps, time.perf_counter()
    while time.perf_counter() - begun < STEPS_S:
        await rate(engine, draw, max(options.batches), options.tokens)
    rates.append((trainer.steps - steps) / (time.perf_counter() - begun))
    decode = {}
    for batch, both in speeds.items():
        share = ratio_interval(both[False], both[True], seed=options.seed)
        decode[str(batch)] = {
            "alone": [round(value, 1) for value in both[True]],
            "beside": [round(value, 1) for value in both[False]],
            "share": [round(value, 3) for value in (share.mean, share.low, share.high)],
        }
    at_rest, busy = (round(value, 3) for value in rates)
    return {"decode": decode, "trainer": {"server at rest": at_rest, "server busy": busy}}


async def rate(engine: Engine, draw: random.Random, batch: int, tokens: int) -> float:
    """Tokens a second after each request's first, of random prompts without an adapter."""
    sampling = Sampling(max_tokens=tokens, temperature=1.0, seed=draw.randrange(1 << 30))
    prompts = [[draw.randrange(100, 40000) for _ in range(8)] for _ in range(batch)]
    begun = time.perf_counter()
    made = await asyncio.gather(*(engine.generate(ids, sampling) for ids in prompts))
    total = time.perf_counter() - begun
    after = sum(completion.usage.completion_tokens - 1 for completion in made)
    return after / max(total - max(completion.first_token_s for completion in made), 1e-9)


@asynccontextmanager
async def serving(kind: str, model: ModelFolder, folder: Path, seed: int) -> AsyncIterator[Engine]:
    """The engine of a server of this kind, started."""
    process = None
    if kind == "own":
        from hybridqa.engine.vllm import VllmEngine

        engine: Engine = VllmEngine(model, max_model_len=LENGTH, max_lora_rank=16, seed=seed, apart=True)
    else:
        from hybridqa.engine.remote import RemoteEngine

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = stock_server(model, port, folder / "server.log")
        engine = RemoteEngine(model, [f"http://127.0.0.1:{port}"], max_model_len=LENGTH, max_lora_rank=16)
    try:
        await started(engine, process)
        yield engine
        await engine.close()
    finally:
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def started(engine: Engine, process: subprocess.Popen[bytes] | None) -> None:
    """Returns when the engine answers; a server process takes half a minute."""
    from hybridqa.errors import EngineError

    while True:
        try:
            return await engine.start()
        except EngineError:
            if process is None or process.poll() is not None:
                raise
            await asyncio.sleep(1)


def stock_server(model: ModelFolder, port: int, log: Path) -> subprocess.Popen[bytes]:
    """vLLM's own server, as README starts it, in a session of its own as a service manager would have it."""
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model.path), "--port", str(port)]
    words += ["--host", "127.0.0.1", "--enable-lora", "--max-lora-rank", "16", "--enforce-eager"]
    words += ["--max-model-len", str(LENGTH), "--kv-cache-memory-bytes", str(256 << 20)]
    words += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048"]
    given = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, *words], env=given, stdout=file, stderr=file, start_new_session=True)


def table(arms: dict[str, Any]) -> str:
    """Markdown."""
    batches = list(next(iter(next(iter(arms.values())).values()))["decode"])
    head = "".join(f" decode left, batch {batch} |" for batch in batches)
    lines = [
        f"| server | trainer |{head} trainer's steps/s, server at rest | busy |",
        "|---|---|" + "---|" * (len(batches) + 2),
    ]
    for server, paces in arms.items():
        for pace, found in paces.items():
            shares = [found["decode"][batch]["share"] for batch in batches]
            cells = "".join(f" {mean:.2f} ({low:.2f}-{high:.2f}) |" for mean, low, high in shares)
            steps = found["trainer"]
            lines.append(f"| {server} | {pace} |{cells} {steps['server at rest']} | {steps['server busy']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
