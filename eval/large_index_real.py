"""Measures the dense index's lists on real text: sentences of public documents, and the questions that go with them.

    python eval/large_index_real.py --data DATA [--cache FILE.npz] [--output eval/results/large_index_real.json]

DATA holds NAME.docs.jsonl ({"doc_id", "title", "text"}) and NAME.questions.jsonl ({"question"}). All their different
sentences are embedded with the default embedder; lists are made for growing parts of them, chosen by chance, and
searched with questions. Prints JSON: recall of the ten nearest against exact search, with a 95 % interval over
questions, beside what the index measured by itself with noisy sentences, and milliseconds of both searches.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from large_index import percentiles, recall

from hybridqa.files import atomic_write_text
from hybridqa.ingest.sentences import split_sentences
from hybridqa.models import DEFAULT_EMBEDDER, resolve_embedder
from hybridqa.provenance import commit, hardware
from hybridqa.retrieval.embedder import Embedder
from hybridqa.retrieval.vector_index import VectorIndex

SIZES = (8_000, 16_000, 32_000, 64_000, 128_000)
LENGTHS = (30, 300)  # characters of a sentence
QUESTIONS = 1_000
CHUNK = 4_096
PASSING = (0.1, 0.01)
Row = dict[str, Any]


def main() -> None:
    """Measures every size and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="where the embeddings are kept for the next run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    provenance = {"commit": commit(), "hardware": hardware() | {"faiss-cpu": faiss.__version__}}
    faiss.omp_set_num_threads(1)
    embedder = Embedder(resolve_embedder(DEFAULT_EMBEDDER))
    sentences_N_D, questions_Q_D = embedded(arguments, embedder)
    sizes = [size for size in SIZES if size < len(sentences_N_D)] + [len(sentences_N_D)]
    result = {
        "command": f"python eval/large_index_real.py --data DATA --seed {arguments.seed}",
        **provenance,
        "seed": arguments.seed,
        "embedder": embedder.fingerprint,
        "sizes": [measure(sentences_N_D[:size], questions_Q_D, arguments.seed) for size in sizes],
        "seconds": round(time.perf_counter() - started, 1),
    }
    text = json.dumps(result, indent=1) + "\n"
    if arguments.output is not None:
        atomic_write_text(arguments.output, text)
    sys.stdout.write(text)


def embedded(arguments: argparse.Namespace, embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
    """The sentences' vectors in random order, and the questions'."""
    if arguments.cache is not None and arguments.cache.exists():
        kept = np.load(arguments.cache)
        return kept["sentences"], kept["questions"]
    rng = random.Random(arguments.seed)
    sentences, questions = set(), set()
    for path in sorted(arguments.data.glob("*.docs.jsonl")):
        for row in read(path):
            spans = split_sentences(row["text"])
            sentences |= {" ".join(row["text"][start:end].split()) for start, end in spans}
    for path in sorted(arguments.data.glob("*.questions.jsonl")):
        questions |= {row["question"] for row in read(path)}
    chosen = sorted(text for text in sentences if LENGTHS[0] <= len(text) <= LENGTHS[1])
    rng.shuffle(chosen)
    asked = rng.sample(sorted(questions), QUESTIONS)
    sys.stderr.write(f"{len(chosen)} sentences\n")
    parts = []
    for start in range(0, len(chosen), CHUNK):
        chunk = chosen[start : start + CHUNK]
        order = sorted(range(len(chunk)), key=lambda place: len(chunk[place]))  # of like length: no padding
        vectors_N_D = np.empty((len(chunk), embedder.dimensions), np.float32)
        vectors_N_D[order] = embedder.embed_passages([chunk[place] for place in order])
        parts.append(vectors_N_D)
        sys.stderr.write(f"{start + len(chunk)} embedded\n")
    sentences_N_D, questions_Q_D = np.concatenate(parts), np.stack([embedder.embed_query(text) for text in asked])
    if arguments.cache is not None:
        np.savez(arguments.cache, sentences=sentences_N_D, questions=questions_Q_D)
    return sentences_N_D, questions_Q_D


def measure(vectors_N_D: np.ndarray, questions_Q_D: np.ndarray, seed: int) -> Row:
    """Lists over these vectors, against all of them compared."""
    exact = VectorIndex.empty(vectors_N_D.shape[1])
    exact.add(np.arange(1, len(vectors_N_D) + 1), vectors_N_D)
    started = time.perf_counter()
    index = exact.renewed(1)
    row: Row = {"vectors": len(exact), "training_seconds": round(time.perf_counter() - started, 2)}
    assert index.training is not None
    row |= {"nlist": index.training.nlist, "nprobe": index.training.nprobe, "own_recall_at_10": index.training.recall}
    ids = exact.ids
    rng = np.random.default_rng(seed)
    for share in (1.0, *PASSING):
        only = None if share == 1 else np.sort(rng.choice(ids, int(share * len(ids)), replace=False))
        truth, exact_times = searched(exact, questions_Q_D, only)
        found, times = searched(index, questions_Q_D, only)
        truth_Q_K = np.array([[i for i, _ in hits] for hits in truth])
        row["all" if only is None else f"{share:.0%} pass a filter"] = {
            "recall_at_10": recall(found, truth_Q_K),
            "search_ms": percentiles(times),
            "exact_search_ms": percentiles(exact_times),
        }
    sys.stderr.write(json.dumps(row) + "\n")
    return row


def searched(
    index: VectorIndex, questions_Q_D: np.ndarray, only: np.ndarray | None
) -> tuple[list[list[tuple[int, float]]], list[float]]:
    """The ten nearest to each question, and the seconds that each took."""
    found, times = [], []
    for query_D in questions_Q_D:
        started = time.perf_counter()
        hits = index.search(query_D[None], 10, only)
        times.append(time.perf_counter() - started)
        found.append(sorted(hits, key=lambda pair: (-pair[1], pair[0])))
    return found, times


def read(path: Path) -> list[Row]:
    """The rows of a JSON lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    main()
