"""Kept curricula: found by name, gone with their document."""

from __future__ import annotations

from pathlib import Path

from hybridqa.training.curricula import CurriculumCache
from hybridqa.training.pairs import Pair
from hybridqa.training.synthesis import Curriculum

PAIR = Pair("Who designed it?", "Maren Holt; Anna Voss", "cross", 0, -1, (1,))
LESSON = Curriculum("Kettle", ("a", "b"), (PAIR,), (), {"question: repeated": 2}, (PAIR,), (PAIR,))


def test_what_is_kept_is_found_until_its_document_goes(tmp_path: Path) -> None:
    cache = CurriculumCache(tmp_path)
    assert cache.load("no-such") is None
    cache.keep(cache.name(["x"]), LESSON, "default", "kettle", "hash")
    cache.keep(cache.name(["y"]), LESSON, "default", "pump", "hash")
    assert cache.name(["x"]) != cache.name(["y"])
    assert CurriculumCache(tmp_path).load(cache.name(["x"])) == LESSON
    cache.remove(lambda *owner: owner == ("default", "kettle", "hash"))
    assert cache.load(cache.name(["x"])) is None and cache.load(cache.name(["y"])) == LESSON


def test_what_cannot_be_read_is_not_there_and_goes(tmp_path: Path) -> None:
    cache = CurriculumCache(tmp_path)
    cache.keep("one", LESSON, "default", "kettle", "hash")
    (path,) = tmp_path.glob("curricula/*.json")
    path.write_text(path.read_text()[:-5])
    assert cache.load("one") is None
    cache.remove(lambda *owner: False)
    assert not path.exists()
