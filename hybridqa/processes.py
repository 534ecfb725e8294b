"""How a process that this one starts finds the same hybridqa.

Knows nothing about what such a process does. Invariant: nothing is imported from the working folder on its account.
"""

from __future__ import annotations

import os
from pathlib import Path

import hybridqa


def import_path() -> dict[str, str]:
    """PYTHONPATH, where one is needed: with the folder that holds this package, when it is not an installed one."""
    known = os.environ.get("PYTHONPATH")
    root = Path(hybridqa.__file__).absolute().parent.parent
    if root.name in ("site-packages", "dist-packages"):  # those are found anyway, and after Python's own modules
        return {"PYTHONPATH": known} if known else {}
    return {"PYTHONPATH": os.pathsep.join([str(root), known] if known else [str(root)])}
