"""The router over a real catalog: which modules may answer, in which mode, and what it says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from hybridqa.catalog import Catalog, PassageDraft
from hybridqa.routing.router import Router
from hybridqa.routing.shares import share_of, shares_of
from hybridqa.types import Document, Filter, Mode, Module, ModuleKind, ModuleStatus, Route, ScoredPassage

QUESTION = "How does the fox jump?"
TEXT = "The fox jumps over the hedge."


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog.open(tmp_path / "catalog.sqlite3", create=True, module_dir=tmp_path / "modules")
    yield made
    made.close()


def put(catalog: Catalog, doc_id: str, collection: str = "c", content_hash: str = "h1") -> None:
    document = Document(doc_id, collection, doc_id, TEXT, content_hash)
    catalog.put_document(document, [PassageDraft(0, 0, len(TEXT), TEXT)], np.ones((1, 2), np.float32), "e")


def publish(
    catalog: Catalog,
    module_id: str,
    documents: Sequence[str],
    *,
    collection: str = "c",
    base: str = "base",
    rank: int = 16,
    status: ModuleStatus = ModuleStatus.PUBLISHED,
    current: bool = True,
    kind: ModuleKind = ModuleKind.DOCUMENT,
) -> None:
    version = catalog.next_module_version(collection, module_id)
    hashes = dict.fromkeys(documents, "h1")
    path = Path("modules") / module_id / str(version)
    catalog.add_module(Module(module_id, version, collection, path, hashes, base, rank, status, False, kind=kind))
    if current:
        catalog.set_current(collection, module_id, version)


def found(catalog: Catalog, **cosines: float) -> list[ScoredPassage]:
    """Each document's one passage with a cosine, in the order given."""
    passages = []
    for doc_id, cosine in cosines.items():
        passage = catalog.document_passages("c", doc_id)[0]
        passages.append(ScoredPassage(passage, 3 + 14 * cosine, cosine, coverage=min(1.0, 1.2 * cosine)))
    return passages


def route(catalog: Catalog, passages: Sequence[ScoredPassage], mode: Mode = Mode.HYBRID, **changed: float) -> Route:
    limits = {"modules": 1, "module_threshold": 0.35, "passage_threshold": 0.0, "max_rank": 64} | changed
    return Router(catalog, "base", **limits).route(passages, mode, "c")  # type: ignore[arg-type]


def names(decided: Route) -> list[str]:
    return [choice.module.name for choice in decided.modules]


def test_each_mode_takes_what_it_says(catalog: Catalog) -> None:
    put(catalog, "a")
    publish(catalog, "m", ["a"])
    passages = found(catalog, a=0.8)
    got = {mode: route(catalog, passages, mode) for mode in Mode}
    assert {mode: (len(r.passages), names(r)) for mode, r in got.items()} == {
        Mode.HYBRID: (1, ["m@1"]),
        Mode.RETRIEVAL: (1, []),
        Mode.MODULES: (0, ["m@1"]),
        Mode.CLOSED: (0, []),
    }
    assert all(r.mode is mode and r.reason for mode, r in got.items())
    assert got[Mode.HYBRID].modules[0].weight == 1.0
    assert 0.9 < got[Mode.HYBRID].modules[0].evidence < 1
    assert got[Mode.HYBRID].reason.startswith("1 passage of 1 document; module 'm@1' (evidence 0.9")


def test_a_route_tells_what_it_was_decided_from(catalog: Catalog) -> None:
    for doc_id in ("a", "b"):
        put(catalog, doc_id)
        publish(catalog, f"m-{doc_id}", [doc_id])
    passages = found(catalog, a=0.5, b=0.8)
    decided = Router(catalog, "base", modules=1, module_threshold=0.35, passage_threshold=0.0, max_rank=64).route(
        passages, Mode.HYBRID, "c", k=1
    )
    assert decided.found == tuple(passages) and decided.passages == tuple(passages[:1])
    assert list(decided.evidence) == ["b", "a"]
    assert [choice.module.name for choice in decided.considered] == ["m-b@1", "m-a@1"]
    assert {choice.module.module_id: choice.evidence for choice in decided.considered} == {
        f"m-{doc_id}": value for doc_id, value in decided.evidence.items()
    }
    assert names(decided) == ["m-b@1"]
    assert "1 passage of 1 document" in decided.reason


