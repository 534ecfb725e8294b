"""What the whole pipeline costs beside the engine alone: time to first token, tokens and requests a second.

    make demo && python eval/server_load.py [--store demo-store] [--repeats 5] [--output FILE]

Two servers in turn, asked by the real `openai` client from a process of its own on loopback, with the same questions:

- `hybridqa serve` embeds, retrieves, routes, composes, answers and cites;
- vLLM's own server (`python -m vllm.entrypoints.openai.api_server`) gets the finished prompts as token ids, and the
  composed stacks by name, with the same settings of the engine.

vLLM's server leaves one core free for itself; OMP_NUM_THREADS=1 gives hybridqa's engine as few threads on two cores.
Every repetition asks all questions once at each number of clients, in another order, hybridqa and vLLM by turns; stacks
and prompts are warm, so that a request has little to hide its costs behind. The intervals are of the differences
between the two in a repetition (Student's t).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from scipy import stats
from serving import START_S, Served, questions_of

from hybridqa import HybridQA
from hybridqa.engine.environment import prepare_environment
from hybridqa.engine.vllm_args import VllmSettings, _arguments, context_length
from hybridqa.files import atomic_write_text
from hybridqa.models import ModelFolder
from hybridqa.provenance import commit, hardware

SETTINGS: dict[str, Any] = {"max_answer_tokens": 64, "abstain_below": 0.0, "max_stacks": 6, "kv_cache_mb": 512}
MAX_REQUESTS = 32  # as `VllmEngine` has it


async def prompts_of(qa: HybridQA, questions: Sequence[str]) -> list[dict[str, Any]]:
    """What hybridqa asks its engine for each question."""
    found = []
    for question in questions:
        async with qa._planned(question, {}) as (_, plan):
            assert plan.prompt is not None
            stack = None if plan.adapter is None else {"name": plan.adapter.name, "path": str(plan.adapter.path)}
            found.append(
                {"prompt": list(plan.prompt.token_ids), "max_tokens": plan.sampling.max_tokens, "stack": stack}
            )
    return found


def flags_of(model: ModelFolder, rank: int) -> list[str]:
    """The settings of hybridqa's engine as vLLM's server takes them."""
    settings = VllmSettings(
        dtype="auto",
        max_model_len=context_length(model.path, 4096),
        max_lora_rank=rank,
        max_stacks=SETTINGS["max_stacks"],
        kv_cache_mb=SETTINGS["kv_cache_mb"],
        max_requests=MAX_REQUESTS,
        seed=0,
    )
    flags: list[str] = []
    for name, value in _arguments(model, settings, cpu=True).items():
        flag = name.replace("_", "-")
        if name == "use_tqdm_on_load" or value is None:
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return flags


@contextmanager
def stock_server(flags: Sequence[str], stacks: dict[str, str], log: Path) -> Iterator[tuple[str, int]]:
    """vLLM's own server with the stacks loaded; its address and its process group."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", "base", *flags]
    command += ["--lora-modules", *(f"{name}={path}" for name, path in stacks.items())]
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with log.open("ab") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
    try:
        until = time.monotonic() + START_S
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"vLLM's server did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


# The clients, in a process of their own


