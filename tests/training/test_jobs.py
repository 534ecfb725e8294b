"""The job writer: one curriculum for many recipes, jobs that are taken up again, and what goes when a document does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hybridqa.answering.prompt import PromptBuilder
from hybridqa.config import Settings
from hybridqa.engine.protocol import Completion, Sampling
from hybridqa.models import ModelFolder, load_tokenizer
from hybridqa.training import jobs
from hybridqa.training.jobs import JobDocument, JobWriter
from hybridqa.training.lesson import JOB_FORMAT, LONGEST_PIECE, Job, chunks
from hybridqa.training.recipe import Recipe
from hybridqa.types import Passage

KETTLE = (
    "The Lumen kettle holds 1.7 litres of water. Maren Holt designed the Lumen kettle in 2031. "
    "The Lumen kettle is made in the town of Oskvar. The Lumen kettle costs 89 euros."
)


def document(doc_id: str, text: str = KETTLE) -> JobDocument:
    """A document of one passage; its hash is its id's and its text's."""
    passage = Passage(1, doc_id, "default", 0, 0, len(text), text, "Kettle")
    return JobDocument("default", doc_id, "Kettle", f"{doc_id} {hash(text)}", doc_id, (passage,))


class Bench:
    """A job writer, and how often its engine was asked and how warm."""

    def __init__(self, work_dir: Path, model: ModelFolder, **settings: object) -> None:
        self.work_dir = work_dir
        self.settings = Settings(max_model_len=512, context_tokens=300, **settings)  # type: ignore[arg-type]
        self.prompts = PromptBuilder(load_tokenizer(model.path), max_model_len=512, context_tokens=300)
        self.asked: list[Sampling] = []
        self.writer = JobWriter(work_dir, model, self.prompts, self.settings, self.complete)

    def complete(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        self.asked.append(sampling)
        return [Completion("It holds 1.7 litres of water.", "stop")] * len(prompts)

    def kept(self) -> set[str]:
        return {path.name for path in (self.work_dir / "curricula").glob("*")}


@pytest.fixture
def bench(tmp_path: Path, tiny_model: ModelFolder) -> Bench:
    return Bench(tmp_path / "work", tiny_model)


def test_recipes_of_one_document_share_a_curriculum(bench: Bench) -> None:
    told: list[tuple[str, int, int]] = []
    recipes = [Recipe(rank=4), Recipe(rank=8)]
    documents = [document("one"), document("two", KETTLE.replace("89", "98"))]
    folders = bench.writer.write_jobs(
        documents, recipes, lambda item, step, total: told.append((item.doc_id, step, total))
    )
    assert told == [("one", 0, 2), ("two", 1, 2)]
    assert len(bench.asked) == 2 and len(bench.kept()) == 2  # questions of both, summaries of both
    found = [Job.load(folder) for folder in folders]
    assert [(job.doc_id, job.recipe["rank"]) for job in found] == [("one", 4), ("one", 8), ("two", 4), ("two", 8)]
    assert found[0].curriculum == found[1].curriculum != found[2].curriculum
    assert found[0].curriculum.reserve and not found[0].curriculum.sampled
    assert bench.writer.write_jobs(documents, [*recipes, Recipe(rank=16)])[0] == folders[0]
    assert len(bench.asked) == 2


def test_another_seed_engine_or_text_is_another_curriculum(tmp_path: Path, tiny_model: ModelFolder) -> None:
    benches = [
        Bench(tmp_path, tiny_model),
        Bench(tmp_path, tiny_model, seed=1),
        Bench(tmp_path, tiny_model, dtype="float32"),
    ]
    for made in benches:
        made.writer.curricula([document("one")])
        assert made.asked
    assert len(benches[0].kept()) == 3
    again = Bench(tmp_path, tiny_model)
    again.writer.curricula([document("the same under another id")])
    assert not again.asked
    again.writer.curricula([document("one", f"{KETTLE} It is red.")])
    assert again.asked


def test_the_engines_answers_are_sampled_for_the_objectives_that_need_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [Recipe(rank=4), Recipe(rank=8)]
    monkeypatch.setattr(jobs, "_needs_samples", lambda recipe: recipe.rank == 8)
    plain, sampled = bench.writer.write_jobs([document("one")], recipes)
    assert not Job.load(plain).curriculum.sampled
    answers = Job.load(sampled).curriculum.sampled
    assert answers and {pair.answer for pair in answers} == {"It holds 1.7 litres of water."}
    assert [sampling.temperature for sampling in bench.asked] == [0.0, 0.0, 0.7]
    bench.writer.write_jobs([document("one")], [replace(recipes[1], steps=3)])  # another recipe, the same answers
    monkeypatch.setattr(jobs, "_needs_samples", lambda recipe: True)
    bench.writer.write_jobs([document("one")], [Recipe(rank=16)])
    assert len(bench.asked) == 3


def test_a_finished_job_stays_as_it_is_and_an_unfinished_one_keeps_its_checkpoint(bench: Bench) -> None:
    (folder,) = bench.writer.write_jobs([document("one")], [Recipe()])
    (folder / "checkpoint.safetensors").write_text("…")
    (folder / "result.json").write_text("{}")
    (folder / "job.json").write_text("of long ago")
    bench.writer.write_jobs([document("one")], [Recipe()])
    assert (folder / "job.json").read_text() == "of long ago"
    (folder / "result.json").unlink()
    bench.writer.write_jobs([document("one")], [Recipe()])  # now it is damaged, and so is its checkpoint
    assert Job.load(folder).doc_id == "one" and not (folder / "checkpoint.safetensors").exists()
    (folder / "checkpoint.safetensors").write_text("…")
    bench.writer.write_jobs([document("one")], [Recipe()])
    assert (folder / "checkpoint.safetensors").exists()


def test_what_is_outdated_goes_and_what_is_wanted_stays(bench: Bench) -> None:
    one, two, wanted = bench.writer.write_jobs([document(doc_id, f"{KETTLE} {doc_id}") for doc_id in "abc"], [Recipe()])
    old = bench.work_dir / "job-of-an-older-format"
    old.mkdir()
    (old / "job.json").write_text(json.dumps({**json.loads((one / "job.json").read_text()), "format": 1}))
    (bench.work_dir / "curricula" / "curriculum-0.json").write_text("{}")
    bench.writer.remove_outdated([wanted], lambda collection, doc_id, content_hash: doc_id == "a")
    assert {path.name for path in bench.work_dir.glob("job-*")} == {one.name, wanted.name}
    assert not two.exists() and len(bench.kept()) == 1


def test_a_job_of_an_older_format_is_written_anew(bench: Bench) -> None:
    (folder,) = bench.writer.write_jobs([document("one")], [Recipe()])
    job = Job.load(folder)
    data = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**data, "format": 1}))
    with pytest.raises(ValueError, match=f"no job of format {JOB_FORMAT}"):
        Job.load(folder)
    assert bench.writer.write_jobs([document("one")], [Recipe()]) == [folder]
    assert Job.load(folder) == job


@pytest.mark.parametrize(
    "text",
    [
        "The lamp of Tarn was lit in 1931. " * 60,
        "".join(chr(0x1780 + number * 7 % 40) for number in range(3000)),  # Khmer, which writes no spaces
        "word " * 10 + "x" * 2000,
        "one line\n" * 200,
    ],
)
def test_a_passage_of_very_many_tokens_is_taken_in_pieces(text: str) -> None:
    passage = Passage(1, "d", "default", 0, 0, len(text), text, "Tarn", heading="Lamps")
    made = chunks([passage], len)
    assert len(made) > 1 and all(chunk.startswith("Lamps\n\n") for chunk in made)
    assert all(len(chunk) <= LONGEST_PIECE + len("Lamps\n\n") for chunk in made)
    assert "".join("".join(made).replace("Lamps\n\n", "").split()) == "".join(text.split())
    assert chunks([replace(passage, text="A lamp.")], len) == ["Lamps\n\nA lamp."]


def test_what_the_data_hangs_on_makes_another_job(tmp_path: Path, tiny_model: ModelFolder) -> None:
    names = {
        Bench(tmp_path, tiny_model, **settings).writer.folder("m", "h", Recipe()).name
        for settings in (
            {},
            {"engine": "reference"},
            {"generator_url": "http://localhost:1/v1", "generator_model": "large"},
            {"generator_url": "http://localhost:1/v1", "generator_model": "larger"},
        )
    }
    assert len(names) == 4
