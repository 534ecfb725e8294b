"""The dense index's benchmark, whole, on stores of a thousand vectors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EVAL = Path(__file__).parent.parent.parent / "eval"


def test_every_stage_of_every_size_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    words = ["--sizes", "1000", "--kinds", "--questions", "20", "--folder", str(tmp_path), "--output", str(output)]
    done = subprocess.run([sys.executable, EVAL / "large_index.py", *words], capture_output=True, text=True, check=True)
    result = json.loads(output.read_text())
    assert json.loads(done.stdout) == result
    assert result["command"].startswith("python eval/large_index.py --sizes 1000 ")
    [row] = result["made"]
    assert (row["kind"], row["passages"], row["index"]["manifest"]["kind"]) == ("mixed", 1_000, "flat")
    assert row["index"]["recall_at_10"] == {"mean": 1.0, "interval": [1.0, 1.0], "questions": 20}
    assert [entry["recall_at_10"]["mean"] for entry in row["index"]["filtered"]] == [1.0] * 4
    assert all(row[stage]["peak_rss_mb"] > 10 for stage in ("fill", "exact", "index"))
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
