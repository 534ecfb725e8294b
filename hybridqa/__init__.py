"""hybridqa: question answering over documents that live twice, as passages and as knowledge modules.

Importing this package loads no torch, vllm, faiss or langchain; each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridqa.config import Settings
    from hybridqa.errors import HybridQAError
    from hybridqa.pipeline import HybridQA
    from hybridqa.types import (
        Answer,
        Citation,
        Document,
        Filter,
        Message,
        Mode,
        Module,
        ModuleKind,
        Passage,
        Route,
        ScoredPassage,
    )

__all__ = [
    "Answer",
    "Citation",
    "Document",
    "Filter",
    "HybridQA",
    "HybridQAError",
    "Message",
    "Mode",
    "Module",
    "ModuleKind",
    "Passage",
    "Route",
    "ScoredPassage",
    "Settings",
    "__version__",
]

try:
    __version__ = version("hybridqa")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.0.0"

_HOMES = {
    "HybridQA": "hybridqa.pipeline",
    "HybridQAError": "hybridqa.errors",
    "Settings": "hybridqa.config",
}


def __getattr__(name: str) -> Any:
    """Loads an exported name from its home on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'hybridqa' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "hybridqa.types")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
