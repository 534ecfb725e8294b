"""What to learn in a second round: more about the chunks that the student still knows least.

Knows nothing about models. Invariant: the same losses and seed choose the same pairs, each of them once and from the
curriculum's reserve.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from hybridqa.training.pairs import Pair
from hybridqa.training.synthesis import Curriculum


def choose_second_round(
    curriculum: Curriculum, loss_by_chunk: Mapping[int, float], count: int, seed: int = 0
) -> list[Pair]:
    """`count` pairs of the reserve, or all of a smaller one, in the order of their chunks.

    Each chunk's share is in proportion to how far its loss (nats a token, by the chunk's ordinal) is above the
    best chunk's. A chunk that was not measured counts as the nearest measured one does; where all are alike, all get
    the same. What a chunk's reserve cannot give goes to the others.
    """
    rng = random.Random(seed)
    there: dict[int, list[Pair]] = {}
    for pair in curriculum.reserve:
        there.setdefault(pair.passage, []).append(pair)
    for pairs in there.values():
        rng.shuffle(pairs)
    chunks = sorted(there)
    excess = _excess(chunks, loss_by_chunk)
    taken = dict.fromkeys(chunks, 0)
    for _ in range(min(count, len(curriculum.reserve))):
        open_chunks = [chunk for chunk in chunks if taken[chunk] < len(there[chunk])]
        # The chunk furthest below its share is next (the divisor method of Sainte-Laguë); the best chunk comes last.
        chosen = max(open_chunks, key=lambda chunk: (excess[chunk] / (2 * taken[chunk] + 1), -taken[chunk], -chunk))
        taken[chosen] += 1
    return [pair for chunk in chunks for pair in there[chunk][: taken[chunk]]]


def loss_by_chunk(held_out: Sequence[Pair], losses: Sequence[float]) -> dict[int, float]:
    """The mean loss of the held-out pairs of each chunk; `losses` are of `held_out`, one by one."""
    found: dict[int, list[float]] = {}
    for pair, loss in zip(held_out, losses, strict=True):
        found.setdefault(pair.passage, []).append(loss)
    return {chunk: sum(values) / len(values) for chunk, values in found.items()}


def _excess(chunks: Sequence[int], losses: Mapping[int, float]) -> dict[int, float]:
    """How far each chunk is above the best one; 1 for all where nothing tells them apart."""
    if not losses:
        return dict.fromkeys(chunks, 1.0)
    own = {chunk: losses[min(losses, key=lambda known: (abs(known - chunk), known))] for chunk in chunks}
    best = min(losses.values())
    excess = {chunk: loss - best for chunk, loss in own.items()}
    return excess if any(excess.values()) else dict.fromkeys(chunks, 1.0)