def test_the_module_of_the_nearest_document_is_chosen(catalog: Catalog) -> None:
    for doc_id in ("a", "b"):
        put(catalog, doc_id)
        publish(catalog, f"m-{doc_id}", [doc_id])
    assert names(route(catalog, found(catalog, a=0.5, b=0.7))) == ["m-b@1"]
    assert names(route(catalog, found(catalog, a=0.7, b=0.5))) == ["m-a@1"]


def test_a_question_may_ask_for_more_or_fewer_modules_than_the_setting(catalog: Catalog) -> None:
    for doc_id in ("a", "b"):
        put(catalog, doc_id)
        publish(catalog, f"m-{doc_id}", [doc_id])
    passages = found(catalog, a=0.5, b=0.5)
    router = Router(catalog, "base", modules=1, module_threshold=0.0, passage_threshold=0.0, max_rank=64)
    routes = [router.route(passages, Mode.HYBRID, "c", modules=modules) for modules in (None, 0, 1, 2, 3)]
    assert [len(names(each)) for each in routes] == [1, 0, 1, 2, 2]
    weights = [[choice.weight for choice in each.modules] for each in routes]
    assert weights == [[1.0], [], [1.0], [share_of(2)] * 2, [share_of(2)] * 2]


def test_the_module_with_the_most_evidence_counts_most(catalog: Catalog) -> None:
    for doc_id in ("a", "b"):
        put(catalog, doc_id)
        publish(catalog, f"m-{doc_id}", [doc_id])
    router = Router(catalog, "base", modules=2, module_threshold=0.0, passage_threshold=0.0, max_rank=64)
    routed = router.route(found(catalog, a=0.3, b=0.8), Mode.HYBRID, "c")
    first, second = routed.modules
    assert first.module.name == "m-b@1"
    assert (first.weight, second.weight) == shares_of([first.evidence, second.evidence])
    assert isinstance(first.weight, float) and isinstance(second.weight, float) and first.weight > 2 * second.weight


def test_a_far_question_gets_no_module(catalog: Catalog) -> None:
    put(catalog, "a")
    publish(catalog, "m", ["a"])
    passages = found(catalog, a=0.2)
    limits = {"modules": 1, "module_threshold": 0.35, "passage_threshold": 0.0, "max_rank": 64}
    router = Router(catalog, "base", **limits)  # type: ignore[arg-type]
    decided = router.route(passages, Mode.HYBRID, "c")
    assert decided.modules == ()
    assert len(decided.passages) == 1
    assert "'m@1', has evidence 0.0" in decided.reason


Spoil = Callable[[Catalog], None]
UNUSABLE: dict[str, Spoil] = {
    "stale": lambda catalog: (publish(catalog, "m", ["a"]), put(catalog, "a", content_hash="h2"))[0],
    "another base model": lambda catalog: publish(catalog, "m", ["a"], base="another"),
    "rejected": lambda catalog: publish(catalog, "m", ["a"], status=ModuleStatus.REJECTED, current=False),
    "not current": lambda catalog: publish(catalog, "m", ["a"], current=False),
    "out of service": lambda catalog: (publish(catalog, "m", ["a"]), catalog.set_current("c", "m", None))[0],
    "another's": lambda catalog: (put(catalog, "a", "other"), publish(catalog, "m", ["a"], collection="other"))[0],
    "of another document": lambda catalog: (put(catalog, "z"), publish(catalog, "m", ["z"]))[0],
    "a plug-in": lambda catalog: publish(catalog, "m", ["a"], kind=ModuleKind.SCRATCHPAD),
    "an extractor": lambda catalog: publish(catalog, "m", ["a"], kind=ModuleKind.EXTRACTOR),
    "too large": lambda catalog: publish(catalog, "m", ["a"], rank=128),
    "none": lambda catalog: None,
}


@pytest.mark.parametrize("spoil", UNUSABLE.values(), ids=UNUSABLE.keys())
@pytest.mark.parametrize("mode", [Mode.HYBRID, Mode.MODULES])
def test_an_unusable_module_is_never_chosen(spoil: Spoil, mode: Mode, catalog: Catalog) -> None:
    put(catalog, "a")
    spoil(catalog)
    decided = route(catalog, found(catalog, a=0.9), mode)
    assert decided.modules == ()
    assert "no module" in decided.reason


