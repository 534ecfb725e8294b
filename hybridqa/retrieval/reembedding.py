"""Makes a store's vectors anew with another embedder.

Knows nothing about search. Invariant: the store answers with the old vectors until all the new ones are there, and
changes over in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hybridqa.catalog import Catalog
from hybridqa.retrieval.embedder import Embedder, Progress


def reembed(catalog: Catalog, embedder: Embedder, progress: Progress | None = None) -> int:
    """Embeds every passage of the store again; gives how many there were.

    Text stays as it was cut: when the new embedder's window is smaller, the ends of long passages are not embedded.
    Raises `StoreError` when passages were added meanwhile; then nothing has changed.
    """
    total = int(catalog.vector_ids().size)
    done = 0

    def parts() -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        nonlocal done
        for passages in catalog.iter_passages():
            texts = [embedder.passage_text(p.title, p.heading, p.text) for p in passages]
            yield [p.passage_id for p in passages], embedder.embed_passages(texts)
            done += len(passages)
            if progress is not None:
                progress(done, max(total, done))

    catalog.replace_embeddings(parts(), embedder.fingerprint)
    return done
