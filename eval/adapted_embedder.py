"""Says what an embedder that is adapted to a collection, by questions made from it, is worth to search.

    python eval/adapted_embedder.py --data DATA [--sets NAME ...] [--loss margins] [--student encoder] [--output FILE]

DATA holds NAME.docs.jsonl and NAME.questions.jsonl. Questions are made from the passages of four fifths of a set's
documents, and what embeds questions learns that each is nearest to its own passage; passages keep their vectors. What
learns is a matrix on questions' vectors, pulled towards the identity, or with `--student encoder` the whole model. The
questions are made by rule, and each has all other passages against it. With `--loss margins` the engine writes them,
past the trainer's critic, and the model that reranks says how much likelier each is behind its own passage than behind
others that search finds: that is to be the margin of their cosines (arXiv 2010.02666). Asked are questions of the
documents held out, made in the same way, and the set's own, from which nothing learns. Prints JSON.
"""

from __future__ import annotations

import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from fusion_weights import KS, asked_for, opened, tell
from question_memory import Made, by_rule, drawn, vectors_of, written
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from hybridqa.answering.answerer import ROUTING_PASSAGES
from hybridqa.evaluation.datasets import EvalQuestion, cluster_of
from hybridqa.evaluation.retrieval import RetrievalPlan, recall
from hybridqa.evaluation.statistics import mean_interval, paired_difference
from hybridqa.evaluation.ways import DEPTH
from hybridqa.pipeline import HybridQA
from hybridqa.provenance import commit, hardware
from hybridqa.retrieval.embedder import Embedder
from hybridqa.retrieval.lexical import LexicalIndex
from hybridqa.retrieval.searcher import Searcher
from hybridqa.types import DEFAULT_COLLECTION

SETS = "dynamicqa emanual_tv fairytaleqa newwiki_dev policyqa quail".split()
LOSSES = ("contrastive", "margins")
STUDENTS = ("map", "encoder")
EACH = {"contrastive": 8, "margins": 4}  # questions of a passage, at most
CANDIDATES = 8  # passages that the teacher compares for a question
HELD = 5  # one document of so many is held out
TEMPERATURE = 0.05  # of cosines
STRENGTH = 0.01  # of the matrix's pull towards the identity
ITERATIONS = 40
STEPS, QUESTIONS, RATE = 150, 48, 2e-5  # of the encoder: steps, questions in each, learning rate
Ranked = dict[str, list[list[list[str]]]]  # by way of searching: before and after, of each question its documents
ROOM = {"kv_cache_mb": 3000}  # the teacher reads the same passages again and again


@dataclass(slots=True)
class Lessons:
    """Questions with the places of their own passages, and for margins those of others with how far they are behind."""

    texts: list[str]
    vectors_Q_D: Tensor
    own_Q: Tensor
    others_Q_K: Tensor | None = None
    margins_Q_K: Tensor | None = None  # in nats for each of the question's tokens; not a number where there is none

    def some(self, places: Sequence[int]) -> Lessons:
        """Those at some places."""
        chosen = torch.tensor(list(places), dtype=torch.long)
        others, margins = (None if tensor is None else tensor[chosen] for tensor in (self.others_Q_K, self.margins_Q_K))
        texts = [self.texts[place] for place in places]
        return Lessons(texts, self.vectors_Q_D[chosen], self.own_Q[chosen], others, margins)


class Adapted(Embedder):
    """The embedder, with another way to embed questions beside the same vectors of passages."""

    def __init__(self, base: Embedder, query: Callable[[str], np.ndarray]) -> None:
        super().__init__(base.path)
        self._query = query

    def embed_query(self, text: str) -> np.ndarray:
        """The vector (D,) of a question."""
        return self._query(text)