def test_one_stale_document_makes_a_shared_module_stale(catalog: Catalog) -> None:
    put(catalog, "a")
    put(catalog, "b")
    publish(catalog, "m", ["a", "b"])
    assert names(route(catalog, found(catalog, a=0.6))) == ["m@1"]
    put(catalog, "b", content_hash="h2")
    assert names(route(catalog, found(catalog, a=0.6))) == []


def test_a_shared_module_is_not_its_own_rival(catalog: Catalog) -> None:
    for doc_id in ("a", "b"):
        put(catalog, doc_id)
    publish(catalog, "shared", ["a", "b"])
    decided = route(catalog, found(catalog, a=0.7, b=0.7))
    assert names(decided) == ["shared@1"]
    assert decided.modules[0].evidence > 0.9


def test_several_modules_come_strongest_first_within_number_and_rank(catalog: Catalog) -> None:
    for doc_id, rank in (("a", 16), ("b", 32), ("d", 16)):
        put(catalog, doc_id)
        publish(catalog, doc_id, [doc_id], rank=rank)
    passages = found(catalog, a=0.55, b=0.65, d=0.45)
    ample = {"module_threshold": 0.0, "max_rank": 64}
    assert names(route(catalog, passages, modules=3, **ample)) == ["b@1", "a@1", "d@1"]
    assert names(route(catalog, passages, modules=2, **ample)) == ["b@1", "a@1"]
    assert names(route(catalog, passages, modules=3, module_threshold=0.0, max_rank=50)) == ["b@1", "a@1"]
    assert names(route(catalog, passages, modules=0)) == []


def test_what_is_in_the_stack_already_leaves_less_room(catalog: Catalog) -> None:
    for doc_id, rank in (("a", 16), ("b", 16)):
        put(catalog, doc_id)
        publish(catalog, doc_id, [doc_id], rank=rank)
    passages = found(catalog, a=0.55, b=0.65)
    router = Router(catalog, "base", modules=2, module_threshold=0.0, passage_threshold=0.0, max_rank=64)
    decided = [router.route(passages, Mode.HYBRID, "c", max_rank=room) for room in (None, 32, 31, 15, 0)]
    assert [names(each) for each in decided] == [["b@1", "a@1"], ["b@1", "a@1"], ["b@1"], [], []]
    assert "'b@1' has a rank over the 15 that plug-ins and extractor leave" in decided[3].reason


def test_a_passage_below_the_threshold_is_no_evidence(catalog: Catalog) -> None:
    for doc_id in ("a", "b"):
        put(catalog, doc_id)
        publish(catalog, f"m-{doc_id}", [doc_id])
    passages = found(catalog, a=0.7, b=0.29)
    assert len(route(catalog, passages, passage_threshold=0.3).passages) == 1
    nothing = route(catalog, passages, passage_threshold=0.8)
    assert (nothing.passages, nothing.modules) == ((), ())
    assert "nothing near the question" in nothing.reason


def test_a_passage_of_another_collection_is_left_out(catalog: Catalog) -> None:
    put(catalog, "a")
    put(catalog, "a", "other")
    publish(catalog, "m", ["a"])
    stray = ScoredPassage(catalog.document_passages("other", "a")[0], 1.0, 0.9)
    decided = route(catalog, [stray])
    assert (decided.passages, decided.modules) == ((), ())


def test_a_module_is_chosen_only_if_all_its_documents_pass_the_filter(catalog: Catalog) -> None:
    for doc_id in ("a", "b", "c"):
        put(catalog, doc_id)
    publish(catalog, "both", ["a", "b"])
    publish(catalog, "one", ["a"])
    router = Router(catalog, "base", modules=3, module_threshold=0.0, passage_threshold=0.0, max_rank=64)
    passages = found(catalog, a=0.7)

    def chosen(filter: Filter | None) -> set[str]:
        return set(names(router.route(passages, Mode.HYBRID, "c", filter=filter)))

    assert chosen(None) == chosen(Filter()) == chosen(Filter(("a", "b"))) == {"both@1", "one@1"}
    assert chosen(Filter(("a", "c"))) == {"one@1"}
    publish(catalog, "one", ["a", "c"])
    assert chosen(Filter(("a",))) == set()
    reason = router.route(passages, Mode.HYBRID, "c", filter=Filter(("a",))).reason
    assert "documents that do not pass the filter" in reason
    assert chosen(Filter(metadata={"team": "x"})) == set()
