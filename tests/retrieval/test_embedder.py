"""The real default embedder: lengths, batches, windows, threads and fingerprints."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hybridqa.errors import ModelError
from hybridqa.retrieval.embedder import BATCH, HEADER_TOKENS, Embedder

TEXTS = [
    "short",
    "a rather longer text about rivers and the sea " * 5,
    "",
    "naïve café 狐 🦊",
    "a middling text of no note",
]


def test_vectors_have_length_one_and_do_not_depend_on_their_batch(embedder: Embedder) -> None:
    texts = TEXTS * 15  # several batches, the last one short
    seen: list[tuple[int, int]] = []
    together_N_D = embedder.embed_passages(texts, progress=lambda done, total: seen.append((done, total)))
    alone_N_D = np.concatenate([embedder.embed_passages([text]) for text in TEXTS])
    assert together_N_D.shape == (75, 384) == (75, embedder.dimensions)
    assert together_N_D.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together_N_D, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together_N_D, np.tile(alone_N_D, (15, 1)), atol=1e-5)
    assert seen == [(min(done, 75), 75) for done in range(BATCH, 75 + BATCH, BATCH)]


def test_no_texts_give_no_vectors(embedder: Embedder) -> None:
    assert embedder.embed_passages([]).shape == (0, 384)
    assert embedder.count_tokens([]) == []


def test_meaning_is_nearer_than_words(embedder: Embedder) -> None:
    query_D = embedder.embed_query("How do I get my money back?")
    passages_N_D = embedder.embed_passages(["Refunds are paid within two weeks.", "My back hurts and I do get it."])
    assert query_D.shape == (384,)
    assert passages_N_D[0] @ query_D > passages_N_D[1] @ query_D


def test_a_passage_of_max_tokens_is_read_to_its_end_below_any_title(embedder: Embedder) -> None:
    assert embedder.max_tokens == 256 - 2 - HEADER_TOKENS
    words = ["river"] * embedder.max_tokens
    assert embedder.count_tokens([" ".join(words)]) == [embedder.max_tokens]
    title, heading = "a long title " * 40, "Part > Chapter > Section " * 40
    other = [*words[:-1], "mountain"]  # differs in its last token alone
    vectors_N_D = embedder.embed_passages([embedder.passage_text(title, heading, " ".join(t)) for t in (words, other)])
    assert not np.allclose(vectors_N_D[0], vectors_N_D[1], atol=1e-5)


def test_passage_text_keeps_what_fits_and_the_end_of_a_long_heading(embedder: Embedder) -> None:
    assert embedder.passage_text("Title", "A > B", "text") == "Title — A > B — text"
    assert embedder.passage_text("", "", "text") == "text"
    written = embedder.passage_text("word " * 100, "Outer " * 50 + "> Inner", "text")
    assert written.endswith("> Inner — text")
    assert sum(embedder.count_tokens([written])) <= HEADER_TOKENS + 1
    assert embedder.count_tokens([embedder.passage_text("狐" * 500, "x" * 500, "text")])[0] <= HEADER_TOKENS + 1


def test_tokens_are_counted_without_special_ones_and_without_limit(embedder: Embedder) -> None:
    assert embedder.count_tokens(["", "river", "river " * 1_000]) == [0, 1, 1_000]


def test_a_script_that_the_tokenizer_does_not_know_counts_by_its_length(embedder: Embedder) -> None:
    assert embedder.count_tokens(["river " * 100 + "\U0001f6f6"]) == [101]  # one such word counts as it is
    text = "ഭാരതപ്പുഴ കേരളത്തിലെ ഒരു നദിയാണ് " * 40
    assert embedder.count_tokens([text])[0] >= len(text.encode()) // 12 > 1.5 * len(text.split())


def test_threads_share_it(embedder: Embedder) -> None:
    expected = [embedder.embed_query(text) for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        counted = [pool.submit(embedder.count_tokens, TEXTS) for _ in range(20)]
        found = list(pool.map(embedder.embed_query, TEXTS * 4))
    for vector_D, want_D in zip(found, expected * 4, strict=True):
        np.testing.assert_allclose(vector_D, want_D, atol=1e-5)
    assert all(job.result() == counted[0].result() for job in counted)


def test_fingerprint_follows_weights_and_configs_alone(embedder_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(embedder_path, copy)
    fingerprint = Embedder(embedder_path).fingerprint
    (copy / "README.md").write_text("other words")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "9"}, indent=7))
    assert Embedder(copy).fingerprint == fingerprint
    pooling = copy / "1_Pooling" / "config.json"
    before = pooling.read_text()
    pooling.write_text(json.dumps(json.loads(before) | {"pooling_mode_cls_token": True}))
    assert Embedder(copy).fingerprint != fingerprint
    pooling.write_text(before)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(weights))
    assert Embedder(copy).fingerprint != fingerprint


def test_the_models_own_prompts_are_used(embedder: Embedder, embedder_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(embedder_path, copy)
    prompts = {"query": "query: ", "passage": "passage: "}
    (copy / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    prompted = Embedder(copy)
    np.testing.assert_allclose(prompted.embed_query("fox"), embedder.embed_query("query: fox"), atol=1e-5)
    np.testing.assert_allclose(prompted.embed_passages(["fox"]), embedder.embed_passages(["passage: fox"]), atol=1e-5)
    assert prompted.max_tokens == embedder.max_tokens - 2
    assert prompted.fingerprint != embedder.fingerprint


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="HYBRIDQA_EMBEDDER"):
        Embedder(tmp_path / "nowhere")


def test_damaged_weights_are_a_model_error(embedder_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(embedder_path, copy)
    (copy / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match="could not be loaded"):
        Embedder(copy).embed_query("fox")
