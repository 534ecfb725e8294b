"""A long document trains within the memory that the setting gives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hybridqa import HybridQA
from hybridqa.models import ModelFolder

BUDGET_MB = 64
WORDS_A_PAGE = 500
PAGES = (2, 200)


def pages(count: int) -> str:
    """Sentences about invented mills, no two alike."""
    rng = random.Random(0)
    syllables = ("mar", "tel", "bro", "vin", "kas", "dun", "ler", "hol", "pen", "rud")
    sentences: list[str] = []
    words = 0
    while words < count * WORDS_A_PAGE:
        name = "".join(rng.choices(syllables, k=4)).capitalize()
        town = "".join(rng.choices(syllables, k=3)).capitalize()
        sentence = (
            f"The mill {name} in {town} was built in {rng.randint(1500, 1999)} and grinds {rng.randint(2, 900)} sacks."
        )
        sentences.append(sentence)
        words += len(sentence.split())
    return " ".join(sentences)


@pytest.mark.slow  # minutes
@pytest.mark.timeout(3000)
def test_two_hundred_pages_need_hardly_more_memory_than_two(tiny_model: ModelFolder, tmp_path: Path) -> None:
    peaks: dict[int, float] = {}
    pairs: dict[int, int] = {}
    for count in PAGES:
        with HybridQA.open(
            tmp_path / f"store-{count}",
            create=True,
            model=str(tiny_model.path),
            engine="reference",
            max_model_len=1024,
            context_tokens=500,
            train_steps=20,
            train_memory_mb=BUDGET_MB,
        ) as qa:
            qa.add_text("mills", pages(count), title="Mills")
            (outcome,) = qa.refresh().outcomes
        peaks[count] = outcome.metrics["peak_memory_mb"]
        pairs[count] = outcome.metrics["synthesis"]["pairs"]
    assert pairs[PAGES[1]] > 50 * pairs[PAGES[0]]
    assert peaks[PAGES[1]] < peaks[PAGES[0]] + BUDGET_MB + 200  # the examples themselves, and the budget
