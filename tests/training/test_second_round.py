"""The second round: more about what is known least, from the reserve, the same each time."""

from __future__ import annotations

from collections import Counter

import pytest

from hybridqa.training.pairs import Pair
from hybridqa.training.second_round import choose_second_round, loss_by_chunk
from hybridqa.training.synthesis import Curriculum

RESERVE = tuple(Pair(f"Question {n} of chunk {chunk}?", "x", "ask", chunk, n) for chunk in range(3) for n in range(20))
LESSON = Curriculum("Kettles", ("a", "b", "c"), (), (), {}, RESERVE)


def spent(losses: dict[int, float], count: int, seed: int = 0) -> dict[int, int]:
    chosen = choose_second_round(LESSON, losses, count, seed)
    assert len(set(chosen)) == len(chosen) and set(chosen) <= set(RESERVE)
    return dict(Counter(pair.passage for pair in chosen))


def test_pairs_go_where_the_loss_is_in_proportion_to_its_excess() -> None:
    assert spent({0: 1.0, 1: 3.0, 2: 2.0}, 12) == {1: 8, 2: 4}  # excess 2 to 1; the best gets none
    assert spent({0: 1.0, 1: 1.0, 2: 1.0}, 12) == {0: 4, 1: 4, 2: 4}
    assert spent({}, 3) == {0: 1, 1: 1, 2: 1}


def test_what_one_chunk_cannot_give_the_others_do() -> None:
    assert spent({0: 1.0, 1: 9.0, 2: 1.1}, 45) == {1: 20, 2: 20, 0: 5}
    assert spent({0: 1.0, 1: 9.0, 2: 1.1}, 99) == {0: 20, 1: 20, 2: 20}
    assert spent({0: 1.0}, 0) == {}


def test_a_chunk_that_was_not_measured_counts_as_its_neighbour() -> None:
    assert spent({0: 1.0, 1: 2.0}, 10) == {1: 5, 2: 5}


def test_the_choice_is_the_seeds() -> None:
    losses = {0: 1.0, 1: 3.0, 2: 2.0}
    assert choose_second_round(LESSON, losses, 12, 1) == choose_second_round(LESSON, losses, 12, 1)
    assert choose_second_round(LESSON, losses, 12, 1) != choose_second_round(LESSON, losses, 12, 2)


def test_losses_are_averaged_over_a_chunks_held_out_pairs() -> None:
    held_out = [RESERVE[0], RESERVE[1], RESERVE[20]]
    assert loss_by_chunk(held_out, [1.0, 2.0, 4.0]) == {0: 1.5, 1: 4.0}
    with pytest.raises(ValueError, match="argument"):
        loss_by_chunk(held_out, [1.0])
