"""The LangChain examples run, and say what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.slow


def run(name: str, *questions: str) -> str:
    """What an example prints; on the reference engine, which starts faster."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *questions],
        capture_output=True,
        text=True,
        env={**os.environ, "HYBRIDQA_ENGINE": "reference"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_model_answers_from_what_was_found() -> None:
    said = run("langchain_rag.py")
    assert "Solvang" in said and "lumen-kettle.md 0-" in said
    other = run("langchain_rag.py", "How much may a Pellworth Instruments traveller spend on meals per day?")
    assert "travel-policy.md" in other


def test_a_conversation_is_remembered_and_cites() -> None:
    said = run("langchain_chat.py")
    ada, ben = said.split("Ben: ")
    first, second = ada.split("Ada: ")[1:]
    assert "[1] Lumen Kettle K7" in first and "“" in first
    assert "Lumen Kettle K7" in second  # "its" is the kettle's
    assert ben.splitlines()[1] != second.splitlines()[1]
