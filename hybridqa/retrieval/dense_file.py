"""A collection's dense index on disk: a `.faiss` file and a `.json` beside it that says what it must be.

The `.json` also says how the index searches: `kind` is "flat" (every vector is compared) or "ivf" (inverted lists), and
`training` how the lists were made and with what recall. Both are written and read as streams: nothing is in memory
twice. Knows nothing about the catalog or searching. Invariant: a file is a copy that can be rebuilt, so whatever is
missing, damaged or not what its `.json` says is read as nothing at all, never as a wrong index.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss

from hybridqa.catalog_rows import State
from hybridqa.files import TEMP_SUFFIX, atomic_file, atomic_write_text, sha256_file
from hybridqa.retrieval.lists import Training
from hybridqa.retrieval.vector_index import VectorIndex

log = logging.getLogger(__name__)
FORMAT = 2
FLAT_FORMAT = 1  # of an older hybridqa: flat, and without `kind` and `training`
_BLOCK = 1 << 20  # bytes


class DenseFile:
    """Where one collection's index is kept."""

    def __init__(self, directory: Path, collection: str) -> None:
        self._collection = collection
        name = hashlib.sha256(collection.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        self.index_path = directory / f"{name}.faiss"
        self.about_path = directory / f"{name}.json"

    def save(self, index: VectorIndex, embedder: str, state: State) -> None:
        """Replaces the file; a kill in between leaves a pair that `load` refuses. Raises `StorageFullError`."""
        self.index_path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with atomic_file(self.index_path) as file:

            def write(block: bytes) -> int:
                digest.update(block)
                return file.write(block)

            faiss.write_index(index.faiss_index, faiss.PyCallbackIOWriter(write, _BLOCK))
        about = {
            "format": FORMAT,
            "collection": self._collection,
            "embedder": embedder,
            "dimension": index.dimension,
            "vectors": len(index),
            "generation": state[0],
            "token": state[1],
            "sha256": digest.hexdigest(),
            "kind": "flat" if index.is_exact else "ivf",
            "training": None if index.training is None else asdict(index.training),
            "changed": index.changed,
        }
        atomic_write_text(self.about_path, json.dumps(about, indent=1, sort_keys=True) + "\n")

    def load(self, embedder: str, dimension: int, state: State) -> tuple[VectorIndex, bool] | None:
        """The index if it is whole, of this embedder and no newer than `state`, and whether it is of just this state.

        One that is not may be of another history: a catalog put back from a backup gives ids anew.
        """
        try:
            about = json.loads(self.about_path.read_text(encoding="utf-8"))
            digest = sha256_file(self.index_path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("dense index %s is not readable (%s); rebuilding it", self.index_path, error)
            return None
        problem = self._problem(about, digest, embedder, dimension, state[0])
        if problem is None:
            try:
                training = None if about.get("training") is None else Training(**about["training"])
                index = VectorIndex(faiss.read_index(str(self.index_path)), training, int(about.get("changed", 0)))
            except (RuntimeError, TypeError, ValueError) as error:  # faiss raises nothing but the first
                problem = f"it cannot be read: {error}"
            else:
                if index.is_known and (index.dimension, len(index)) == (dimension, about["vectors"]):
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

    def _problem(self, about: Any, digest: str, embedder: str, dimension: int, generation: int) -> str | None:
        if not isinstance(about, dict):
            return "its description is no JSON object"
        if about.get("format") not in (FLAT_FORMAT, FORMAT):
            return f"format is {about.get('format')!r}, not {FORMAT!r}"
        expected = {"collection": self._collection, "embedder": embedder, "dimension": dimension}
        for name, value in expected.items():
            if about.get(name) != value:
                return f"{name} is {about.get(name)!r}, not {value!r}"
        if not isinstance(about.get("generation"), int) or about["generation"] > generation:
            return f"generation is {about.get('generation')!r}, the catalog's {generation}"
        if digest != about.get("sha256"):
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
