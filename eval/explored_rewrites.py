"""Says what a rewriter trained on explored rewrites (LeReT, arXiv 2410.23214) could win: its examples, and its ceiling.

    python eval/explored_rewrites.py --data DATA [--sets NAME ...] [--work FOLDER] [--output FILE]

Of each set's questions that lean on their conversation, the base model writes several restatements with chance in them.
Each is searched for as the product searches for one. The best of them, picked by who knows the gold documents, is the
ceiling of any rewriter that learns from them; so many tries find some by chance, too: the same number of restatements
of other conversations says how many. Questions with a restatement that finds more than another are preference pairs.
Prints JSON.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from argparse import ArgumentParser
from typing import Any

from fusion_weights import asked_for, opened, tell

from hybridqa.answering.rewriting import MAX_TOKENS, TURNS, begun_by, cleaned, fault, messages_for
from hybridqa.engine.protocol import Sampling
from hybridqa.evaluation.datasets import EvalQuestion, cluster_of
from hybridqa.evaluation.retrieval import recall
from hybridqa.evaluation.statistics import mean_interval, paired_difference
from hybridqa.pipeline import HybridQA
from hybridqa.provenance import commit, hardware
from hybridqa.retrieval.followup import leans
from hybridqa.types import DEFAULT_COLLECTION

SETS = ["inscit", "mtrag"]
TRIES, TEMPERATURE = 8, 0.8
K = 5  # documents: what recall is of
DEEP = 40  # passages searched for, of which the first K documents are taken
Found = list[float]  # recall@K of each question


def main() -> None:
    """Measures and prints."""
    options = asked_for(__doc__, most=400, sets=SETS, add=own_options)
    begun = time.perf_counter()
    sets = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets:
            with opened(options, name, folder) as (plan, store):
                questions = [one for one in plan.questions if one.history and leans(one.question)]
                written = store.run(_written(store, questions, options.tries, options.seed))
                sets[name] = judged(store, questions, written, options.seed)
            sys.stderr.write(f"{name}: {len(questions)} questions that lean on their conversation\n")
    result = {
        "command": f"python eval/explored_rewrites.py --data DATA --sets {' '.join(options.sets)} --tries "
        f"{options.tries} --most {options.most} --seed {options.seed}",
        "commit": commit(),
        "hardware": hardware(),
        "seed": options.seed,
        "tries": options.tries,
        "temperature": TEMPERATURE,
        "recall_at": K,
        "sets": sets,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    tell(result, options.output)


def own_options(parser: ArgumentParser) -> None:
    """What is asked beside the rest."""
    parser.add_argument("--tries", type=int, default=TRIES, help="restatements of each question")


async def _written(store: HybridQA, questions: list[EvalQuestion], tries: int, seed: int) -> list[list[str]]:
    """So many restatements of each question, by the base model, with chance in them."""
    engine = await store.engine_ready()
    room = asyncio.Semaphore(16)

    async def one(question: EvalQuestion, number: int) -> str:
        turns = [turn for turn in question.history if turn.role in ("user", "assistant") and turn.content.strip()]
        begun = begun_by(question.question)
        ids = store.prompts.encode(messages_for(question.question, turns[-TURNS:]), begun)
        drawn = Sampling(
            max_tokens=MAX_TOKENS,
            temperature=TEMPERATURE,
            stop=(*store.prompts.stop, "\n"),
            seed=seed + number,
        )
        async with room:
            done = await engine.generate(ids, drawn)
        return cleaned(begun + done.text)

    return [list(await asyncio.gather(*(one(each, number) for number in range(tries)))) for each in questions]


def judged(store: HybridQA, questions: list[EvalQuestion], written: list[list[str]], seed: int) -> dict[str, Any]:
    """What the plain search, each restatement and the best of them find; and the best of another conversation's."""
    plain = [_found(store, question) for question in questions]
    tried = [
        [_found(store, question, text) for text in texts] for question, texts in zip(questions, written, strict=True)
    ]
    strange = [*written[1:], *written[:1]]
    others = [
        [_found(store, question, text) for text in texts] for question, texts in zip(questions, strange, strict=True)
    ]
    passed = [
        [not fault(text, question.question, question.history) for text in texts]
        for question, texts in zip(questions, written, strict=True)
    ]
    held = [
        max([base, *(value for value, good in zip(values, goods, strict=True) if good)])
        for base, values, goods in zip(plain, tried, passed, strict=True)
    ]
    clusters = [cluster_of(question) for question in questions]

    def against(found: Found) -> Any:
        return paired_difference(found, plain, clusters, seed=seed)

    best = [max([base, *values]) for base, values in zip(plain, tried, strict=True)]
    chance = [max([base, *values]) for base, values in zip(plain, others, strict=True)]
    return {
        "questions": len(questions),
        "plain": mean_interval(plain, clusters, seed=seed),
        "one_restatement_less_plain": against([sum(values) / len(values) for values in tried]),
        "best_less_plain": against(best),
        "best_of_another_conversation_less_plain": against(chance),
        "best_less_best_of_another_conversation": paired_difference(best, chance, clusters, seed=seed),
        "past_the_gate": sum(map(sum, passed)) / sum(map(len, passed)),
        "best_past_the_gate_less_plain": against(held),
        "questions_with_a_pair": sum(max(values) > min(values) for values in tried),
        "questions_gained": sum(top > base for top, base in zip(best, plain, strict=True)),
    }


def _found(store: HybridQA, question: EvalQuestion, restated: str = "") -> float:
    sought = store.seeker.look(
        question.question, k=DEEP, collection=DEFAULT_COLLECTION, history=question.history, restated=restated
    )
    ranked = list(dict.fromkeys(one.passage.doc_id for one in sought.passages))
    return recall(ranked, question.doc_ids, K)


if __name__ == "__main__":
    main()
