"""What a process that this one starts is told: where the same hybridqa is, and how its threads wait.

Knows nothing about what such a process does. Invariant: nothing is imported from the working folder on its account.
"""

from __future__ import annotations

import os
from pathlib import Path

import hybridqa

# How often OpenMP's threads look whether there is work before they sleep, in all well below a millisecond. To wake
# them at every step costs more than the step; to look for ever for one that others have driven off its core leads
# nowhere.
SPIN = {"GOMP_SPINCOUNT": "20000"}


def import_path() -> dict[str, str]:
    """PYTHONPATH, where one is needed: with the folder that holds this package, when it is not an installed one."""
    known = os.environ.get("PYTHONPATH")
    root = Path(hybridqa.__file__).absolute().parent.parent
    if root.name in ("site-packages", "dist-packages"):  # those are found anyway, and after Python's own modules
        return {"PYTHONPATH": known} if known else {}
    return {"PYTHONPATH": os.pathsep.join([str(root), known] if known else [str(root)])}