def main() -> None:
    """Learns, measures and prints."""
    options = asked_for(__doc__, most=400, sets=SETS, add=own_options)
    begun = time.perf_counter()
    torch.manual_seed(options.seed)
    sets = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets:
            with opened(options, name, folder, **ROOM) as (plan, store):
                sets[name] = measured(store, plan, options.loss, options.student, options.seed)
            sys.stderr.write(f"{name}: {len(plan.questions)} questions, {sets[name]['made']} made\n")
    result = {
        "command": f"python eval/adapted_embedder.py --data DATA --sets {' '.join(options.sets)} --loss {options.loss} "
        f"--student {options.student} --most {options.most} --seed {options.seed}",
        "commit": commit(),
        "hardware": hardware(),
        "seed": options.seed,
        "settings": {
            "each": EACH[options.loss],
            "temperature": TEMPERATURE,
            **(
                {"strength": STRENGTH, "iterations": ITERATIONS}
                if options.student == "map"
                else {"steps": STEPS, "questions": QUESTIONS, "rate": RATE}
            ),
            **({"candidates": CANDIDATES} if options.loss == "margins" else {}),
        },
        "sets": sets,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    tell(result, options.output)


def own_options(parser: ArgumentParser) -> None:
    """What is asked beside the rest."""
    parser.add_argument("--loss", choices=LOSSES, default=LOSSES[0])
    parser.add_argument("--student", choices=STUDENTS, default=STUDENTS[0])


def measured(store: HybridQA, plan: RetrievalPlan, loss: str, student: str, seed: int) -> dict[str, Any]:
    """Learns from most documents of a set; recall before and after, of vectors alone and of the whole search."""
    passages = [passage for some in store.catalog.iter_passages() for passage in some]
    vectors_N_D = torch.from_numpy(store.catalog.vectors()[1])  # by passage id, as the passages are
    places = {passage.passage_id: place for place, passage in enumerate(passages)}
    doc_ids = sorted({passage.doc_id for passage in passages})
    held = set(Random(seed).sample(doc_ids, max(1, len(doc_ids) // HELD)))
    if loss == "contrastive":
        found = by_rule(passages, seed)
        made = [(one, text) for one, texts in found.items() for text in drawn(texts, EACH[loss], seed, one)]
        lessons = lessons_of(store.embedder, made, places)
    else:
        made = written(store, passages, EACH[loss], seed)
        lessons = taught(store, made, places)
    apart = [passages[int(own)].doc_id in held for own in lessons.own_Q]
    learned = lessons.some([place for place, away in enumerate(apart) if not away])
    tested = lessons.some([place for place, away in enumerate(apart) if away])
    begun = time.perf_counter()
    if student == "map":
        matrix_D_D = learned_map(learned, vectors_N_D)

        def embed(text: str) -> np.ndarray:
            vector_D: np.ndarray = mapped(torch.from_numpy(store.embedder.embed_query(text)), matrix_D_D).numpy()
            return vector_D
    else:
        embed = learned_encoder(store.embedder, learned, vectors_N_D, seed)
    seconds = time.perf_counter() - begun
    adapted = Adapted(store.embedder, embed)
    after_Q_D = torch.from_numpy(vectors_of(adapted, tested.texts))
    nearest = [first(vectors_Q_D, tested.own_Q, vectors_N_D) for vectors_Q_D in (tested.vectors_Q_D, after_Q_D)]
    sources = [passages[int(own)].doc_id for own in tested.own_Q]
    return {
        "made": len(made),
        "learned_from": len(learned.texts),
        "seconds": seconds,
        "made_of_documents_held_out": compared(*nearest, sources, seed),
        **scores(plan.questions, both_ways(store, adapted, plan.questions), held, seed),
    }


def scores(questions: Sequence[EvalQuestion], ranked: Ranked, held: set[str], seed: int) -> dict[str, Any]:
    """Recall by way of searching, documents that are asked about, and k."""
    away = [not held.isdisjoint(question.doc_ids) for question in questions]
    parts = {
        "all": list(range(len(questions))),
        "of documents learned from": [place for place, out in enumerate(away) if not out],
        "of documents held out": [place for place, out in enumerate(away) if out],
    }
    told: dict[str, Any] = {}
    for way, lists in ranked.items():
        told[way] = {}
        for part, chosen in parts.items():
            if chosen:
                clusters = [cluster_of(questions[place]) for place in chosen]
                told[way][part] = {
                    str(k): compared(
                        *([recall(found[place], questions[place].doc_ids, k) for place in chosen] for found in lists),
                        clusters,
                        seed,
                    )
                    for k in KS
                }
    return told


def both_ways(store: HybridQA, adapted: Embedder, questions: Sequence[EvalQuestion]) -> Ranked:
    """Documents best first, of each question, before and after, by vectors alone and by the whole search."""
    lexical = LexicalIndex(store.catalog)

    def by_vectors(embedder: Embedder, text: str) -> list[str]:
        found = store.dense.search(embedder.embed_query(text), DEPTH, DEFAULT_COLLECTION)
        known = store.catalog.get_passages([place for place, _ in found])
        return list(dict.fromkeys(known[place].doc_id for place, _ in found))

    def by_search(embedder: Embedder, text: str) -> list[str]:
        searcher = Searcher(store.catalog, embedder, store.dense, lexical)
        found = searcher.search(text, k=ROUTING_PASSAGES, collection=DEFAULT_COLLECTION)
        return list(dict.fromkeys(one.doc_id for scored in found for one in (scored.passage, *scored.also)))

    return {
        name: [[way(embedder, one.question) for one in questions] for embedder in (store.embedder, adapted)]
        for name, way in (("dense", by_vectors), ("search", by_search))
    }


def compared(before: list[float], after: list[float], clusters: Sequence[str], seed: int) -> dict[str, Any]:
    """Both means, and how far the second is ahead."""
    return {
        "questions": len(before),
        "before": mean_interval(before, clusters, seed=seed),
        "after": mean_interval(after, clusters, seed=seed),
        "ahead": paired_difference(after, before, clusters, seed=seed),
    }


def lessons_of(embedder: Embedder, made: Made, places: dict[int, int]) -> Lessons:
    """Questions and their own passages."""
    texts = [text for _, text in made]
    vectors_Q_D = torch.from_numpy(vectors_of(embedder, texts))
    return Lessons(texts, vectors_Q_D, torch.tensor([places[one] for one, _ in made]))


def taught(store: HybridQA, made: Made, places: dict[int, int]) -> Lessons:
    """Questions whose own passage search finds, with how much likelier the base model finds them behind it."""
    kept: Made = []
    others_Q_K, margins_Q_K = [], []
    for one, text in made:
        seeking = store.seeker.seek(text, k=CANDIDATES, collection=DEFAULT_COLLECTION, rerank=CANDIDATES)
        found = {scored.passage.passage_id: scored.likelihood for scored in store.run(seeking).passages}
        own = found.pop(one, None)
        if own is None or not found:
            continue
        kept.append((one, text))
        empty = CANDIDATES - len(found)
        others_Q_K.append([places[other] for other in found] + [0] * empty)
        margins_Q_K.append([np.nan if known is None else own - known for known in found.values()] + [np.nan] * empty)
    lessons = lessons_of(store.embedder, kept, places)
    lessons.others_Q_K, lessons.margins_Q_K = torch.tensor(others_Q_K), torch.tensor(margins_Q_K).float()
    return lessons


def learned_map(lessons: Lessons, vectors_N_D: Tensor) -> Tensor:
    """The matrix (D, D) that is added to the identity on questions' vectors."""
    width = vectors_N_D.shape[1]
    matrix_D_D = torch.zeros(width, width, requires_grad=True)
    optimizer = torch.optim.LBFGS([matrix_D_D], max_iter=ITERATIONS, line_search_fn="strong_wolfe")
    scale = scale_of(lessons, vectors_N_D)

    def loss() -> float:
        optimizer.zero_grad()
        queries_Q_D = mapped(lessons.vectors_Q_D, matrix_D_D)
        total = loss_of(queries_Q_D, lessons, vectors_N_D, scale) + STRENGTH * matrix_D_D.square().sum()
        total.backward()
        return float(total.detach())

    optimizer.step(loss)
    return matrix_D_D.detach()


def mapped(vectors: Tensor, matrix_D_D: Tensor) -> Tensor:
    """Vectors of length 1 (…, D) through the identity and the matrix, of length 1 again."""
    return normalize(vectors + vectors @ matrix_D_D, dim=-1)


def learned_encoder(
    embedder: Embedder, lessons: Lessons, vectors_N_D: Tensor, seed: int
) -> Callable[[str], np.ndarray]:
    """What embeds a question after training all of the model."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(embedder.path), device="cpu", local_files_only=True)
    model.eval()  # the loss is of the vectors as they are served: no dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    scale = scale_of(lessons, vectors_N_D)
    random = np.random.default_rng(seed)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 10) * (1 - step / STEPS)
        some = lessons.some(random.permutation(len(lessons.texts))[:QUESTIONS].tolist())
        queries_B_D = normalize(model(model.preprocess(some.texts))["sentence_embedding"], dim=-1)
        optimizer.zero_grad()
        loss_of(queries_B_D, some, vectors_N_D, scale).backward()
        optimizer.step()

    def embed(text: str) -> np.ndarray:
        vector_D: np.ndarray = model.encode(text, normalize_embeddings=True, show_progress_bar=False)
        return vector_D

    return embed


def loss_of(queries_Q_D: Tensor, lessons: Lessons, vectors_N_D: Tensor, scale: float) -> Tensor:
    """How far the questions are from having their own passages nearest, or by the teacher's margins."""
    if lessons.margins_Q_K is None:
        return cross_entropy(queries_Q_D @ vectors_N_D.T / TEMPERATURE, lessons.own_Q)
    there_Q_K = lessons.margins_Q_K.isfinite()
    error_Q_K = margins_of(queries_Q_D, lessons, vectors_N_D) - scale * lessons.margins_Q_K
    return (error_Q_K[there_Q_K] / TEMPERATURE).square().mean()


def margins_of(queries_Q_D: Tensor, lessons: Lessons, vectors_N_D: Tensor) -> Tensor:
    """How much nearer (Q, K) each question is to its own passage than to the others."""
    assert lessons.others_Q_K is not None
    own_Q = (queries_Q_D * vectors_N_D[lessons.own_Q]).sum(dim=1)
    return own_Q[:, None] - torch.einsum("qd,qkd->qk", queries_Q_D, vectors_N_D[lessons.others_Q_K])


def scale_of(lessons: Lessons, vectors_N_D: Tensor) -> float:
    """What a nat of the teacher's margins is in cosine: they are made as wide as the embedder's own are at first."""
    if lessons.margins_Q_K is None:
        return 1.0
    there_Q_K = lessons.margins_Q_K.isfinite()
    begun_Q_K = margins_of(lessons.vectors_Q_D, lessons, vectors_N_D)
    return float((begun_Q_K[there_Q_K].square().mean() / lessons.margins_Q_K[there_Q_K].square().mean()).sqrt())


def first(queries_Q_D: Tensor, own_Q: Tensor, vectors_N_D: Tensor) -> list[float]:
    """1 for each question whose own passage is the nearest of all, else 0."""
    cosines_Q_N = queries_Q_D @ vectors_N_D.T
    return (cosines_Q_N.argmax(dim=1) == own_Q).float().tolist()


if __name__ == "__main__":
    main()
