"""The command line: `hybridqa init | add | rm | ls | ask | chat | refresh | modules | eval | doctor`.

Knows nothing of how any of it works: it opens a `HybridQA` and prints what it gives. Invariants: with `--json`,
standard output holds JSON and nothing else; an error is one line on standard error, never a traceback without
`--debug`; the parts that are slow to import are imported by the commands that need them.
"""

from __future__ import annotations

from hybridqa.cli.app import app, main

__all__ = ["app", "main"]
