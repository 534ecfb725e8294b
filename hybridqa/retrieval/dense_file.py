"""A collection's dense index on disk: a `.faiss` file and a `.json` beside it that says what it must be.

Knows nothing about the catalog or searching. Invariant: a file is a copy that can be rebuilt, so whatever is missing,
damaged or not what its `.json` says is read as nothing at all, never as a wrong index.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from hybridqa.catalog_rows import State
from hybridqa.files import TEMP_SUFFIX, atomic_write_bytes, atomic_write_text

log = logging.getLogger(__name__)
FORMAT = 1


def new_index(dimension: int) -> Any:
    """An empty exact inner-product index whose ids are the caller's."""
    return faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))


class DenseFile:
    """Where one collection's index is kept."""

    def __init__(self, directory: Path, collection: str) -> None:
        self._collection = collection
        name = hashlib.sha256(collection.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        self.index_path = directory / f"{name}.faiss"
        self.about_path = directory / f"{name}.json"

    def save(self, index: Any, embedder: str, state: State) -> None:
        """Replaces the file; a kill in between leaves a pair that `load` refuses. Raises `StorageFullError`."""
        data = faiss.serialize_index(index).tobytes()
        about = {
            "format": FORMAT,
            "collection": self._collection,
            "embedder": embedder,
            "dimension": int(index.d),
            "vectors": int(index.ntotal),
            "generation": state[0],
            "token": state[1],
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        self.index_path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(self.index_path, data)
        atomic_write_text(self.about_path, json.dumps(about, indent=1, sort_keys=True) + "\n")

    def load(self, embedder: str, dimension: int, state: State) -> tuple[Any, bool] | None:
        """The index if it is whole, of this embedder and no newer than `state`, and whether it is of just this state.

        One that is not may be of another history: a catalog put back from a backup gives ids anew.
        """
        try:
            about = json.loads(self.about_path.read_text(encoding="utf-8"))
            data = self.index_path.read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("dense index %s is not readable (%s); rebuilding it", self.index_path, error)
            return None
        problem = self._problem(about, data, embedder, dimension, state[0])
        if problem is None:
            try:
                index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
            except RuntimeError as error:  # faiss raises nothing else
                problem = f"faiss cannot read it: {error}"
            else:
                if isinstance(index, faiss.IndexIDMap2) and (index.d, index.ntotal) == (dimension, about["vectors"]):
                    return index, bool(state[1]) and (about["generation"], about.get("token")) == state
                problem = "it is another kind of index"
        log.warning("dense index %s is not usable (%s); rebuilding it", self.index_path, problem)
        return None

    def exists(self) -> bool:
        """Whether either of the two is there: a kill between their removals leaves one."""
        return self.about_path.exists() or self.index_path.exists()

    def remove(self) -> None:
        """Deletes what there is; what cannot be deleted is never read as current either."""
        for path in (self.about_path, self.index_path):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("dense index %s could not be deleted: %s", path, error)

    def _problem(self, about: Any, data: bytes, embedder: str, dimension: int, generation: int) -> str | None:
        if not isinstance(about, dict):
            return "its description is no JSON object"
        expected = {"format": FORMAT, "collection": self._collection, "embedder": embedder, "dimension": dimension}
        for name, value in expected.items():
            if about.get(name) != value:
                return f"{name} is {about.get(name)!r}, not {value!r}"
        if not isinstance(about.get("generation"), int) or about["generation"] > generation:
            return f"generation is {about.get('generation')!r}, the catalog's {generation}"
        if hashlib.sha256(data).hexdigest() != about.get("sha256"):
            return "its sha256 is another"
        return None


def sweep(directory: Path, keep: set[Path] | None = None) -> None:
    """Deletes what killed writers left, and with `keep` every index whose path is not in it.

    The caller holds the folder's lock, so that no living writer's file is taken for a leftover.
    """
    for path in directory.glob("*"):
        foreign = keep is not None and path.suffix in (".faiss", ".json") and path not in keep
        if foreign or path.name.endswith(TEMP_SUFFIX):
            with suppress(FileNotFoundError):
                path.unlink()
