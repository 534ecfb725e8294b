"""What a report keeps to itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hybridqa.evaluation.provenance import without_folders
from hybridqa.evaluation.report import share


def test_a_report_names_files_and_not_where_they_lay() -> None:
    found = {
        "command": "hybridqa eval grid --docs /of/ada/data/x.jsonl --work=/of/w --arms RAG+KM/2 --questions q",
        "settings": {"cache_dir": "/of/ada/.cache/hybridqa", "model": "org/name", "seed": 0, "modules": None},
        "file": Path("/of/ada/data/x.jsonl"),
        "near": Path("data/x.jsonl"),
    }
    assert without_folders(found) == {
        "command": "hybridqa eval grid --docs x.jsonl --work=w --arms RAG+KM/2 --questions q",
        "settings": {"cache_dir": "hybridqa", "model": "org/name", "seed": 0, "modules": None},
        "file": "x.jsonl",
        "near": "data/x.jsonl",
    }


def test_nothing_is_recovered_where_the_passage_gained_nothing() -> None:
    documents = ["a", "b", "c"]
    found = share([0.3, 0.2, 0.1], [0.2, 0.1, -0.4], documents)
    assert math.isnan(found.mean) and math.isnan(found.low)
    half = share([0.1, 0.2, 0.3], [0.2, 0.4, 0.6], documents)
    assert (half.mean, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
