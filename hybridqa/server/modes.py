"""The modes as clients name them: a model each.

Knows nothing about HTTP. Invariant: each mode has one name, and the plain one is the default mode's.
"""

from __future__ import annotations

from hybridqa.types import Mode

MODELS = {
    "hybridqa": Mode.HYBRID,
    "hybridqa-retrieval": Mode.RETRIEVAL,
    "hybridqa-modules": Mode.MODULES,
    "hybridqa-closed": Mode.CLOSED,
}
