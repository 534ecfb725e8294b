"""Measures how much faster hybridqa's trainer reaches a held-out loss than a plain implementation of the same method.

    python eval/distillation_speed.py --docs DOCS.jsonl --document ID [--words 300] [--seeds 0 1 2]
    python eval/distillation_speed.py --document FILE            (a text, Markdown, HTML, PDF or DOCX file)
    python eval/distillation_speed.py --curriculum CURRICULUM.json    (made before; needs no vLLM)

One document, one curriculum, made once by hybridqa's own synthesis; its held-out questions are nobody's to learn. Then,
one process after the other: the reference (`reference_recipe.py`) in several numeric types at its smallest batch, and
in the fastest of them in several batch sizes, of which the fastest is taken; the reference at several learning rates,
of which the one whose held-out loss comes down lowest, and stays there for three points of its curve, is taken (more
are tried while the best is at the edge); then, for every seed, the reference, hybridqa, and hybridqa with the
reference's objective (KL and hidden states alone: what engineering gives without the recipe); then hybridqa with each
of its ways switched off. The held-out loss is computed in yet another process, by one function for all
(`held_out_loss.py`), and the curves are compared by `speed_report.py`. The machine must be quiet. With `--work FOLDER`
a run that was stopped goes on after the last arm that it finished.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from speed_report import compare_runs, settled, table

from hybridqa.config import Settings
from hybridqa.files import atomic_write_text
from hybridqa.models import ModelFolder, resolve_model
from hybridqa.provenance import commit, hardware
from hybridqa.training.process import environment
from hybridqa.training.recipe import Recipe

HERE = Path(__file__).parent
SAME_PACE = 1.05  # of batch sizes that are about as fast, the smallest learns most from a pair
SNAPSHOTS = "snapshots-"  # folders of a run's adapters, until they are judged
Result = dict[str, Any]

TRAINERS: dict[str, Result] = {  # hybridqa as it is, and with nothing learned but what the reference learns
    "hybridqa": {},
    "same_objective": {
        "objective": "dcd",
        "kl": 1.0,
        "hidden": 1.0,
        "cross_entropy": 0.0,
        "trust": False,
        "temperature": 1.0,
        "echoed": 0.0,
        "text": 0,
    },
}

WAYS: dict[str, tuple[str, Result]] = {  # each switched off alone; what the spec of "ablation" needs for it
    "none": ("nothing: as it trains", {}),
    "kept answers": ("the teacher's answers are not kept: it reads the step's pairs anew", {}),
    "shared chunk": ("the teacher reads the chunk once for each pair", {}),
    "top-k": ("the teacher's whole vocabulary is kept", {"recipe": {"top_k": 0}}),
    "packing": ("each example in a row and a step of its own", {}),
    "attention": ("attention goes through all pairs of a pack's tokens, under a mask", {}),
    "lower layers": ("the layers below the adapter run at every step", {}),
    "upper half": ("every layer has an adapter", {"recipe": {"first_layer": 0.0}}),
    "logits": ("logits at all places", {}),
    "float32": ("float32 throughout", {"dtype": "float32"}),
    "bfloat16": ("bfloat16 asked for", {"dtype": "bfloat16"}),
    "echo": ("no copy of the adapter stands beside it (a cost, not a saving)", {"recipe": {"echoed": 0.0}}),
    "text": ("the document's own text is not learned (a cost, not a saving)", {"recipe": {"text": 0}}),
    "compile": ("nothing, and the layers go through torch.compile (not done by default)", {}),
    "reading": ("no pair is also learned with its chunk (a cost, not a saving)", {"recipe": {"reading": 0.0}}),
}
NOT_SEPARABLE = {
    "what a pass teaches": "LoRA+ rates, cross-entropy where the teacher doubts, several wordings: they change how "
    "many passes are needed, not what one costs; see the passes, and whole runs with --recipe NAME=VALUE",
    "stopping early": "not done: the rate falls to nothing at a planned end, so that a run that ends before it has not "
    "settled; the curves show what ends of other lengths would give",
    "length-sorted batches": "not needed: a packed row has no padding, whatever its lengths; attention alone pads",
    "adapter matmuls that do not upcast": "the trainer's own layers have no other way; peft's are in the reference",
    "several documents in one batch": "one document is measured here; see together_speed.py",
}


def main() -> None:
    """Runs every arm and writes the result, after each arm what there is so far."""
    options = parse()
    model = resolve_model(options.model, Settings().cache_dir)
    with nullcontext(options.work) if options.work else tempfile.TemporaryDirectory() as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        print(table(Bench(options, model, Path(folder)).run()))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, help='JSON lines of {"doc_id", "title", "text"}')
    parser.add_argument("--document", help="a doc_id of --docs, or without it a file")
    parser.add_argument("--words", type=int, default=300, help="of the document, whole sentences; 0: all of it")
    parser.add_argument("--curriculum", type=Path, help="is read when it is there, else made and kept there")
    parser.add_argument("--model", default=Settings().model)
    parser.add_argument("--device", help="where both train; the GPU when there is one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=float, default=6.0, help="of the reference over the pairs")
    parser.add_argument("--steps", type=int, default=0, help="of the reference; when not 0, counts instead of --passes")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3], help="the reference's, to try")
    parser.add_argument("--batches", type=int, nargs="+", help="the reference's, to try; 4 8 16, on a GPU 8 16 32 64")
    parser.add_argument("--dtypes", nargs="+", help="the reference's, to try; on a GPU bfloat16 alone")
    parser.add_argument("--dtype", default="auto", help="hybridqa's")
    parser.add_argument("--epochs", type=float, default=0.0, help="hybridqa's passes; 0: its own default")
    parser.add_argument("--recipe", nargs="+", default=[], metavar="NAME=VALUE", help="changes to hybridqa's recipe")
    parser.add_argument("--points", type=int, default=12, help="of each curve")
    parser.add_argument("--repeats", type=int, default=3, help="of each timing that is no whole run")
    parser.add_argument("--no-runs", action="store_true", help="the share of each way alone")
    parser.add_argument("--ablation-pairs", type=int, default=48, help="0: no ablation")
    parser.add_argument("--work", type=Path, help="folder to work in; with it a run that was stopped goes on")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "distillation_speed.json")
    options = parser.parse_args()
    if options.document is None and (options.curriculum is None or not options.curriculum.is_file()):
        parser.error("give --document (and --docs, when it is an id), or a --curriculum that is there")
    return options


def recipe_of(options: argparse.Namespace, seed: int) -> Result:
    """hybridqa's own recipe, but for what was asked for."""
    recipe = asdict(Recipe(seed=seed))
    if options.epochs:
        recipe["epochs"] = options.epochs
    for change in options.recipe:
        name, _, value = change.partition("=")
        if name not in recipe:
            sys.exit(f"no {name!r} in the recipe; expected one of {', '.join(recipe)}")
        recipe[name] = value if isinstance(recipe[name], str) else json.loads(value.lower())
    return recipe


