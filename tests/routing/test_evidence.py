"""Evidence: its order, its bounds, and what it says of real questions to the real embedder."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridqa.catalog import Catalog
from hybridqa.config import Settings
from hybridqa.ingest.passages import split_passages
from hybridqa.retrieval.dense import DenseIndex
from hybridqa.retrieval.embedder import Embedder
from hybridqa.retrieval.lexical import LexicalIndex
from hybridqa.retrieval.searcher import Searcher
from hybridqa.routing.evidence import document_evidence, evidence_for
from hybridqa.types import Document, Passage, ScoredPassage

DATA = Path(os.environ.get("HYBRIDQA_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
THRESHOLD = Settings.model_fields["module_threshold"].default


def scored(doc_id: str, dense: float | None, text: str = "", title: str = "") -> ScoredPassage:
    return ScoredPassage(Passage(1, doc_id, "c", 0, 0, len(text), text, title), 0.1, dense)


def test_nearer_is_stronger() -> None:
    found = [evidence_for("the fox", [scored("d", cosine)], ["d"]) for cosine in (0.0, 0.3, 0.5, 0.7)]
    assert found == sorted(set(found))


def test_shared_words_are_stronger_and_endings_do_not_matter() -> None:
    question = "Why did the fox jump hedges?"
    texts = ["nothing", "a fox", "a fox jumping", "a fox jumped the hedge"]
    found = [evidence_for(question, [scored("d", 0.5, text)], ["d"]) for text in texts]
    assert found == sorted(set(found))
    assert found[-1] == evidence_for(question, [scored("d", 0.5, "", title="fox jump hedges")], ["d"])


def test_a_rival_as_near_weakens_both_and_a_document_does_not_rival_itself() -> None:
    alone = evidence_for("the fox", [scored("a", 0.6, "fox")], ["a"])
    twice = evidence_for("the fox", [scored("a", 0.6, "fox"), scored("a", 0.59, "fox")], ["a"])
    rivals = [scored("a", 0.6, "fox"), scored("b", 0.6, "fox")]
    assert twice == alone
    assert evidence_for("the fox", rivals, ["a"]) == evidence_for("the fox", rivals, ["b"]) < alone / 1.5
    assert evidence_for("the fox", rivals, ["a", "b"]) == alone  # one module may cover both


def test_what_was_not_found_has_no_evidence() -> None:
    assert evidence_for("the fox", [scored("a", 0.9, "fox")], ["b"]) == 0
    assert evidence_for("the fox", [], ["b"]) == 0
    assert document_evidence("the fox", []) == {}


def test_a_store_of_one_document_does_not_take_every_question() -> None:
    assert evidence_for("Who won the cup?", [scored("only", 0.25, "about bees")], ["only"]) < 0.05


@given(
    question=st.text(max_size=40),
    found=st.lists(
        st.tuples(st.sampled_from("abc"), st.none() | st.floats(-1, 1), st.text(max_size=40)), min_size=1, max_size=12
    ),
)
def test_stays_between_0_and_1(question: str, found: list[tuple[str, float | None, str]]) -> None:
    passages = [scored(doc_id, dense, text) for doc_id, dense, text in found]
    evidence = document_evidence(question, passages)
    assert set(evidence) == {doc_id for doc_id, _, _ in found[:8]}
    assert all(0 < value < 1 for value in evidence.values())


@pytest.mark.skipif(not (DATA / "fairytaleqa.docs.jsonl").is_file(), reason="needs the shared data (HYBRIDQA_DATA)")
def test_real_questions_pass_and_strangers_do_not(embedder_path: Path, tmp_path: Path) -> None:
    """A small sample of what `eval/routing_threshold.py` measures."""
    embedder = Embedder(embedder_path)
    documents = [json.loads(line) for line in (DATA / "policyqa.docs.jsonl").read_text(encoding="utf-8").splitlines()][
        :3
    ]
    with Catalog.open(tmp_path / "c.sqlite3", create=True) as catalog:
        for row in documents:
            drafts = split_passages(row["text"], [], embedder.count_tokens, 200)
            written = [embedder.passage_text(row["title"], draft.heading, draft.text) for draft in drafts]
            document = Document(row["doc_id"], "c", row["title"], row["text"], row["doc_id"])
            catalog.put_document(document, drafts, embedder.embed_passages(written), embedder.fingerprint)
        searcher = Searcher(catalog, embedder, DenseIndex(tmp_path, catalog), LexicalIndex(catalog))

        def evidence(question: str) -> dict[str, float]:
            return document_evidence(question, searcher.search(question, k=8, collection="c"))

        ids = {row["doc_id"] for row in documents}
        own = [row for row in questions("policyqa") if row["doc_ids"][0] in ids]
        sample = random.Random(0).sample(own, 20)
        passed = [evidence(row["question"]).get(row["doc_ids"][0], 0) >= THRESHOLD for row in sample]
        strangers = random.Random(0).sample(questions("fairytaleqa"), 20)
        mistaken = [max(evidence(row["question"]).values()) >= THRESHOLD for row in strangers]
        assert sum(passed) >= 14
        assert sum(mistaken) <= 2


def questions(name: str) -> list[dict[str, list[str]]]:
    return [json.loads(line) for line in (DATA / f"{name}.questions.jsonl").read_text(encoding="utf-8").splitlines()]
