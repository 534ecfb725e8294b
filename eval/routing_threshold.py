"""Measures the router's evidence: how often the right document passes the threshold, and how often a stranger does.

    python eval/routing_threshold.py --data DATA [--threshold 0.35] [--output eval/results/routing_threshold.json]

DATA holds NAME.docs.jsonl ({"doc_id", "title", "text"}) and NAME.questions.jsonl ({"question", "doc_ids"}). For each
set a store is made of three quarters of its (sampled) documents, with the default embedder, and asked three kinds of
questions: on topic (its document is in the store), near (its document is of the quarter left out: the same kind of
text, a hard case) and far (of another set). Prints JSON; shares come with 95 % Wilson intervals.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from hybridqa.catalog import Catalog
from hybridqa.config import Settings
from hybridqa.files import atomic_write_text
from hybridqa.ingest.passages import split_passages
from hybridqa.models import DEFAULT_EMBEDDER, resolve_embedder
from hybridqa.provenance import commit, hardware
from hybridqa.retrieval.dense import DenseIndex
from hybridqa.retrieval.embedder import Embedder
from hybridqa.retrieval.lexical import LexicalIndex
from hybridqa.retrieval.searcher import Searcher
from hybridqa.routing.evidence import document_evidence
from hybridqa.types import Document

FITTED = ("newwiki_train", "fairytaleqa", "policyqa", "covidqa")  # the evidence's weights come from these
CHECKED = ("emanual_tv", "amazon_train", "dynamicqa", "quail", "realtimeqa_stream")
PASSAGES = 8
THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
Row = dict[str, Any]


def main() -> None:
    """Measures every set and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=[*FITTED, *CHECKED])
    parser.add_argument("--documents", type=int, default=24, help="sampled from each set")
    parser.add_argument("--questions", type=int, default=100, help="of each kind and set")
    parser.add_argument("--threshold", type=float, default=Settings.model_fields["module_threshold"].default)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    embedder = Embedder(resolve_embedder(DEFAULT_EMBEDDER))
    sets = {name: sample(arguments.data, name, arguments) for name in arguments.sets}
    measured = {name: measure(name, sets, embedder, arguments) for name in sets}
    result = {
        "command": f"python eval/routing_threshold.py --data DATA --sets {' '.join(sets)} "
        f"--documents {arguments.documents} --questions {arguments.questions} "
        f"--threshold {arguments.threshold} --seed {arguments.seed}",
        "commit": commit(),
        "hardware": hardware(),
        "seed": arguments.seed,
        "embedder": embedder.fingerprint,
        "settings": {"threshold": arguments.threshold, "documents": arguments.documents, "passages": PASSAGES},
        "sets": {name: summary(rows, arguments.threshold) for name, rows in measured.items()},
        "groups": {
            group: {
                str(threshold): summary(
                    [row for name in names if name in measured for row in measured[name]], threshold
                )
                for threshold in THRESHOLDS
            }
            for group, names in (("fitted", FITTED), ("checked", CHECKED))
        },
        "seconds": round(time.perf_counter() - started, 1),
    }
    text = json.dumps(result, indent=1) + "\n"
    if arguments.output is not None:
        atomic_write_text(arguments.output, text)
    sys.stdout.write(text)


