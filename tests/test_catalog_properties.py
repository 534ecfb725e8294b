"""The catalog against a plain dict, over random sequences of changes with reopening in between."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hybridqa.catalog import Catalog, PassageDraft, PutResult
from hybridqa.types import Document

COLLECTIONS = st.sampled_from(["a", "b"])
DOC_IDS = st.sampled_from(["1", "2", "3", "4"])
WORDS = st.lists(st.sampled_from(["red", "green", "blue", "naïve", "…", "'quoted\"", "日本"]), min_size=1, max_size=6)


class CatalogMachine(RuleBasedStateMachine):
    """Passages are single words; a vector is (id of its word, position)."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "catalog.sqlite3"
        self.catalog = Catalog.open(self.path, create=True)
        self.model: dict[tuple[str, str], list[str]] = {}
        self.collections: set[str] = set()
        self.generation = 0
        self.used_ids: dict[int, tuple[str, str, str]] = {}

    def teardown(self) -> None:
        assert self.catalog.check() == []
        self.catalog.close()
        self.folder.cleanup()

    @rule(collection=COLLECTIONS, doc_id=DOC_IDS, words=WORDS)
    def put(self, collection: str, doc_id: str, words: list[str]) -> None:
        drafts, start = [], 0
        for ordinal, word in enumerate(words):
            drafts.append(PassageDraft(ordinal, start, start + len(word), word))
            start += len(word) + 1
        vectors_N_D = np.array([[len(word), ordinal] for ordinal, word in enumerate(words)], np.float32)
        document = Document(doc_id, collection, "", " ".join(words), "|".join(words))
        result = self.catalog.put_document(document, drafts, vectors_N_D, "e")
        before = self.model.get((collection, doc_id))
        expected = PutResult.ADDED if before is None else PutResult.REPLACED
        assert result is (PutResult.UNCHANGED if before == words else expected)
        changed = before != words
        assert (self.catalog.generation() > self.generation) == changed
        self.model[collection, doc_id] = words
        self.collections.add(collection)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        collection, doc_id = data.draw(st.sampled_from(sorted(self.model)))
        self.catalog.remove_document(collection, doc_id)
        del self.model[collection, doc_id]
        assert self.catalog.generation() > self.generation

    @precondition(lambda self: self.collections)
    @rule(data=st.data())
    def remove_collection(self, data: st.DataObject) -> None:
        collection = data.draw(st.sampled_from(sorted(self.collections)))
        self.catalog.remove_collection(collection)
        self.collections.discard(collection)
        self.model = {key: words for key, words in self.model.items() if key[0] != collection}

    @rule()
    def reopen(self) -> None:
        self.catalog.close()
        self.catalog = Catalog.open(self.path)

    @invariant()
    def agrees_with_the_model(self) -> None:
        catalog = self.catalog
        self.generation = catalog.generation()
        assert catalog.list_collections() == sorted(self.collections)
        assert [(s.collection, s.doc_id) for s in catalog.list_documents()] == sorted(self.model)
        ids: dict[str, list[int]] = {collection: [] for collection in self.collections}
        for (collection, doc_id), words in self.model.items():
            assert catalog.get_document(collection, doc_id).text == " ".join(words)
            passages = catalog.document_passages(collection, doc_id)
            assert [p.text for p in passages] == words
            ids[collection] += [p.passage_id for p in passages]
            for passage in passages:
                owner = (collection, doc_id, passage.text)
                assert self.used_ids.setdefault(passage.passage_id, owner) == owner
        everything = sorted(passage_id for some in ids.values() for passage_id in some)
        assert catalog.vector_ids().tolist() == everything
        got_ids, vectors_N_D = catalog.vectors()
        assert got_ids.tolist() == everything
        passages_by_id = catalog.get_passages(everything)
        for passage_id, vector_D in zip(everything, vectors_N_D, strict=True):
            passage = passages_by_id[passage_id]
            assert vector_D.tolist() == [len(passage.text), passage.ordinal]
        for collection, members in ids.items():
            assert catalog.vector_ids(collection).tolist() == sorted(members)
            for word in ("red", "naïve", "日本"):
                found = {passage_id for passage_id, _ in catalog.search_lexical(collection, f'"{word}"', 1000)}
                assert found == {i for i in members if passages_by_id[i].text == word}


CatalogMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestCatalogAgainstADict = CatalogMachine.TestCase
