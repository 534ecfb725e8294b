"""Measures what the gate judges: the attached adapter's answers to held-out questions, and to those of no document.

Knows nothing about verdicts. Invariant: every score without the module is of the same tokens as the one with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.routing.shares import share_of
from hybridqa.training.gate import LIMITS, GateReport, Limits, Scores, judge
from hybridqa.training.lora import Companion
from hybridqa.training.packing import Example, group, pack
from hybridqa.training.pairs import Pair
from hybridqa.training.retention import JUDGING, retention_examples
from hybridqa.training.synthesis import Curriculum
from hybridqa.training.trainer import Trainer
from hybridqa.training.wordings import closed_example, contrasts, sourced_example

READ_QUESTIONS = 8  # of the held-out ones, at most, are also asked with their chunk
PACK_TOKENS = 1024  # of one packed row: attention grows with the square


def judge_module(
    trainer: Trainer,
    prompts: PromptBuilder,
    lesson: Curriculum,
    companions: Sequence[Companion] = (),
    *,
    limits: Limits = LIMITS,
    seed: int = 0,
) -> GateReport:
    """The gate's report on the attached adapter.

    Each of `companions` is another module to have beside it, as a stack of two has them.
    """
    held_out = lesson.held_out
    wrong = contrasts(held_out, seed=seed)
    read = range(0, len(held_out), max(1, math.ceil(len(held_out) / READ_QUESTIONS)))

    def closed(pair: Pair, key: int) -> Example:
        return closed_example(prompts, pair, key, 0)

    def sourced(pair: Pair, key: int) -> Example:
        return sourced_example(prompts, pair, key, lesson)

    def examples(places: Sequence[int], ask: Callable[[Pair, int], Example]) -> list[Example]:
        return [
            ask(replace(held_out[place], question=question), place)
            for place in places
            for question in (held_out[place].question, *wrong[place])
        ]

    def compare(places: Sequence[int], ask: Callable[[Pair, int], Example]) -> tuple[Scores, Scores]:
        sizes = [1 + len(wrong[place]) for place in places]
        without, adapted = trainer.compare(examples(places, ask), tokens=PACK_TOKENS)
        return _by_question(without, sizes), _by_question(adapted, sizes)

    every = range(len(held_out))
    asked, sizes = examples(every, closed), [1 + len(questions) for questions in wrong]
    return judge(
        *compare(every, closed),
        *compare(read, sourced),
        drifts=drifts(trainer, [item for part in retention_examples(prompts, JUDGING) for item in part]),
        composed=[
            _by_question(trainer.score(asked, companion=companion, share=share_of(2), tokens=PACK_TOKENS), sizes)
            for companion in (companions if len(held_out) >= limits.questions else ())
        ],
        limits=limits,
        seed=seed,
    )


def drifts(trainer: Trainer, examples: Sequence[Example]) -> list[float]:
    """KL(base ‖ base and adapter) over the whole vocabulary, mean over each example's target tokens, in nats."""
    found: list[float] = []
    with torch.no_grad():
        for part in group(examples, PACK_TOKENS):
            row = pack(part)
            lower_T_D = trainer.lower(row)
            with trainer.base_alone():
                base_N_V, _, _ = trainer.forward(row, hidden=False, lower_T_D=lower_T_D)
            adapted_N_V, _, _ = trainer.forward(row, hidden=False, lower_T_D=lower_T_D)
            base_N_V, adapted_N_V = (F.log_softmax(logits.float(), -1) for logits in (base_N_V, adapted_N_V))
            kl_N = (base_N_V.exp() * (base_N_V - adapted_N_V)).sum(-1)
            found.extend(float(piece.mean()) for piece in torch.split(kl_N, list(row.lengths)))
    return found


def _by_question(values: Sequence[float], sizes: Sequence[int]) -> Scores:
    """Scores laid out question by question, the right one first."""
    rest = iter(values)
    groups = [tuple(itertools.islice(rest, size)) for size in sizes]
    return Scores(tuple(group[0] for group in groups), tuple(group[1:] for group in groups))