def sample(data: Path, name: str, arguments: argparse.Namespace) -> dict[str, list[Row]]:
    """The set's documents in the store, and its questions about them ("on") and about those left out ("near")."""
    rng = random.Random(f"{arguments.seed} {name}")
    # of two versions of one document the first
    documents = [row for row in read(data / f"{name}.docs.jsonl") if not row["doc_id"].endswith("@v2")]
    rng.shuffle(documents)
    documents = documents[: arguments.documents * (6 if mean_length(documents) < 2_000 else 1)]
    left_out = {row["doc_id"] for row in documents[: len(documents) // 4]}
    stored = {row["doc_id"] for row in documents} - left_out
    kinds: dict[str, list[Row]] = {
        "documents": [row for row in documents if row["doc_id"] in stored],
        "on": [],
        "near": [],
    }
    questions = [
        row for row in read(data / f"{name}.questions.jsonl") if row["doc_ids"] and not row.get("unanswerable")
    ]
    rng.shuffle(questions)
    for row in questions:
        for kind, ids in (("on", stored), ("near", left_out)):
            if set(row["doc_ids"]) <= ids and len(kinds[kind]) < arguments.questions:
                kinds[kind].append(row)
    return kinds


def measure(
    name: str, sets: dict[str, dict[str, list[Row]]], embedder: Embedder, arguments: argparse.Namespace
) -> list[Row]:
    """For each question its kind, the right document's evidence and the strongest document's."""
    rng = random.Random(f"{arguments.seed} far {name}")
    far = [row for other in sets if other != name for row in sets[other]["on"]]
    asked = [("on", row) for row in sets[name]["on"]] + [("near", row) for row in sets[name]["near"]]
    asked += [("far", row) for row in rng.sample(far, min(arguments.questions, len(far)))]
    rows = []
    with tempfile.TemporaryDirectory() as folder, Catalog.open(Path(folder) / "c.sqlite3", create=True) as catalog:
        for row in sets[name]["documents"]:
            put(catalog, name, row, embedder)
        searcher = Searcher(catalog, embedder, DenseIndex(Path(folder), catalog), LexicalIndex(catalog))
        for kind, row in asked:
            found = searcher.search(row["question"], k=PASSAGES, collection=name)
            evidence = document_evidence(row["question"], found)
            best = max(evidence, key=lambda doc_id: evidence[doc_id], default=None)
            rows.append(
                {
                    "kind": kind,
                    "right": max((evidence.get(doc_id, 0.0) for doc_id in row["doc_ids"]), default=0.0),
                    "best": evidence[best] if best is not None else 0.0,
                    "best_is_right": best in row["doc_ids"],
                    "first_is_right": bool(found) and found[0].passage.doc_id in row["doc_ids"],
                }
            )
    sys.stderr.write(f"{name}: {len(sets[name]['documents'])} documents, {len(rows)} questions\n")
    return rows


def put(catalog: Catalog, collection: str, row: Row, embedder: Embedder) -> None:
    """Adds one document as `hybridqa add` would."""
    tokens = min(Settings.model_fields["passage_tokens"].default, embedder.max_tokens)
    drafts = split_passages(row["text"], [], embedder.count_tokens, tokens)
    if drafts:
        digest = hashlib.sha256(row["text"].encode()).hexdigest()
        vectors_N_D = embedder.embed_passages([embedder.passage_text(row["title"], d.heading, d.text) for d in drafts])
        document = Document(row["doc_id"], collection, row["title"], row["text"], digest)
        catalog.put_document(document, drafts, vectors_N_D, embedder.fingerprint)


def summary(rows: list[Row], threshold: float) -> dict[str, Any]:
    """Shares over the questions of each kind."""
    on = [row for row in rows if row["kind"] == "on"]
    strangers = {kind: [row for row in rows if row["kind"] == kind] for kind in ("near", "far")}
    return {
        "search_puts_right_document_first": share([row["first_is_right"] for row in on]),
        "on_right_passes": share([row["right"] >= threshold for row in on]),
        "on_wrong_is_chosen": share([row["best"] >= threshold and not row["best_is_right"] for row in on]),
        **{f"{kind}_passes": share([row["best"] >= threshold for row in of]) for kind, of in strangers.items()},
        "on_right_quantiles": quantiles([row["right"] for row in on]),
        **{f"{kind}_best_quantiles": quantiles([row["best"] for row in of]) for kind, of in strangers.items()},
    }


def share(outcomes: list[bool]) -> dict[str, Any]:
    """A share with its 95 % Wilson interval."""
    n, z = len(outcomes), 1.96
    if not n:
        return {"share": None, "n": 0}
    p = sum(outcomes) / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {
        "share": round(p, 4),
        "interval": [round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)],
        "n": n,
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Where 5, 25, 50, 75 and 95 % of the values lie."""
    points = (5, 25, 50, 75, 95)
    return {str(p): round(float(np.percentile(values, p)), 3) for p in points} if values else {}


def mean_length(documents: list[Row]) -> float:
    """Characters."""
    return sum(len(row["text"]) for row in documents) / max(1, len(documents))


def read(path: Path) -> list[Row]:
    """The rows of a JSON lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    main()
