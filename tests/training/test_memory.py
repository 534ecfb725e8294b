"""How much memory a piece of work took, told apart from what came before it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from hybridqa.training.memory import forget_peak, peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot forget a peak")
def test_a_peak_is_of_the_work_since_it_was_forgotten() -> None:
    def hold(megabytes: int) -> float:
        forget_peak()
        held = np.ones(megabytes * 1_000_000, dtype=np.uint8)
        found = peak_memory()
        assert held.nbytes and found is not None
        return found

    small, large, again = hold(1), hold(300), hold(1)
    assert large - small == pytest.approx(300, abs=30)
    assert abs(again - small) < 30
