"""A store of a data set's documents, made once in a folder and gone on with when it is there.

Knows nothing about questions. Invariant: the store holds just the documents that were given, each added as a user would
add it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hybridqa.config import Settings
from hybridqa.errors import StoreError
from hybridqa.evaluation.datasets import EvalDocument
from hybridqa.files import sha256_file
from hybridqa.modules.adapter import WEIGHTS_FILE
from hybridqa.pipeline import HybridQA
from hybridqa.types import ModuleKind

MADE_BY = ("embedder", "passage_tokens")  # settings that decide what passages and vectors are: others, another store
Tell = Callable[[str, int, int], None]  # stage, step, steps in all


@contextmanager
def store_of(
    documents: Sequence[EvalDocument], work: Path, tell: Tell, *, extractor: Path | None = None, **settings: Any
) -> Iterator[HybridQA]:
    """An open store of the documents in a work folder, which is made; with an extractor where a folder of one is given.

    Raises `StoreError` where another run is, and `InputError` or `AdapterError` for a folder that holds no extractor.
    """
    weights = None if extractor is None else extractor / WEIGHTS_FILE
    kept = [sha256_file(weights)] if weights is not None and weights.is_file() else []
    work.mkdir(parents=True, exist_ok=True)
    made_by = json.dumps([*(settings.get(name) for name in MADE_BY), *kept], default=str)
    folder = work / f"store-{hashlib.sha256(made_by.encode()).hexdigest()[:12]}"
    try:
        with FileLock(work / ".eval.lock", timeout=0), HybridQA.open(folder, create=True, **settings) as store:
            if extractor is not None and not any(one.kind is ModuleKind.EXTRACTOR for one in store.modules()):
                store.import_module(extractor, kind=ModuleKind.EXTRACTOR)
            fill(store, documents, tell)
            yield store
    except Timeout as error:
        raise StoreError(
            f"another run is at work in {str(work)!r}; expected to be alone there. Wait for it, or give another --work."
        ) from error


def own_settings(settings: Settings) -> dict[str, Any]:
    """What a user has set, as far as it is to hold in a store of an evaluation's own."""
    return {name: getattr(settings, name) for name in settings.model_fields_set - {"store", "name"}}


def fill(store: HybridQA, documents: Sequence[EvalDocument], tell: Tell) -> None:
    """Makes the default collection hold just these documents."""
    wanted = {document.doc_id for document in documents}
    for known in store.documents():
        if known.doc_id not in wanted:
            store.remove(known.doc_id)
    for place, document in enumerate(documents):
        tell("add documents", place, len(documents))
        store.add_text(document.doc_id, document.text, title=document.title, metadata=document.meta)
    tell("add documents", len(documents), len(documents))