async def load(url: str, kind: str, asks: Sequence[dict[str, Any]], clients: int) -> dict[str, Any]:
    """Asks everything once, so many at once; what each took."""
    waiting = list(asks)
    found: list[dict[str, Any]] = []

    async def one(client: AsyncOpenAI) -> None:
        while waiting:
            ask = waiting.pop()
            began = time.perf_counter()
            first, tokens = None, 0
            if kind == "hybridqa":
                stream: Any = await client.chat.completions.create(
                    model="hybridqa",
                    messages=[{"role": "user", "content": ask["question"]}],
                    stream=True,
                    stream_options={"include_usage": True},
                )
            else:
                stream = await client.completions.create(
                    model=ask["stack"]["name"] if ask["stack"] else "base",
                    prompt=ask["prompt"],
                    max_tokens=ask["max_tokens"],
                    temperature=0,
                    stream=True,
                    stream_options={"include_usage": True},
                    extra_body={"logprobs": 0},  # as hybridqa asks its engine
                )
            async for chunk in stream:
                if chunk.choices and first is None:
                    said = chunk.choices[0]
                    if said.delta.content if kind == "hybridqa" else said.text:
                        first = time.perf_counter() - began
                if chunk.usage is not None:
                    tokens = chunk.usage.completion_tokens
            found.append({"first_s": first, "tokens": tokens, "total_s": time.perf_counter() - began})

    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        seconds = time.perf_counter() - began
    firsts = sorted(one["first_s"] for one in found if one["first_s"] is not None)
    tokens = sum(one["tokens"] for one in found)
    return {
        "requests": len(found),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "requests_per_s": len(found) / seconds,
        "first_token_s": {"p50": _quantile(firsts, 0.5), "p95": _quantile(firsts, 0.95)},
    }


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def from_another_process(url: str, kind: str, asks: Sequence[dict[str, Any]], clients: int) -> dict[str, Any]:
    """`load` in a process of its own."""
    command = [sys.executable, __file__, "--load", json.dumps({"url": url, "kind": kind, "clients": clients})]
    done = subprocess.run(command, input=json.dumps(asks), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def compared(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The two servers' means, and hybridqa's difference with its interval, at one number of clients."""

    def of(kind: str, *path: str) -> list[float]:
        values = []
        for run in runs:
            value: Any = run[kind]
            for name in path:
                value = value[name]
            values.append(float(value))
        return values

    report: dict[str, Any] = {}
    for path in (("first_token_s", "p50"), ("first_token_s", "p95"), ("tokens_per_s",), ("requests_per_s",)):
        ours, theirs = of("hybridqa", *path), of("vllm", *path)
        seconds = path[0] == "first_token_s"
        differences = [a - b if seconds else 1 - a / b for a, b in zip(ours, theirs, strict=True)]
        report["_".join(path)] = {
            "hybridqa": statistics.fmean(ours),
            "vllm": statistics.fmean(theirs),
            "cost_s" if seconds else "cost_share": interval(differences),
        }
    return report


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95% interval by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean}
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def main() -> None:
    """Runs both servers by turns and writes the record."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--store", type=Path, default=Path("demo-store"))
    known.add_argument("--repeats", type=int, default=5)
    known.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    known.add_argument("--questions", type=int, default=40)
    known.add_argument("--seed", type=int, default=0)
    known.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "server_load.json")
    known.add_argument("--load", help=argparse.SUPPRESS)
    options = known.parse_args()
    if options.load:
        given = json.loads(options.load)
        print(json.dumps(asyncio.run(load(given["url"], given["kind"], json.load(sys.stdin), given["clients"]))))
        return
    prepare_environment()  # both servers inherit it
    file = Path(__file__).parents[1] / "examples" / "questions.jsonl"
    questions = [one["question"] for one in questions_of(file)][: options.questions]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        shutil.copytree(options.store, store)
        with HybridQA.open(store, engine="reference", **SETTINGS) as qa:  # plans alone: no engine is started
            asks = qa.run(prompts_of(qa, questions))
            model, rank = qa.model, qa.settings.max_lora_rank
            stacks = {ask["stack"]["name"]: ask["stack"]["path"] for ask in asks if ask["stack"]}
            asks = [{**ask, "question": question} for ask, question in zip(asks, questions, strict=True)]
            log = Path(folder, "log")
            with Served(store, SETTINGS, log) as ours, stock_server(flags_of(model, rank), stacks, log) as theirs:
                assert ours.process is not None
                servers = {"hybridqa": (f"{ours.url}/v1", ours.process.pid), "vllm": theirs}
                runs = by_turns(servers, asks, options)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "hardware": hardware(),
        "model": {"name": model.name, "hash": model.hash},
        "seed": options.seed,
        "settings": {**SETTINGS, "max_requests": MAX_REQUESTS, "max_lora_rank": rank},
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),  # None: each server's own choice
        "questions": len(asks),
        "stacks": len(stacks),
        "prompt_tokens": statistics.fmean(len(ask["prompt"]) for ask in asks),
        "repeats": options.repeats,
        "scores": {str(clients): compared(runs[clients]) for clients in options.clients},
        "runs": {str(clients): runs[clients] for clients in options.clients},
    }
    atomic_write_text(options.output, json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["scores"], indent=2))


@contextmanager
def alone(kind: str, servers: dict[str, tuple[str, int]]) -> Iterator[None]:
    """The other servers stand still meanwhile: one that waits for requests may still use a core."""
    others = [group for name, (_, group) in servers.items() if name != kind]
    for group in others:
        os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        for group in others:
            os.killpg(group, signal.SIGCONT)


def by_turns(
    servers: dict[str, tuple[str, int]], asks: list[dict[str, Any]], options: argparse.Namespace
) -> dict[int, list[dict[str, Any]]]:
    """Every repetition, after one that warms both servers up."""
    chance = random.Random(options.seed)
    runs: dict[int, list[dict[str, Any]]] = {clients: [] for clients in options.clients}
    for repeat in range(options.repeats + 1):
        for clients in options.clients if repeat else [max(options.clients)]:
            chance.shuffle(asks)
            found = {}
            for kind in sorted(servers, reverse=bool(repeat % 2)):
                with alone(kind, servers):
                    found[kind] = from_another_process(servers[kind][0], kind, asks, clients)
            if repeat:
                runs[clients].append(found)
                print(f"{repeat}/{options.repeats}, {clients} clients", file=sys.stderr)
    return runs


if __name__ == "__main__":
    main()
