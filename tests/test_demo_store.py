"""The committed demo store: whole, small, and usable as it is."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from hybridqa import HybridQA

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def demo_store(tmp_path: Path) -> Path:
    """A copy, since opening a store writes beside it."""
    for kind in ("indexes", "modules"):
        shutil.copytree(ROOT / kind / "demo", tmp_path / kind / "demo")
    return tmp_path


def test_it_is_small_and_names_no_machine() -> None:
    files = [path for kind in ("indexes", "modules") for path in (ROOT / kind / "demo").rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) < 6_000_000
    for path in files:
        assert not re.search(rb"/(home|root|tmp|Users|mnt|work|srv|opt)/\w", path.read_bytes()), path


def test_opening_it_does_not_change_it(demo_store: Path) -> None:
    """Or every checkout in which somebody has looked at it would have a change to commit."""
    path = demo_store / "indexes" / "demo" / "catalog.sqlite3"
    before = path.read_bytes()
    with HybridQA.open(demo_store, name="demo") as qa:
        assert qa.modules()
    assert path.read_bytes() == before


def test_its_module_is_found_verified_and_plugged_in(demo_store: Path) -> None:
    with HybridQA.open(demo_store, name="demo", engine="reference", max_answer_tokens=24) as qa:
        assert qa.catalog.check() == []
        (document,) = qa.documents()
        assert qa.module_state(document.doc_id) == "published"
        (module,) = qa.modules()
        qa.registry.verify(module)
        assert module.metrics["gate"]["passed"]
        question = "How many marbled tammerels did Idris Pellamy's count find in 2029?"
        answer = qa.ask(question, mode="modules")
        assert [choice.module.name for choice in answer.modules] == [module.name]
        assert not answer.passages
        assert answer.text != qa.ask(question, mode="closed").text
        assert not qa.ask("Who wrote the symphony?", mode="hybrid").modules
