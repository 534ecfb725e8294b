"""Says what questions made from each passage, indexed beside it and pointing to it, are worth to search.

    python eval/question_memory.py --data DATA [--sets NAME ...] [--written] [--work FOLDER] [--output FILE]

DATA holds NAME.docs.jsonl and NAME.questions.jsonl. Questions are made from all passages of a set's store: by rule, and
with `--written` by the engine and past the critic, as the trainer makes them (arXiv 2204.04581). A passage's memory of
a kind is the greatest cosine of a text made from it to what is asked, which is two signals more: it, and its share of
the best candidate's. Its bare sentences are a kind, too, to compare with. Each set is ranked by weights that were
fitted on the other sets alone, without a memory and with each. Prints JSON.
"""

from __future__ import annotations

import copy
import random
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
from fusion_weights import KS, NAMES, Set, asked_for, fit, opened, tell

from hybridqa.answering.answerer import ROUTING_PASSAGES
from hybridqa.engine.vllm_args import context_length
from hybridqa.evaluation.datasets import cluster_of
from hybridqa.evaluation.retrieval import RetrievalPlan
from hybridqa.evaluation.statistics import mean_interval, paired_difference
from hybridqa.ingest.sentences import split_sentences
from hybridqa.pipeline import HybridQA
from hybridqa.provenance import commit, hardware
from hybridqa.retrieval.embedder import Embedder
from hybridqa.training.critic import Critic
from hybridqa.training.facts import Fact, find_facts
from hybridqa.training.generator import EngineGenerator
from hybridqa.training.pairs import ask_pair, natural_pair
from hybridqa.training.tasks import QUESTION_TOKENS, question_task
from hybridqa.types import DEFAULT_COLLECTION, Passage

SETS = "emanual_tv fairytaleqa newwiki_dev policyqa quail".split()
BY_RULE, WRITTEN, SENTENCES = "by rule", "written", "sentences"
EACH = 8  # texts by rule of a passage, at most
EACH_WRITTEN = 4
Floats = np.ndarray
T = TypeVar("T")
Made = list[tuple[int, str]]  # passage id, text


def main() -> None:
    """Measures and prints."""
    options = asked_for(__doc__, most=400, sets=SETS, add=own_options)
    begun = time.perf_counter()
    kinds = [BY_RULE, SENTENCES, *([WRITTEN] if options.written else [])]
    bare: dict[str, Set] = {}
    wide: dict[str, dict[str, Set]] = {kind: {} for kind in kinds}
    made: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets:
            with opened(options, name, folder) as (plan, store):
                texts = {kind: made_of(store, kind, options.seed) for kind in kinds}
                bare[name], memories = remembered(store, plan, texts)
            for kind, memory in memories.items():
                wide[kind][name] = with_memory(bare[name], memory)
            made[name] = {kind: len(found) for kind, found in texts.items()}
            sys.stderr.write(f"{name}: {len(plan.questions)} questions; made {made[name]}\n")
    result = {
        "command": f"python eval/question_memory.py --data DATA --sets {' '.join(options.sets)}"
        f"{' --written' if options.written else ''} --most {options.most} --seed {options.seed}",
        "commit": commit(),
        "hardware": hardware(),
        "seed": options.seed,
        "each": {BY_RULE: EACH, SENTENCES: EACH, WRITTEN: EACH_WRITTEN},
        "sets": {name: {"made": made[name], **judged(bare, wide, name, options.seed)} for name in bare},
        "seconds": round(time.perf_counter() - begun, 1),
    }
    tell(result, options.output)


def own_options(parser: ArgumentParser) -> None:
    """What is asked beside the rest."""
    parser.add_argument("--written", action="store_true", help="have the engine write questions, too")


def made_of(store: HybridQA, kind: str, seed: int) -> Made:
    """The texts of a kind that are made from the passages of a store."""
    passages = [passage for some in store.catalog.iter_passages() for passage in some]
    if kind == WRITTEN:
        return written(store, passages, EACH_WRITTEN, seed)
    if kind == SENTENCES:
        spans = {one.passage_id: (one.text, split_sentences(one.text)) for one in passages}
        found = {place: [text[start:end] for start, end in parts] for place, (text, parts) in spans.items()}
    else:
        found = by_rule(passages, seed)
    return [(place, text) for place, texts in found.items() for text in drawn(texts, EACH, seed, place)]


def by_rule(passages: Sequence[Passage], seed: int) -> dict[int, list[str]]:
    """A question for every fact of each passage, as people put it where the sentence's form allows."""
    found: dict[int, list[str]] = {}
    for facts, there in facts_of(passages):
        for passage in there:
            rng = random.Random(f"{seed} {passage.passage_id}")
            found[passage.passage_id] = [
                (natural_pair(fact, rng) or ask_pair(fact)).question for fact in facts[passage.passage_id]
            ]
    return found


