"""Measures the dense index at many sizes: what building, searching, changing and keeping it costs, and what it finds.

    python eval/large_index.py [--sizes 10000 100000 1000000] [--output eval/results/large_index.json]

Each size has a store of its own in a temporary folder, filled through the catalog as `hybridqa add` fills it, with made
vectors (`made`): "mixed", where a passage is about three of many directions at once, is about as hard at 16,000 as real
passages are; "directions" is a plain mixture of 4,096 directions with noise; "uniform" has no structure at all. Stages
run in processes of their own, so that each has its own peak memory: `fill` the catalog, `exact` search with the index
that compares every vector, `index` with the index as it is served. Questions are stored vectors with noise (their
cosine is .5), other ones than those the index measures itself with. Prints JSON; recall is that of the ten (or fifty)
nearest against exact search, with a 95 % interval over questions. Real text: `large_index_real.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.files import atomic_write_text
from hybridqa.provenance import commit, hardware
from hybridqa.retrieval.dense import LISTS_FROM, DenseIndex
from hybridqa.types import Document

DIMENSION = 384
COLLECTION = "made"
EMBEDDER = "made"
PER_DOCUMENT = 100  # passages
SIZES = (10_000, 30_000, 50_000, 100_000, 300_000, 1_000_000)
OTHER_KINDS = ("directions", "uniform")
OTHER_SIZE = 100_000
PASSING = (0.5, 0.1, 0.01, 0.001)  # shares of the documents that a filter lets pass
NEARNESS = 0.5
Row = dict[str, Any]


def main() -> None:
    """Measures every size and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--kinds", nargs="*", default=list(OTHER_KINDS), help="measured at one size beside `mixed`")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the temporary stores are made")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--stage", choices=["fill", "exact", "index"], help=argparse.SUPPRESS)
    parser.add_argument("--kind", default="mixed", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        stage = {"fill": fill, "exact": exact, "index": indexed}[arguments.stage]
        sys.stdout.write(json.dumps(stage(arguments) | {"peak_rss_mb": peak()}))
        return
    started = time.perf_counter()
    provenance = {"commit": commit(), "hardware": hardware() | {"faiss-cpu": faiss.__version__}}
    cases = [("mixed", size) for size in arguments.sizes] + [(kind, OTHER_SIZE) for kind in arguments.kinds]
    rows = []
    for kind, size in cases:
        rows.append(measure(kind, size, arguments))
        sys.stderr.write(json.dumps(rows[-1]) + "\n")
    result = {
        "command": f"python eval/large_index.py --sizes {' '.join(map(str, arguments.sizes))} --kinds "
        f"{' '.join(arguments.kinds)} --questions {arguments.questions} --seed {arguments.seed}",
        **provenance,
        "seed": arguments.seed,
        "settings": {"dimension": DIMENSION, "passages_per_document": PER_DOCUMENT, "lists_from": LISTS_FROM},
        "made": rows,
        "seconds": round(time.perf_counter() - started, 1),
    }
    text = json.dumps(result, indent=1) + "\n"
    if arguments.output is not None:
        atomic_write_text(arguments.output, text)
    sys.stdout.write(text)


def measure(kind: str, size: int, arguments: argparse.Namespace) -> Row:
    """The three stages of one store."""
    row: Row = {"kind": kind, "passages": size}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for stage in ("fill", "exact", "index"):
            words = [sys.executable, __file__, "--stage", stage, "--kind", kind, "--sizes", str(size)]
            words += ["--questions", str(arguments.questions), "--seed", str(arguments.seed), "--folder", folder]
            row[stage] = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return row


def fill(arguments: argparse.Namespace) -> Row:
    """Puts all the documents into the catalog."""
    started = time.perf_counter()
    with Catalog.open(arguments.folder / "catalog.sqlite3", create=True) as catalog:
        for number, vectors_N_D in enumerate(made(arguments.kind, arguments.sizes[0], arguments.seed)):
            put(catalog, f"document {number}", vectors_N_D, 0)
        size = catalog.path.stat().st_size
    return {"seconds": seconds(started), "catalog_mb": round(size / 1e6)}


def put(catalog: Catalog, doc_id: str, vectors_N_D: np.ndarray, version: int) -> None:
    """A document of as many passages as there are vectors."""
    texts = [f"passage {ordinal} of {doc_id}, version {version}" for ordinal in range(len(vectors_N_D))]
    drafts, start = [], 0
    for ordinal, text in enumerate(texts):
        drafts.append(PassageDraft(ordinal, start, start + len(text), text))
        start += len(text) + 1
    document = Document(doc_id, COLLECTION, doc_id, "\n".join(texts), f"{doc_id} {version}")
    catalog.put_document(document, drafts, vectors_N_D, EMBEDDER)


def exact(arguments: argparse.Namespace) -> Row:
    """Searches that compare every vector; what they find is kept for the next stage."""
    with Catalog.open(arguments.folder / "catalog.sqlite3") as catalog:
        dense = DenseIndex(arguments.folder / "exact", catalog, lists_from=10**12)
        questions_Q_D = questions(catalog, arguments)
        started = time.perf_counter()
        dense.search(questions_Q_D[0], 1, COLLECTION)
        row: Row = {"build_and_save_seconds": seconds(started)}
        row["search_ms"], found = searched(dense, questions_Q_D, 50)
    np.savez(arguments.folder / "exact.npz", questions=questions_Q_D, ids=[[i for i, _ in hits] for hits in found])
    for path in (arguments.folder / "exact" / "dense").iterdir():
        path.unlink()
    return row


def indexed(arguments: argparse.Namespace) -> Row:
    """The index as it is served."""
    kept = np.load(arguments.folder / "exact.npz")
    questions_Q_D, truth_Q_K = kept["questions"], kept["ids"]
    logging.disable()
    with Catalog.open(arguments.folder / "catalog.sqlite3") as catalog:
        dense = DenseIndex(arguments.folder, catalog)
        started = time.perf_counter()
        dense.search(questions_Q_D[0], 1, COLLECTION)
        row: Row = {"build_and_save_seconds": seconds(started)}
        [about] = (arguments.folder / "dense").glob("*.json")
        row["manifest"] = {key: json.loads(about.read_text())[key] for key in ("kind", "training")}
        row["file_mb"] = round(about.with_suffix(".faiss").stat().st_size / 1e6)
        row["search_ms"], found = searched(dense, questions_Q_D, 50)
        row["search_ms"]["k=10, 1 thread"] = searched(dense, questions_Q_D, 10, threads=(1,))[0]["k=50, 1 thread"]
        row["recall_at_10"] = recall([hits[:10] for hits in found], truth_Q_K[:, :10])
        row["recall_at_50"] = recall(found, truth_Q_K)
        row["filtered"] = [filtered(dense, catalog, questions_Q_D[:100], share, arguments.seed) for share in PASSING]
        ids = truth_Q_K.ravel()[:: max(1, truth_Q_K.size // 50)].tolist()
        row["cosines_ms"] = cosines_ms(dense, questions_Q_D, ids)
        started = time.perf_counter()
        dense._part(COLLECTION).unsaved = 1
        dense.save()
        row["save_seconds"] = seconds(started)
        started = time.perf_counter()
        dense = DenseIndex(arguments.folder, catalog)
        dense.search(questions_Q_D[0], 1, COLLECTION)
        row["load_seconds"] = seconds(started)
        vectors_N_D = next(made(arguments.kind, PER_DOCUMENT, arguments.seed + 7))
        gone = {passage.passage_id for passage in catalog.document_passages(COLLECTION, "document 5")}
        changes = {
            "add_a_document": lambda: put(catalog, "new", vectors_N_D, 0),
            "replace_a_document": lambda: put(catalog, "document 3", vectors_N_D, 1),
            "delete_a_document": lambda: catalog.remove_document(COLLECTION, "document 5"),
        }
        for name, change in changes.items():
            started = time.perf_counter()
            change()
            row[f"{name}_seconds"] = seconds(started)
            started = time.perf_counter()
            found = dense.search(vectors_N_D[0], 2, COLLECTION)
            row[f"{name}_then_search_seconds"] = seconds(started)
            assert found[0][1] > 0.999, f"what {name} put in is not found"
        assert [cosine > 0.999 for _, cosine in found] == [True, True]
        assert not gone & set(dense._part(COLLECTION).index.ids.tolist())
    return row


def filtered(dense: DenseIndex, catalog: Catalog, questions_Q_D: np.ndarray, share: float, seed: int) -> Row:
    """Searches among the passages of a share of the documents, chosen by chance, against all of these compared."""
    rng = np.random.default_rng(seed)
    documents = [document.doc_id for document in catalog.list_documents(COLLECTION)]
    chosen = rng.choice(documents, max(1, int(share * len(documents))), replace=False)
    only = np.sort(
        np.array([p.passage_id for doc_id in chosen for p in catalog.document_passages(COLLECTION, str(doc_id))])
    )
    ids, scores_Q_N = [], []
    for batch, vectors_N_D in catalog.iter_vectors(ids=only):
        ids.append(batch)
        scores_Q_N.append(questions_Q_D @ vectors_N_D.T)
    best_Q_K = np.argsort(-np.concatenate(scores_Q_N, axis=1), axis=1)[:, :10]
    truth_Q_K = np.concatenate(ids)[best_Q_K]
    times, found = [], []
    for query_D in questions_Q_D:
        started = time.perf_counter()
        found.append(dense.search(query_D, 10, COLLECTION, only=only))
        times.append(time.perf_counter() - started)
    return {
        "share": share,
        "passages": len(only),
        "search_ms": percentiles(times),
        "recall_at_10": recall(found, truth_Q_K),
    }


def searched(
    dense: DenseIndex, questions_Q_D: np.ndarray, k: int, threads: tuple[int, ...] = (1, 2)
) -> tuple[Row, list[list[tuple[int, float]]]]:
    """Milliseconds of a search with so many threads, and what was found."""
    row, found = {}, []
    for count in threads:
        faiss.omp_set_num_threads(count)
        dense.search(questions_Q_D[0], k, COLLECTION)
        times, found = [], []
        for query_D in questions_Q_D:
            started = time.perf_counter()
            found.append(dense.search(query_D, k, COLLECTION))
            times.append(time.perf_counter() - started)
        row[f"k=50, {count} thread{'s' if count > 1 else ''}"] = percentiles(times)
    return row, found


def made(kind: str, size: int, seed: int) -> Iterator[np.ndarray]:
    """The vectors of one document after another."""
    rng = np.random.default_rng([seed, 0])
    directions = {"mixed": ((50, 0.15), (500, 0.15), (4_000, 0.2)), "directions": ((4_096, 0.5),), "uniform": ()}[kind]
    centres = [(unit(np.random.default_rng([9, n]).standard_normal((n, DIMENSION))), w) for n, w in directions]
    own = {"mixed": 0.15, "directions": 0.0, "uniform": 0.0}[kind]
    noise = {"mixed": 0.35, "directions": 0.5, "uniform": 1.0}[kind]
    for _ in range(size // PER_DOCUMENT):
        # eight passages are about one thing, and a document about several
        things = PER_DOCUMENT // 8 + 1
        middle_N_D = np.sqrt(own) * unit(rng.standard_normal((things, DIMENSION)))
        for directions_N_D, weight in centres:
            middle_N_D += np.sqrt(weight) * directions_N_D[rng.integers(0, len(directions_N_D), things)]
        around_N_D = np.sqrt(noise) * unit(rng.standard_normal((PER_DOCUMENT, DIMENSION)))
        yield unit(np.repeat(middle_N_D, 8, axis=0)[:PER_DOCUMENT] + around_N_D)


def questions(catalog: Catalog, arguments: argparse.Namespace) -> np.ndarray:
    """Stored vectors, chosen by chance, with noise."""
    rng = np.random.default_rng([arguments.seed, 1])
    _, vectors_Q_D = catalog.vectors(rng.choice(catalog.vector_ids(COLLECTION), arguments.questions, replace=False))
    noise_Q_D = unit(rng.standard_normal(vectors_Q_D.shape))
    return unit(NEARNESS * vectors_Q_D + np.sqrt(1 - NEARNESS**2) * noise_Q_D)


def unit(vectors_N_D: np.ndarray) -> np.ndarray:
    """Each of length 1, float32."""
    return (vectors_N_D / np.linalg.norm(vectors_N_D, axis=1, keepdims=True)).astype(np.float32)


def recall(found: list[list[tuple[int, float]]], truth_Q_K: np.ndarray) -> Row:
    """The share of the nearest that was found, with its 95 % interval over questions."""
    shares = [
        len({i for i, _ in hits} & set(truth)) / len(truth)
        for hits, truth in zip(found, truth_Q_K.tolist(), strict=True)
    ]
    half = 1.96 * float(np.std(shares)) / np.sqrt(len(shares))
    mean = float(np.mean(shares))
    return {
        "mean": round(mean, 4),
        "interval": [round(mean - half, 4), round(min(1.0, mean + half), 4)],
        "questions": len(shares),
    }


def percentiles(times: list[float]) -> Row:
    """Milliseconds."""
    return {"p50": round(float(np.median(times)) * 1e3, 2), "p95": round(float(np.percentile(times, 95)) * 1e3, 2)}


def cosines_ms(dense: DenseIndex, questions_Q_D: np.ndarray, ids: list[int]) -> float:
    """Milliseconds that the cosines of a question with these passages take, in the median."""
    times = []
    for query_D in questions_Q_D[:50]:
        started = time.perf_counter()
        dense.cosines(query_D, ids, COLLECTION)
        times.append(time.perf_counter() - started)
    return percentiles(times)["p50"]


def seconds(started: float) -> float:
    """Since then."""
    return round(time.perf_counter() - started, 3)


def peak() -> int:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