class Bench:
    """The arms of one measurement, one process after the other, and what they gave."""

    def __init__(self, options: argparse.Namespace, model: ModelFolder, folder: Path) -> None:
        self._options = options
        self._model = model
        self._folder = folder
        self._curriculum = options.curriculum or folder / "curriculum.json"
        self._gpu = False
        self._chosen: Result = {}
        self.result: Result = {
            "what": "seconds of training to the same held-out loss: a plain implementation and hybridqa's trainer",
            "command": f"python eval/distillation_speed.py {' '.join(Path(word).name for word in sys.argv[1:])}",
            "commit": commit(),
            "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "hardware": {**hardware(), "load": os.getloadavg()[0]},
            "model": {"name": model.name, "hash": model.hash},
            "seeds": options.seeds,
        }

    def run(self) -> Result:
        """Everything, in order."""
        self.make_curriculum()
        self.choose_pace()
        if not self._options.no_runs:
            self.run_seeds()
        if self._options.ablation_pairs:
            self.ablate()
        self.write(complete=True)
        return self.result

    def write(self, *, complete: bool = False) -> None:
        """What there is so far."""
        self.result["complete"] = complete
        self._options.output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self._options.output, json.dumps(self.result, indent=1) + "\n")

    def _once(self, name: str, decides: Result, make: Callable[[], Result]) -> Result:
        """What `make` gives, or gave to an earlier run in this folder by the same code, machine, data and spec."""
        machine = [hardware(), self._options.device]
        about = [name, decides, commit(), machine, self._model.hash, self._curriculum.read_text(encoding="utf-8")]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        path = self._folder / f"{name}-{digest}.json"
        if path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        made = make()
        if "skipped" not in made:
            atomic_write_text(path, json.dumps(made))
        return made

    def _arm(self, arm: str, *, must: bool = True, **spec: Any) -> Result:
        """One process. With `must`, its failure is the measurement's; else the result says why it was skipped."""
        common = {
            "arm": arm,
            "model_path": str(self._model.path),
            "device": self._options.device,
            "curriculum": str(self._curriculum),
        }
        path = self._folder / "spec.json"
        path.write_text(json.dumps({**common, **spec}), encoding="utf-8")
        started_with = environment()  # as hybridqa starts its trainer
        if arm == "curriculum":  # an engine's process: it may have threads that sleep
            started_with = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        begun = time.perf_counter()
        done = self._start(path, started_with)
        if done.returncode and must:
            sys.exit(f"{arm}: {done.stderr}")
        shown = ", ".join(str(spec[name]) for name in ("label", "way", "dtype") if name in spec)
        sys.stderr.write(f"{arm} {shown}: {time.perf_counter() - begun:.0f} s\n")
        if done.returncode:
            return {"skipped": why(done.stderr) or f"it ended with {done.returncode}"}
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def _start(self, spec: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(HERE / "distillation_arms.py"), str(spec)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    def make_curriculum(self) -> None:
        """Has the curriculum made where there is none."""
        options = self._options
        if not self._curriculum.is_file():
            docs = str(options.docs) if options.docs else None
            spec = {"model": options.model, "docs": docs, "document": options.document, "words": options.words}
            self._arm("curriculum", seed=0, **spec)
        text = self._curriculum.read_text(encoding="utf-8")
        kept = json.loads(text)
        if not kept["curriculum"]["pairs"] or not kept["curriculum"]["held_out"]:
            sys.exit(f"the curriculum of {kept['about']} has no pairs or no held-out ones; expected a longer text")
        self.result["curriculum"] = {
            **kept["about"],
            "chunks": len(kept["curriculum"]["chunks"]),
            "pairs": len(kept["curriculum"]["pairs"]),
            "held_out": len(kept["curriculum"]["held_out"]),
            "hash": hashlib.sha256(text.encode()).hexdigest(),
        }

    def choose_pace(self) -> None:
        """The reference's numeric type, the fastest per pair at the smallest batch, and its fastest batch size."""
        options = self._options
        gpu = options.device != "cpu" and has_gpu()
        recipe = recipe_of(options, 0)
        sizes = sorted(options.batches or ([8, 16, 32, 64] if gpu else [4, 8, 16]))
        settings = {"rank": recipe["rank"], "alpha": recipe["alpha"]}

        def measure(dtype: str, batches: list[int]) -> dict[str, float]:
            spec: Result = {"dtype": dtype, "batches": batches, "repeats": options.repeats, **settings}
            made = self._once("pace", spec, partial(self._arm, "pace", **spec))
            return dict(made["seconds_per_pair"])

        dtypes = options.dtypes or (["bfloat16"] if gpu else ["float32", "bfloat16"])
        tried = {dtype: measure(dtype, sizes[:1]) for dtype in dtypes}
        dtype = min(tried, key=lambda name: min(tried[name].values()))
        if sizes[1:]:
            tried[dtype] |= measure(dtype, sizes[1:])
        fastest = min(tried[dtype].values())
        batch = min(int(size) for size, seconds in tried[dtype].items() if seconds <= SAME_PACE * fastest)
        steps = options.steps or math.ceil(options.passes * self.result["curriculum"]["pairs"] / batch)
        self._chosen = {"dtype": dtype, "batch": batch, "steps": steps, **settings}
        self.result["pace"] = {"seconds_per_pair": tried, "chosen": dict(self._chosen)}
        self.write()

    def run_seeds(self) -> None:
        """The reference at each learning rate, then all trainers for every seed."""
        first = self._options.seeds[0]
        self.result["bounds"] = self._once("bounds", {}, partial(self._arm, "bounds"))
        sweep, best = self._sweep(first)
        self.result["runs"] = []
        for seed in self._options.seeds:
            run: Result = {"seed": seed, "reference": sweep[best] if seed == first else self._reference(seed, best)}
            run |= {name: self._hybridqa(name, seed, changes) for name, changes in TRAINERS.items()}
            self.result["runs"].append(run)
            compare_runs(self.result)
            self.write()

    def _sweep(self, seed: int) -> tuple[dict[float, Result], float]:
        """Runs of the reference by learning rate, and the best one's; a best one at the edge has the next one tried."""
        tried = {rate: self._reference(seed, rate) for rate in sorted(self._options.rates)}
        while True:
            best = min(tried, key=lambda rate: settled(tried[rate]["points"]))
            beyond = best * 2 if best == max(tried) else best / 2 if best == min(tried) else None
            if len(self._options.rates) == 1 or beyond is None or len(tried) > len(self._options.rates) + 2:
                break
            tried[beyond] = self._reference(seed, beyond)
        self.result["sweep"] = {
            "seed": seed,
            "chosen": best,
            "rates": {str(rate): tried[rate]["points"] for rate in sorted(tried)},
        }
        self.write()
        return tried, best

    def _reference(self, seed: int, rate: float) -> Result:
        settings = {**self._chosen, "learning_rate": rate, "seed": seed}
        return self._scored("reference", f"seed {seed}, rate {rate:g}", settings=settings)

    def _hybridqa(self, name: str, seed: int, changes: Result) -> Result:
        recipe = {**recipe_of(self._options, seed), **changes}
        return self._scored("hybridqa", f"{name}, seed {seed}", recipe=recipe, dtype=self._options.dtype)

    def _scored(self, arm: str, label: str, **spec: Any) -> Result:
        """A whole run, with the held-out loss at each of its points."""
        decides = {**spec, "label": label, "points": self._options.points}
        return self._once(arm, decides, lambda: self._run_and_score(arm, label, spec))

    def _run_and_score(self, arm: str, label: str, spec: Result) -> Result:
        for left in self._folder.glob(f"{SNAPSHOTS}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=SNAPSHOTS) as snapshots:
            run = self._arm(arm, label=label, snapshots=snapshots, points=self._options.points, **spec)
            scale = self._chosen["alpha"] / self._chosen["rank"]
            scored = self._arm("score", label=label, snapshots=snapshots, scale=scale)
        for point in run["points"]:
            point["loss"] = scored["losses"][str(point["step"])]
        return run

    def ablate(self) -> None:
        """hybridqa's seconds a pass with each way switched off, beside the reference's."""
        options = self._options
        pairs = min(options.ablation_pairs, self.result["curriculum"]["pairs"])
        paces = self.result["pace"]["seconds_per_pair"]
        found: dict[str, Result] = {}
        self.result["ablation"] = {
            "pairs": pairs,
            "reference_seconds_per_pass": {dtype: min(times.values()) * pairs for dtype, times in paces.items()},
            "ways": found,
            "not_separable": NOT_SEPARABLE,
        }
        for way, (label, changes) in WAYS.items():
            recipe = {**recipe_of(options, options.seeds[0]), **changes.get("recipe", {})}
            spec: Result = {"recipe": recipe, "dtype": changes.get("dtype", options.dtype), "repeats": options.repeats}
            spec |= {"way": way, "pairs": pairs}
            made = self._once("ablation", spec, partial(self._arm, "ablation", must=way == "none", **spec))
            if "seconds_per_pass" in made:
                whole = found.get("none", made)["seconds_per_pass"]
                made["times_as_long"] = made["seconds_per_pass"] / whole
            found[way] = {"switched_off": label, **made}
            self.write()


def why(stderr: str) -> str:
    """The error that ended a process: its name and the first line of what it says; else its last line."""
    named = re.findall(r"^[\w.]*(?:Error|Exception|Unsupported)\b.*", stderr, re.MULTILINE)
    return str(([*stderr.strip().splitlines()[-1:], *named] or [""])[-1])


def has_gpu() -> bool:
    """Asked in another process: this one stays small, and off the GPU."""
    code = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    main()
