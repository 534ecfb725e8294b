"""Starts the trainer's process on job folders and hands on what it says, event by event.

Knows nothing about documents or modules. Invariant: the process is gone when the iteration has ended, however it ended;
it imports the hybridqa of its parent, and nothing from the working folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hybridqa.errors import TrainingError
from hybridqa.processes import SPIN, import_path

WORKER = "hybridqa.training.worker"
# oneDNN and torch keep a kernel of half a megabyte for each shape they have met, 1024 of them where they are not told
# otherwise. Rows are of many lengths, and few meet again before they are forgotten: 64 serve the layers of one row.
KERNELS_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}


def train(
    folders: Sequence[Path],
    *,
    worker: str = WORKER,
    what: str = "documents",
    again: str = "hybridqa refresh",
    together: int | None = None,
) -> Iterator[dict[str, Any]]:
    """The events of a trainer at work on `folders`, each with its "job" and "stage"; at most one end for each job.

    `worker` is the module that is run, `what` its jobs are about, `again` the command to repeat after a kill;
    `together` is how many jobs train in one row, where the worker can do that (0: what suits the device).
    Raises `TrainingError` when the process ends before every job has ended.
    """
    ended: set[str] = set()
    # -P: a torch.py or json.py in the working folder is none of ours.
    options = [] if together is None else ["--together", str(together)]
    command = [sys.executable, "-P", "-m", worker, *options, *(str(folder.absolute()) for folder in folders)]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # it ends when its stdin does: with this process, whatever ends it
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(),
            start_new_session=True,  # see `pace`
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(event, dict) or "stage" not in event:  # a library that prints
                    continue
                if event["stage"] in ("done", "failed"):
                    ended.add(event["job"])
                yield event
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if len(ended) < len(folders):
            errors.seek(0)
            lines = errors.read().decode("utf-8", "replace").strip().splitlines()
            raise TrainingError(
                f"the trainer's process ended with {code} after {len(ended)} of {len(folders)} {what}: "
                f"{lines[-1] if lines else 'it said nothing'}. Run `{again}` again: it goes on from the "
                "last checkpoint."
            )


def environment() -> dict[str, str]:
    """What a trainer's process is started with: this one's environment, and what suits training."""
    found = {**KERNELS_KEPT, **SPIN, **os.environ}
    found |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    found.pop("OMP_WAIT_POLICY", None)  # an engine's; threads that sleep at once slow a trainer
    return found | import_path()
