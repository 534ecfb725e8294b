"""Decides what answers a question: which of the passages found, and which modules with them.

Knows nothing about how passages were found, adapters are stacked or prompts are written. Invariant: a module that is
not a document's, current, published, fresh, of this base model and of the question's collection is never chosen, and
neither is one whose documents the passages do not speak for or the question's filter leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence

from hybridqa.catalog import Catalog
from hybridqa.routing.evidence import DocumentEvidence
from hybridqa.routing.shares import weighed
from hybridqa.types import Filter, Mode, Module, ModuleChoice, ModuleKind, Route, ScoredPassage


class Router:
    """Routes questions with one store's modules; safe to share between threads."""

    def __init__(
        self,
        catalog: Catalog,
        base_model_hash: str,
        *,
        modules: int,
        module_threshold: float,
        passage_threshold: float,
        max_rank: int,
    ) -> None:
        """`modules` and `max_rank` bound a stack; evidence below `module_threshold` plugs nothing in.

        A passage whose cosine is below `passage_threshold` is no evidence at all and is left out.
        """
        self._catalog = catalog
        self._base_model_hash = base_model_hash
        self._modules = modules
        self._module_threshold = module_threshold
        self._passage_threshold = passage_threshold
        self._max_rank = max_rank

    def route(
        self,
        passages: Sequence[ScoredPassage],
        mode: Mode,
        collection: str,
        *,
        k: int | None = None,
        modules: int | None = None,
        max_rank: int | None = None,
        filter: Filter | None = None,
    ) -> Route:
        """The route of a question in a mode, from the passages that a search in `collection` found.

        At most `k` of them are to answer; evidence comes from all. `modules` says how many there may be for this
        question and `max_rank` what their ranks may sum to, instead of the router's own numbers. `filter` is the
        search's; a module is chosen only if all its documents pass.
        """
        if mode is Mode.CLOSED:
            return Route(mode, reason="closed: the base model's memory alone")
        near = [found for found in passages if self._is_near(found, collection)]
        kept = () if mode is Mode.MODULES else tuple(near[:k])
        documents = len({found.passage.doc_id for found in kept})
        reasons = []
        if mode is not Mode.MODULES:
            reasons.append(f"{_count(len(kept), 'passage')} of {_count(documents, 'document')}")
        evidence = DocumentEvidence(near)
        considered: tuple[ModuleChoice, ...] = ()
        chosen: tuple[ModuleChoice, ...] = ()
        if mode is not Mode.RETRIEVAL:
            limit = self._modules if modules is None else modules
            room = self._max_rank if max_rank is None else max_rank
            considered, why = self._consider(near, evidence, collection, limit, filter)
            if considered:
                chosen, why = self._choose(considered, limit, room)
            reasons.append(why)
        return Route(
            mode,
            kept,
            chosen,
            "; ".join(reasons),
            found=tuple(passages),
            evidence=evidence.of_each(),
            considered=considered,
        )

    def _is_near(self, found: ScoredPassage, collection: str) -> bool:
        if found.passage.collection != collection:
            return False
        return found.dense is None or found.dense >= self._passage_threshold

    def _consider(
        self,
        passages: Sequence[ScoredPassage],
        evidence: DocumentEvidence,
        collection: str,
        limit: int,
        filter: Filter | None,
    ) -> tuple[tuple[ModuleChoice, ...], str]:
        """The modules that may be plugged in, strongest evidence first; where there is none, why."""
        if limit == 0:
            return (), "no module: modules are switched off"
        if not passages:
            return (), "no module: nothing near the question was found"
        doc_ids = list(dict.fromkeys(found.passage.doc_id for found in passages))
        known = self._catalog.modules_for_documents(collection, doc_ids)
        usable = self._usable(known, collection)
        if usable and not (usable := self._passing(usable, collection, filter)):
            return (), "no module: those for these documents are also of documents that do not pass the filter"
        if not usable:
            unusable = f"{_count(len(known), 'module')} stale or of another base model" if known else "none there"
            return (), f"no module for these documents: {unusable}"
        choices = [ModuleChoice(module, 1.0, evidence.about(module.documents)) for module in usable]
        return tuple(sorted(choices, key=lambda choice: (-choice.evidence, choice.module.name))), ""

    def _choose(self, ranked: Sequence[ModuleChoice], limit: int, room: int) -> tuple[tuple[ModuleChoice, ...], str]:
        """Of modules by evidence, at most `limit` and with ranks that sum to at most `room`, and why these."""
        on_topic = [choice for choice in ranked if choice.evidence >= self._module_threshold]
        if not on_topic:
            best = ranked[0]
            return (), (
                f"no module: the best, {best.module.name!r}, has evidence {best.evidence:.2f} "
                f"below {self._module_threshold:.2f}"
            )
        chosen = _within_rank(on_topic[:limit], room)
        if not chosen:
            beside = "" if room == self._max_rank else " that plug-ins and extractor leave"
            return (), f"no module: {on_topic[0].module.name!r} has a rank over the {room}{beside}"
        named = ", ".join(f"{choice.module.name!r} (evidence {choice.evidence:.2f})" for choice in chosen)
        return weighed(chosen), f"{'module' if len(chosen) == 1 else 'modules'} {named}"

    def _usable(self, modules: Sequence[Module], collection: str) -> list[Module]:
        """Those of the collection and this base model whose documents are all as they were when it was distilled."""
        modules = [
            module
            for module in modules
            if module.kind is ModuleKind.DOCUMENT
            and module.collection == collection
            and module.base_model_hash == self._base_model_hash
        ]
        covered = sorted({doc_id for module in modules for doc_id in module.documents})
        hashes = self._catalog.document_hashes(collection, covered)
        return [
            module
            for module in modules
            if module.documents and all(hashes.get(doc_id) == known for doc_id, known in module.documents.items())
        ]

    def _passing(self, modules: Sequence[Module], collection: str, filter: Filter | None) -> list[Module]:
        """Those whose documents all pass the filter."""
        if filter is None or filter.is_open:
            return list(modules)
        covered = sorted({doc_id for module in modules for doc_id in module.documents})
        passing = self._catalog.passing_doc_ids(collection, covered, filter)
        return [module for module in modules if module.documents.keys() <= passing]


def _within_rank(choices: Sequence[ModuleChoice], room: int) -> list[ModuleChoice]:
    """The choices without the weakest ones that make their ranks sum past what there is room for."""
    kept = list(choices)
    while sum(choice.module.rank for choice in kept) > room:
        kept.pop()
    return kept


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
