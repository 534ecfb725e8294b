"""How much memory a piece of work took, told apart from what came before it."""

from __future__ import annotations

import platform
import sys

import numpy as np
import pytest

from hybridqa.training.memory import Slack, forget_peak, give_back, peak_memory


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked for it")
def test_what_is_freed_goes_back_to_the_system() -> None:
    held = [bytes(2_000) for _ in range(100_000)]  # small blocks stay with the allocator
    last = bytes(2_000)  # above them: it keeps the heap from shrinking by itself
    del held
    forget_peak()
    before = peak_memory()
    give_back()
    forget_peak()
    after = peak_memory()
    assert last and before is not None and after is not None
    assert before - after > 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked for it")
@pytest.mark.parametrize(("most_mb", "goes"), [(100, True), (1000, False)])
def test_slack_beyond_a_bound_goes_back(most_mb: int, *, goes: bool) -> None:
    def now() -> float:
        forget_peak()
        found = peak_memory()
        assert found is not None
        return found

    give_back()
    slack = Slack(most_mb)
    slack.limit()
    before = now()
    held = [bytes(2_000) for _ in range(150_000)]
    last = bytes(2_000)  # above them: it keeps the heap from shrinking by itself
    del held
    left = now()
    slack.limit()
    assert last and left - before > 200
    assert (now() - before < 50) is goes