def written(store: HybridQA, passages: Sequence[Passage], each: int, seed: int) -> Made:
    """The engine's questions for some facts of each passage, as far as the critic lets them pass."""
    length = context_length(store.model.path, store.settings.max_model_len)
    generator = EngineGenerator(store.generate_many, store.prompts, max_model_len=length, identity=store.model.hash)
    asked = [
        (passage, fact)
        for facts, there in facts_of(passages)
        for passage in there
        for fact in drawn(facts[passage.passage_id], each, seed, passage.passage_id)
    ]
    tasks = [question_task(passage.title, passage.text, fact) for passage, fact in asked]
    critics: dict[str, Critic] = {}
    found: Made = []
    for (passage, fact), said in zip(asked, generator.write(tasks, max_tokens=QUESTION_TOKENS), strict=True):
        critic = critics.setdefault(passage.doc_id, Critic(passage.title))
        text = critic.question(said, fact.phrase, fact.sentence)
        found.extend([(passage.passage_id, text)] if text else [])
    return found


def facts_of(passages: Sequence[Passage]) -> list[tuple[dict[int, list[Fact]], list[Passage]]]:
    """Of each document its facts by passage id, and its passages; they stand together, as the catalog gives them."""
    found = []
    for _, some in groupby(passages, key=lambda passage: passage.doc_id):
        there = list(some)
        facts = find_facts([passage.text for passage in there])
        by_place = {one.passage_id: [fact for fact in facts if fact.passage == n] for n, one in enumerate(there)}
        found.append((by_place, there))
    return found


def drawn(items: Sequence[T], most: int, seed: int, place: int) -> list[T]:
    """Some of the items that differ, the same ones whatever other passages there are."""
    different = list(dict.fromkeys(items))
    return random.Random(f"{seed} {place}").sample(different, min(most, len(different)))


def vectors_of(embedder: Embedder, texts: Sequence[str]) -> Floats:
    """The vectors (N, D) of texts as questions."""
    return np.stack([embedder.embed_query(text) for text in texts])


def remembered(store: HybridQA, plan: RetrievalPlan, texts: dict[str, Made]) -> tuple[Set, dict[str, list[Floats]]]:
    """The questions with what search finds for each, and by kind the memory (N,) of each question's candidates."""
    asked_Q_D = vectors_of(store.embedder, [one.question for one in plan.questions])
    found = [
        store.searcher.search(one.question, k=ROUTING_PASSAGES, collection=DEFAULT_COLLECTION) for one in plan.questions
    ]
    ids = [[scored.passage.passage_id for scored in passages] for passages in found]
    memories = {}
    for kind, made in texts.items():
        made_N_D = store.embedder.embed_passages([text for _, text in made])
        owners_N = np.array([place for place, _ in made])
        memories[kind] = [
            greatest(made_N_D @ asked_D, owners_N, there) for asked_D, there in zip(asked_Q_D, ids, strict=True)
        ]
    return Set(plan, found), memories


def greatest(cosines_N: Floats, owners_N: Floats, ids: Sequence[int]) -> Floats:
    """The greatest cosine of each passage's texts; 0 for one that has none, or none above it."""
    best: dict[int, float] = {}
    for owner, cosine in zip(owners_N.tolist(), cosines_N.tolist(), strict=True):
        best[owner] = max(cosine, best.get(owner, 0.0))
    return np.array([best.get(place, 0.0) for place in ids])


def with_memory(bare: Set, memory: Sequence[Floats]) -> Set:
    """The same questions and candidates with two signals more."""
    wide = copy.copy(bare)
    more_Q_N_2 = np.zeros((*bare.there_Q_N.shape, 2))
    for place, cosines_N in enumerate(memory):
        more_Q_N_2[place, : len(cosines_N), 0] = cosines_N
        more_Q_N_2[place, : len(cosines_N), 1] = cosines_N / max(float(cosines_N.max()), 1e-9)
    wide.signals_Q_N_F = np.concatenate([bare.signals_Q_N_F, more_Q_N_2], axis=2)
    return wide


def judged(bare: dict[str, Set], wide: dict[str, dict[str, Set]], name: str, seed: int) -> dict[str, Any]:
    """Recall with the weights of the other sets, without a memory and with each, and how far that is ahead."""
    clusters = [cluster_of(question) for question in bare[name].questions]
    without = fit([one for other, one in bare.items() if other != name])
    plain = {k: bare[name].recalls(without, k) for k in KS}
    told: dict[str, Any] = {
        "questions": len(clusters),
        "without": {str(k): mean_interval(plain[k], clusters, seed=seed) for k in KS},
    }
    for kind, sets in wide.items():
        weights = fit([one for other, one in sets.items() if other != name])
        values = {k: sets[name].recalls(weights, k) for k in KS}
        told[kind] = {
            "weights": dict(zip([*NAMES, "memory", "nearest memory"], weights.tolist(), strict=True)),
            "recall": {str(k): mean_interval(values[k], clusters, seed=seed) for k in KS},
            "ahead_of_without": {str(k): paired_difference(values[k], plain[k], clusters, seed=seed) for k in KS},
        }
    return told


if __name__ == "__main__":
    main()
