"""What every command shares: the global options, an open store, and errors turned into a line and an exit code.

Knows nothing about any one command. Exit codes: 0 done, 1 done in part or with problems found, 2 an error, 130 stopped
by Ctrl-C.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

from hybridqa.cli import output
from hybridqa.errors import HybridQAError

if TYPE_CHECKING:
    from hybridqa.pipeline import HybridQA

PARTIAL, ERROR, INTERRUPTED = 1, 2, 130
P = ParamSpec("P")
R = TypeVar("R")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Collection = Annotated[str, typer.Option("--collection", "-c", help="Which collection of documents.")]
AnyCollection = Annotated[str | None, typer.Option("--collection", "-c", help="One collection alone; default: all.")]


@dataclass(frozen=True, slots=True)
class Options:
    """The options that stand before the command."""

    store: Path | None
    name: str | None
    debug: bool


_debug = False  # of this process: an error may come before or after there is a context


def remember_debug(debug: bool) -> None:
    """Sets whether errors show where they come from."""
    global _debug
    _debug = debug


def options(context: typer.Context) -> Options:
    """The global options of this run."""
    found = context.find_root().obj
    assert isinstance(found, Options)
    return found


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function's errors one line on standard error and an exit code."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except HybridQAError as error:
            fail(error)
            raise typer.Exit(ERROR) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader has gone, as in `hybridqa ls | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.stdout().fileno())
            raise typer.Exit(PARTIAL) from None
        except typer.Exit:
            raise
        except Exception as error:  # noqa: BLE001 (a bug of ours is no reason to print a traceback unasked)
            fail(error)
            raise typer.Exit(ERROR) from None

    return run


def fail(error: Exception) -> None:
    """Prints an error: one line, or its traceback as well with --debug."""
    if _debug:
        output.err().print_exception()
    expected = isinstance(error, HybridQAError)
    text = (
        str(error) if expected else f"unexpected {type(error).__name__}: {error}. Repeat with --debug for its origin."
    )
    output.note("error: " + " ".join(text.split()), style="red")


@contextmanager
def open_store(context: typer.Context, *, create: bool = False) -> Iterator[HybridQA]:
    """The store that the global options name, closed at the end; standard output is kept for answers from here on."""
    given = options(context)
    quieten(given.debug)
    from hybridqa.pipeline import HybridQA

    with HybridQA.open(given.store, create=create, name=given.name) as store:
        yield store


def quieten(debug: bool) -> None:
    """Sends what libraries print and log to standard error, and most of it nowhere."""
    output.claim_stdout()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # engine and embedder share the cores; read by torch's import
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        warnings.simplefilter("ignore")
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it reports tasks that Ctrl-C has cut off
    level = logging.INFO if debug else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("hybridqa").setLevel(level)
