"""What vLLM and torch read from the environment, set where the user has not. Light to import; loads neither."""

from __future__ import annotations

import logging
import os

from hybridqa.processes import SPIN

_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # engine, embedder and trainer have a thread pool each, on the same cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no child process: nothing to fork, no `if __name__ == "__main__"` needed
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # ours are enough
}


def prepare_environment() -> None:
    """Sets what vLLM and torch read from the environment, where the user has not; best before torch is imported.

    Two of them, OMP_WAIT_POLICY and TORCH_CPP_LOG_LEVEL, have no effect later; programs call this first of all.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # no Triton on a CPU, and none needed


def engine_environment() -> dict[str, str]:
    """The environment of a process that runs vLLM and nothing else, where the user has not said otherwise.

    On a CPU of more than two cores one stays free for what asks it, as in vLLM's own server.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ours = {
        **_ENVIRONMENT,
        "OMP_NUM_THREADS": str(cores if cores <= 2 else cores - 1),
        **SPIN,
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    }
    return ours | dict(os.environ)
