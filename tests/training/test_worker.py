"""The trainer's process: how it ends, and what one job's failure leaves to the others."""

from __future__ import annotations

import subprocess
import sys

END_WITH_PARENT = "import time; from hybridqa.training.worker import end_with_parent; end_with_parent(); "


def test_a_process_that_fails_says_why_while_its_parent_lives() -> None:
    code = END_WITH_PARENT + "time.sleep(0.3); raise SystemExit('the real error')"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None and process.stderr is not None
    with process.stdin, process.stderr:
        assert process.wait(timeout=60) == 1
        assert process.stderr.read().decode().strip() == "the real error"


def test_a_process_ends_with_its_parent() -> None:
    code = END_WITH_PARENT + "time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 1
