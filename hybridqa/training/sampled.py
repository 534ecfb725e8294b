"""Answers that the engine itself gives with the chunk in its prompt: what prompt distillation learns from.

Each question of a curriculum is put as it would be served, with its chunks as sources, and the answer sampled
(arXiv 2412.14964). The engine answers even where another model writes the questions: its own words are what the student
is to predict. Knows nothing about losses. Invariant: an answer that was cut off, refuses, or says what its chunk does
not is dropped and counted; held-out questions are never asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from hybridqa.answering.prompt import messages_for
from hybridqa.engine.protocol import Completion, Sampling
from hybridqa.training.critic import Critic
from hybridqa.training.pairs import Pair
from hybridqa.training.synthesis import Curriculum
from hybridqa.types import Message

Answer = Callable[[Sequence[Sequence[Message]], Sampling], list[Completion]]

TEMPERATURE = 0.7
ANSWER_TOKENS = 48
_ASKED = frozenset(("ask", "question", "entity", "cross"))  # kinds of pairs whose questions are put


def with_sampled(
    curricula: Sequence[Curriculum], answer: Answer, *, stop: tuple[str, ...] = (), seed: int = 0
) -> list[Curriculum]:
    """The curricula with one sampled answer to each of their questions that got a good one; asked all together."""
    asked = [[pair for pair in curriculum.pairs if pair.kind in _ASKED] for curriculum in curricula]
    conversations = [
        messages_for(pair.question, curriculum.sources(pair))
        for curriculum, pairs in zip(curricula, asked, strict=True)
        for pair in pairs
    ]
    sampling = Sampling(max_tokens=ANSWER_TOKENS, temperature=TEMPERATURE, stop=stop, seed=seed)
    written = iter(answer(conversations, sampling) if conversations else [])
    finished = []
    for curriculum, pairs in zip(curricula, asked, strict=True):
        critic = Critic(curriculum.title)
        sampled: list[Pair] = []
        for pair in pairs:
            text = critic.answer(next(written), pair.question, "\n".join(curriculum.sources(pair)))
            if text:
                sampled.append(replace(pair, answer=text, kind="sampled"))
        dropped = dict(Counter(curriculum.dropped) + critic.dropped)
        finished.append(replace(curriculum, sampled=tuple(sampled), dropped=dropped))
    return finished
