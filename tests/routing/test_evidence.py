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
from hybridqa.retrieval.fusion import FusionWeights
from hybridqa.retrieval.lexical import LexicalIndex
from hybridqa.retrieval.searcher import Searcher
from hybridqa.routing.evidence import DocumentEvidence
from hybridqa.types import Document, Passage, ScoredPassage

DATA = Path(os.environ.get("HYBRIDQA_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
THRESHOLD = Settings.model_fields["module_threshold"].default


def scored(
    doc_id: str, score: float, dense: float | None = 0.5, coverage: float = 0.5, also: tuple[str, ...] = ()
) -> ScoredPassage:
    others = tuple(Passage(9, other, "c", 0, 0, 0, "") for other in also)
    return ScoredPassage(Passage(1, doc_id, "c", 0, 0, 0, ""), score, dense, coverage=coverage, also=others)


def test_each_number_raises_it() -> None:
    rival = scored("other", 9.0)
    by_score = [DocumentEvidence([scored("d", score), rival]).about(["d"]) for score in (5.0, 8.0, 9.0, 11.0)]
    by_cosine = [DocumentEvidence([scored("d", 9.0, cosine), rival]).about(["d"]) for cosine in (None, 0.3, 0.5, 0.9)]
    by_words = [
        DocumentEvidence([scored("d", 9.0, coverage=words), rival]).about(["d"]) for words in (0.0, 0.3, 0.5, 1.0)
    ]
    for rising in (by_score, by_cosine, by_words):
        assert rising == sorted(set(rising))


def test_a_rival_as_strong_weakens_both_and_a_document_does_not_rival_itself() -> None:
    alone = DocumentEvidence([scored("a", 11.0)]).about(["a"])
    assert DocumentEvidence([scored("a", 11.0), scored("a", 10.9)]).about(["a"]) >= alone
    rivals = [scored("a", 11.0), scored("b", 11.0)]
    assert DocumentEvidence(rivals).about(["a"]) == DocumentEvidence(rivals).about(["b"]) < alone
    assert DocumentEvidence(rivals).about(["a", "b"]) >= alone  # one module may cover both


def test_a_text_that_stands_in_two_documents_speaks_half_for_each() -> None:
    twins = DocumentEvidence([scored("a", 11.0, also=("b",))]).about(["b"])
    assert twins == DocumentEvidence([scored("a", 11.0, also=("b",))]).about(["a"])
    assert twins < DocumentEvidence([scored("a", 11.0)]).about(["a"])
    assert list(DocumentEvidence([scored("a", 11.0, also=("b",))]).of_each()) == ["a", "b"]


def test_what_was_not_found_has_no_evidence() -> None:
    assert DocumentEvidence([scored("a", 12.0)]).about(["b"]) == 0
    assert DocumentEvidence([]).about(["b"]) == 0
    assert DocumentEvidence([]).of_each() == {}


def test_a_store_of_one_document_does_not_take_every_question() -> None:
    stranger = scored("only", FusionWeights().nearest + 0.25 * FusionWeights().dense, 0.25, 0.0)
    assert DocumentEvidence([stranger]).about(["only"]) < 0.1
    assert DocumentEvidence([scored("only", 13.0, 0.7, 0.9)]).about(["only"]) > 0.8


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(-5, 20), st.none() | st.floats(-1, 1), st.floats(0, 1)),
        min_size=1,
        max_size=12,
    )
)
def test_stays_between_0_and_1(found: list[tuple[str, float, float | None, float]]) -> None:
    evidence = DocumentEvidence([scored(*row) for row in found]).of_each()
    assert set(evidence) == {row[0] for row in found}
    assert all(0 < value < 1 for value in evidence.values())
    assert list(evidence.values()) == sorted(evidence.values(), reverse=True)


@pytest.mark.skipif(not (DATA / "fairytaleqa.docs.jsonl").is_file(), reason="needs the shared data (HYBRIDQA_DATA)")
def test_real_questions_pass_and_strangers_do_not(embedder_path: Path, tmp_path: Path) -> None:
    """A small sample of what `hybridqa eval routing` measures."""
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
            return DocumentEvidence(searcher.search(question, k=32, collection="c")).of_each()

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
