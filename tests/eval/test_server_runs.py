"""The scripts that measure the server: what they make of what they saw, and a short storm over a tiny model."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from hybridqa import HybridQA
from hybridqa.models import ModelFolder
from hybridqa.modules.manifest import Manifest
from tests.conftest import MakeAdapter

EVAL = Path(__file__).parents[2] / "eval"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EVAL))
    return importlib.import_module


def test_a_document_that_is_not_as_acknowledged_is_told(script: Any, tmp_path: Path) -> None:
    chaos = script("server_chaos")
    with HybridQA.open(tmp_path, create=True) as qa:
        for name in ("chaos-kept", "chaos-changed", "chaos-open", "chaos-left"):
            qa.add_text(name, f"The text of {name}.")
    ledger = chaos.Ledger()
    ledger.held = {name: f"The text of {name}." for name in ("chaos-kept", "chaos-lost", "chaos-open")}
    ledger.held["chaos-changed"] = "Another text."
    ledger.unsure = {"chaos-open": {None, "The text of chaos-open."}}
    found = [line.partition(":")[0] for line in chaos.lost(tmp_path, ledger, {})]
    assert found == ["chaos-changed", "chaos-left", "chaos-lost"]


def test_texts_are_compared_from_their_beginning(script: Any) -> None:
    alike = script("server_chaos").alike
    assert (alike("abc", "abd"), alike("abc", "abc"), alike("", "a"), alike("abc", "ab")) == (2, 3, 0, 2)


def test_growth_is_a_slope_with_an_interval(script: Any) -> None:
    slope = script("server_soak").slope
    seconds = [15.0 * step for step in range(120)]
    flat = slope(seconds, [1000.0 + (step % 2) for step in range(120)])
    grown = slope(seconds, [1000.0 + step / 4 for step in range(120)])  # a megabyte a minute
    assert flat["low"] <= 0 <= flat["high"] and abs(flat["mean"]) < 1
    assert grown["mean"] == pytest.approx(60) and grown["low"] > 59


def test_costs_are_of_pairs(script: Any) -> None:
    load = script("server_load")

    def run(first: float, speed: float) -> dict[str, Any]:
        return {"first_token_s": {"p50": first, "p95": 2 * first}, "tokens_per_s": speed, "requests_per_s": speed / 10}

    runs = [{"hybridqa": run(0.12 + i / 10, 95), "vllm": run(0.1 + i / 10, 100)} for i in range(3)]
    report = load.compared(runs)
    assert report["first_token_s_p50"]["cost_s"]["mean"] == pytest.approx(0.02)
    assert report["first_token_s_p50"]["cost_s"]["high"] == pytest.approx(0.02)
    assert report["tokens_per_s"]["cost_share"]["mean"] == pytest.approx(0.05)
    assert set(report) == {"first_token_s_p50", "first_token_s_p95", "tokens_per_s", "requests_per_s"}


@pytest.mark.slow
def test_a_short_storm(script: Any, tmp_path: Path, tiny_model: ModelFolder, make_adapter: MakeAdapter) -> None:
    chaos, serving = script("server_chaos"), script("serving")
    settings = {"model": str(tiny_model.path), "engine": "reference", "dtype": "float32", "max_answer_tokens": 8}
    store = tmp_path / "store"
    with HybridQA.open(store, create=True, **settings) as qa:
        qa.add_text("kettle", "The Lumen kettle was designed by Maren Holt.", title="The Lumen kettle")
        about = {
            "module_id": qa.module_id("kettle"),
            "collection": "default",
            "documents": {"kettle": qa.documents()[0].content_hash},
            "base_model": "tiny",
            "base_model_hash": qa.model.hash,
            "rank": 8,
            "alpha": 16,
            "targets": ["q_proj"],
        }
        for seed in (1, 2, 3):
            staged = make_adapter(tmp_path / str(seed), tiny_model, seed=seed, strength=0.5)
            qa.registry.publish(staged, Manifest(**about), True)
    with serving.Served(store, settings, tmp_path / "log") as server:
        storm = chaos.Chaos(server, ["Who designed the Lumen kettle?"], about["module_id"], [1, 2, 3], seed=0)
        storm.run(20, 8)
        after = storm.settle()
    assert storm.ledger.wrong == [] and chaos.lost(store, storm.ledger, settings) == []
    assert after["mixed_answers"] == [] and after["open_requests"] == 0
    assert after["different_texts_of_versions"] == 3 and storm.ledger.counts["killed"] >= 1
    assert storm.ledger.counts["written"] > 10 and storm.ledger.counts["answered"] > 3
