"""What a report keeps to itself."""

from __future__ import annotations

from pathlib import Path

from hybridqa.evaluation.report import without_folders


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
