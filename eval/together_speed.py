"""Measures what it saves to train the modules of several documents in one row of the model.

    python eval/together_speed.py --curriculum CURRICULUM.json [--sizes 1 2 4 8] [--steps 40]

The curriculum is one that `distillation_speed.py --curriculum` made. It stands for each of the documents: as many fresh
adapters learn it, in one process for each size, with the default recipe. Seconds are of the steps alone (the teacher
reads each document by itself), divided by the number of modules. The machine must be quiet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch
from distillation_arms import make_prompts, memory, read_curriculum, teach
from distillation_speed import Result

from hybridqa.config import Settings
from hybridqa.files import atomic_write_text
from hybridqa.models import resolve_model
from hybridqa.provenance import commit, hardware
from hybridqa.training.fitting import Fit
from hybridqa.training.recipe import Recipe
from hybridqa.training.together import Together
from hybridqa.training.trainer import Trainer
from hybridqa.training.wordings import first_lessons

HERE = Path(__file__).parent


def main() -> None:
    """Every size in a process of its own; what there is so far is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curriculum", type=Path, required=True)
    parser.add_argument("--model", default=Settings().model)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "together_speed.json")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)  # one measurement, in this process
    options = parser.parse_args()
    if options.size:
        print(json.dumps(measure(options)))
        return
    record: Result = {
        "what": "seconds of training a module, by how many train in one row",
        "command": f"python eval/together_speed.py {' '.join(Path(word).name for word in sys.argv[1:])}",
        "commit": commit(),
        "hardware": hardware(),
        "steps": options.steps,
        "recipe": asdict(Recipe()),
        "sizes": {},
    }
    for size in options.sizes:
        command = [sys.executable, __file__, *sys.argv[1:], "--size", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{size} together: {done.stderr}")
        record["sizes"][str(size)] = found = json.loads(done.stdout.splitlines()[-1])
        atomic_write_text(options.output, json.dumps(record, indent=1) + "\n")
        print(f"{size} together: {found['seconds_per_module']:.2f} s a module", flush=True)


def measure(options: argparse.Namespace) -> Result:
    """One size."""
    model = resolve_model(options.model, Settings().cache_dir)
    recipe = replace(Recipe(), steps=options.steps)
    trainer = Trainer(model.path, dtype=recipe.dtype)
    prompts, lesson = make_prompts(str(model.path)), read_curriculum(str(options.curriculum))
    students = first_lessons(prompts, lesson, lesson.pairs, recipe, max_model_len=Settings().max_model_len)
    times = []
    for repeat in range(options.repeats + 1):
        used = replace(recipe, steps=2) if repeat == 0 else recipe  # the first warms up
        with Together(trainer, used, options.size) as adapters, ExitStack() as runs:
            teachers = teach(trainer, prompts, lesson, used)
            fits = {}
            for place in range(options.size):
                adapters.use(place)
                own = replace(used, seed=place)
                fits[place] = runs.enter_context(Fit(trainer, students, teachers, own, share=1 / options.size))
            _wait(trainer)
            started = time.perf_counter()
            if failures := adapters.fit(fits):
                raise next(iter(failures.values()))
            _wait(trainer)
            times.append((time.perf_counter() - started) / options.size)
            joined = adapters.joined
    return {
        "seconds_per_module": statistics.median(times[1:]),
        "repeats": [round(seconds, 3) for seconds in times[1:]],
        "in_one_row": bool(joined),
        "device": str(trainer.device),
        "memory": memory(trainer.device, 0.0),
    }


def _wait(trainer: Trainer) -> None:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)


if __name__ == "__main__":
    main()
