"""Reranking by a cross-encoder: a tiny random one of the real kind, from a folder."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from hybridqa import HybridQA
from hybridqa.errors import ModelError
from hybridqa.models import ModelFolder
from hybridqa.retrieval.cross_encoder import CrossEncoderReranker
from hybridqa.types import Passage, ScoredPassage

TEXTS = ["A bicycle travels free.", "Heat the kiln slowly.", "The hive is treated in August.", "Tea is served at four."]
QUESTION = "When is the hive treated?"


def make(folder: Path, embedder_path: Path, labels: int = 1) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(str(embedder_path), local_files_only=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=labels,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, embedder_path: Path) -> Path:
    return make(tmp_path_factory.mktemp("cross") / "model", embedder_path)


def found(*scores: float) -> list[ScoredPassage]:
    passages = [Passage(n, f"d{n}", "c", 0, 0, len(text), text) for n, text in enumerate(TEXTS)]
    return [ScoredPassage(passage, score) for passage, score in zip(passages, scores, strict=False)]


def rerank(model: Path, passages: list[ScoredPassage], top: int) -> list[ScoredPassage]:
    return asyncio.run(CrossEncoderReranker(model).rerank(QUESTION, passages, top))


def logits(model: Path, texts: list[str]) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
    plain = BertForSequenceClassification.from_pretrained(str(model)).eval()
    with torch.no_grad():
        return [float(plain(**tokenizer(QUESTION, text, return_tensors="pt")).logits) for text in texts]


def test_the_order_is_what_the_model_says(model: Path) -> None:
    ranked = rerank(model, found(9.0, 9.0, 9.0, 8.5), 3)
    said = logits(model, TEXTS[:3])
    assert max(said) - min(said) > 0.1
    order = sorted(range(3), key=lambda place: -said[place])
    assert [one.passage.passage_id for one in ranked] == [*order, 3]
    assert [one.likelihood for one in ranked[:3]] == pytest.approx([said[place] for place in order], abs=1e-4)
    assert ranked[0].score == 9.0 and ranked[3].likelihood is None
    assert all(one.score >= other.score for one, other in itertools.pairwise(ranked))
    assert rerank(model, found(9.0), 3) == found(9.0)


def test_a_question_is_answered_with_it(model: Path, tmp_path: Path, tiny_model: ModelFolder) -> None:
    settings: dict[str, Any] = {"model": str(tiny_model.path), "engine": "reference", "dtype": "float32"}
    with HybridQA.open(tmp_path / "s", create=True, reranker=str(model), rerank=4, max_model_len=512, **settings) as qa:
        for number, text in enumerate(TEXTS):
            qa.add_text(f"d{number}", text)
        answer = qa.ask(QUESTION)
    assert answer.route is not None and "4 passages reranked" in answer.route_reason
    said = [one.likelihood for one in answer.route.found]
    texts = [one.passage.text for one in answer.route.found]
    assert said == pytest.approx(logits(model, texts), abs=1e-4)


def test_what_is_no_cross_encoder_is_named(tmp_path: Path, embedder_path: Path, model: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot rerank: it gives \(2, 3\) numbers for 2 pairs"):
        rerank(make(tmp_path / "three", embedder_path, 3), found(1.0, 1.0), 2)
    shutil.copytree(model, tmp_path / "hurt")
    (tmp_path / "hurt" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"cannot rerank: .* Expected a sentence-transformers cross-encoder"):
        rerank(tmp_path / "hurt", found(1.0, 1.0), 2)
    with (
        HybridQA.open(tmp_path / "s", create=True, reranker="no-such") as qa,
        pytest.raises(ModelError, match="no-such"),
    ):
        qa.seeker  # noqa: B018
