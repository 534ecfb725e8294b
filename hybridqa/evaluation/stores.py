"""A store of a data set's documents, made once in a folder and gone on with when it is there.

Knows nothing about questions. Invariant: the store holds just the documents that were given, each added as a user would
add it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hybridqa.errors import StoreError
from hybridqa.evaluation.datasets import EvalDocument
from hybridqa.pipeline import HybridQA

Tell = Callable[[str, int, int], None]  # stage, step, steps in all


@contextmanager
def store_of(documents: Sequence[EvalDocument], work: Path, tell: Tell, **settings: Any) -> Iterator[HybridQA]:
    """An open store of the documents in a work folder, which is made. Raises `StoreError` where another run is."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / ".eval.lock", timeout=0), HybridQA.open(work / "store", create=True, **settings) as store:
            fill(store, documents, tell)
            yield store
    except Timeout as error:
        raise StoreError(
            f"another run is at work in {str(work)!r}; expected to be alone there. Wait for it, or give another --work."
        ) from error


def fill(store: HybridQA, documents: Sequence[EvalDocument], tell: Tell) -> None:
    """Makes the default collection hold just these documents."""
    wanted = {document.doc_id for document in documents}
    for known in store.documents():
        if known.doc_id not in wanted:
            store.remove(known.doc_id)
    for place, document in enumerate(documents):
        tell("adding documents", place, len(documents))
        store.add_text(document.doc_id, document.text, title=document.title, metadata=document.meta)
    tell("adding documents", len(documents), len(documents))
