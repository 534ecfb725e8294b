"""Measures what a question costs before the engine at many passages and modules, embedding apart.

    python eval/routing_speed.py [--documents 10000] [--output eval/results/routing_speed.json]

A store of made documents, ten passages and a published module each, is filled through the catalog. Words follow Zipf's
law over a made vocabulary and vectors are those of `large_index.py`, so that full text and lists have as much to do as
with real text of that size. A question is made of words of one passage, half of them rare, and its vector with noise.
Searched and routed as an answer is, with everything warm. Prints JSON with milliseconds by step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from large_index import DIMENSION, made, percentiles, unit

from hybridqa.answering.answerer import ROUTING_PASSAGES
from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.config import Settings
from hybridqa.files import atomic_write_text
from hybridqa.provenance import commit, hardware
from hybridqa.retrieval.dense import DenseIndex
from hybridqa.retrieval.lexical import LexicalIndex
from hybridqa.retrieval.searcher import Searcher
from hybridqa.routing.router import Router
from hybridqa.types import Document, Mode, Module, ModuleStatus

COLLECTION = "made"
PER_DOCUMENT = 10
WORDS = 100  # of a passage
VOCABULARY = 200_000
QUESTION_WORDS = 8
RARE = 2_000  # words beyond so many commonest ones are rare


class KnownVectors:
    """Stands where the embedder does: gives each question the vector that was made for it."""

    fingerprint = "made"

    def __init__(self) -> None:
        self.vectors: dict[str, np.ndarray] = {}

    def embed_query(self, text: str) -> np.ndarray:
        """The vector (D,) of a question that was made."""
        return self.vectors[text]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Catalog.open(Path(folder) / "c.sqlite3", create=True) as catalog:
        begun = time.perf_counter()
        fill(catalog, options.documents, options.seed)
        sys.stderr.write(f"filled in {time.perf_counter() - begun:.0f} s\n")
        steps, modules = measure(catalog, Path(folder), options)
    result = {
        "command": f"python eval/routing_speed.py --documents {options.documents} --questions {options.questions} "
        f"--seed {options.seed}",
        "commit": commit(),
        "hardware": hardware(),
        "seed": options.seed,
        "passages": options.documents * PER_DOCUMENT,
        "modules": options.documents,
        "questions": options.questions,
        "ms": {step: percentiles(times) for step, times in steps.items()},
        "questions_with_a_module": modules,
    }
    text = json.dumps(result, indent=1) + "\n"
    if options.output is not None:
        atomic_write_text(options.output, text)
    sys.stdout.write(text)


def fill(catalog: Catalog, documents: int, seed: int) -> None:
    """Puts the documents and their modules into the catalog."""
    rng = np.random.default_rng([seed, 7])
    parts = made("mixed", documents * PER_DOCUMENT, seed)
    waiting = np.empty((0, DIMENSION), np.float32)
    for number in range(documents):
        while len(waiting) < PER_DOCUMENT:
            waiting = np.concatenate([waiting, next(parts)])
        vectors_N_D, waiting = waiting[:PER_DOCUMENT], waiting[PER_DOCUMENT:]
        texts = [" ".join(f"w{rank}" for rank in drawn_words(rng, WORDS)) for _ in range(PER_DOCUMENT)]
        drafts, start = [], 0
        for ordinal, text in enumerate(texts):
            drafts.append(PassageDraft(ordinal, start, start + len(text), text))
            start += len(text) + 1
        doc_id = f"document-{number}"
        document = Document(doc_id, COLLECTION, f"w{rng.integers(RARE, VOCABULARY)}", "\n".join(texts), f"h{number}")
        catalog.put_document(document, drafts, vectors_N_D, KnownVectors.fingerprint)
        path = Path("modules") / doc_id
        status = ModuleStatus.PUBLISHED
        catalog.add_module(Module(doc_id, 1, COLLECTION, path, {doc_id: f"h{number}"}, "base", 16, status, False))
        catalog.set_current(COLLECTION, doc_id, 1)


def drawn_words(rng: np.random.Generator, count: int) -> np.ndarray:
    """Ranks of words, 1 the commonest, by Zipf's law over the vocabulary."""
    return np.minimum(np.exp(rng.random(count) * np.log(VOCABULARY)).astype(int), VOCABULARY)


def measure(catalog: Catalog, folder: Path, options: argparse.Namespace) -> tuple[dict[str, list[float]], int]:
    """Seconds of each step for each question, and how many questions got a module."""
    embedder = KnownVectors()
    rng = np.random.default_rng([options.seed, 8])
    ids = rng.choice(catalog.vector_ids(COLLECTION), options.questions, replace=False)
    found_ids, vectors_Q_D = catalog.vectors(ids)
    noisy_Q_D = unit(vectors_Q_D + unit(rng.standard_normal(vectors_Q_D.shape)) * 1.2)
    passages = catalog.get_passages(found_ids.tolist())
    questions = []
    for passage_id, vector_D in zip(found_ids.tolist(), noisy_Q_D, strict=True):
        words = sorted({int(word[1:]) for word in passages[passage_id].text.split()})
        rare, common = [w for w in words if w > RARE], [w for w in words if w <= RARE]
        picked = [*rng.permutation(rare)[: QUESTION_WORDS // 2], *rng.permutation(common)[: QUESTION_WORDS // 2]]
        question = " ".join(f"w{rank}" for rank in picked) + "?"
        embedder.vectors[question] = vector_D
        questions.append(question)
    searcher = Searcher(catalog, embedder, DenseIndex(folder, catalog), LexicalIndex(catalog))  # type: ignore[arg-type]
    settings = Settings()
    router = Router(
        catalog,
        "base",
        modules=settings.modules,
        module_threshold=settings.module_threshold,
        passage_threshold=settings.passage_threshold,
        max_rank=settings.max_lora_rank,
    )
    searcher.search(questions[0], k=ROUTING_PASSAGES, collection=COLLECTION)  # the index is built here
    steps: dict[str, list[float]] = {}
    plugged = 0
    for question in questions:
        spent: dict[str, Any] = {}
        begun = time.perf_counter()
        found = searcher.search(question, k=ROUTING_PASSAGES, collection=COLLECTION, timings=spent)
        middle = time.perf_counter()
        route = router.route(found, Mode.HYBRID, COLLECTION, k=settings.passages)
        ended = time.perf_counter()
        plugged += bool(route.modules)
        for step, seconds in {**spent, "search": middle - begun, "route": ended - middle, "all": ended - begun}.items():
            steps.setdefault(step, []).append(seconds)
    return steps, plugged


if __name__ == "__main__":
    main()
