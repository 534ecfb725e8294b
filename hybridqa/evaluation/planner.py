"""What each question of an arm is asked with: its prompt, its gold answers as token ids, and its adapter.

Knows nothing about engines or scores. Invariant: prompts, retrieval and routing are the product's own, so that an arm
measures what the product would do with those passages and modules.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hybridqa.answering.answerer import ROUTING_PASSAGES
from hybridqa.answering.prompt import messages_for
from hybridqa.engine.protocol import Adapter
from hybridqa.engine.vllm_args import context_length
from hybridqa.errors import InputError, QuestionError
from hybridqa.evaluation.answers import Asked
from hybridqa.evaluation.arms import Arm, Sources
from hybridqa.evaluation.datasets import EvalQuestion, cluster_of
from hybridqa.evaluation.extractors import Extractor
from hybridqa.evaluation.gold import gold_chunk
from hybridqa.evaluation.modules import GridModule
from hybridqa.evaluation.stacks import GridStacks
from hybridqa.modules.adapter import LoraAdapter
from hybridqa.pipeline import HybridQA
from hybridqa.routing.evidence import DocumentEvidence
from hybridqa.routing.router import Router
from hybridqa.routing.shares import scaled, shares_of
from hybridqa.types import DEFAULT_COLLECTION, Mode, ScoredPassage, Weight

MOST_TARGETS = 3  # gold answers that are scored

Shares = Callable[[Sequence[float]], Sequence[float]]  # from each module's evidence to what it counts


@dataclass(frozen=True, slots=True)
class Found:
    """What retrieval and routing gave for one question."""

    passages: tuple[ScoredPassage, ...]
    routed: tuple[str, ...]  # documents whose modules the router chose
    evidence: Mapping[str, float] = field(default_factory=dict)  # of the documents that were found, routed or not


class Planner:
    """Plans the questions of one grid."""

    def __init__(
        self,
        store: HybridQA,
        stacks: GridStacks,
        modules: Mapping[tuple[str, str], GridModule],
        chunks: Mapping[str, Sequence[str]],
        *,
        max_answer_tokens: int,
        route_gold: bool,
        extractor: Extractor | None,
        extractor_rag: Extractor | None,
        shares: Shares = shares_of,
    ) -> None:
        """`chunks` are those of every document that is asked about; `shares` what each module of a stack counts."""
        self._shares = shares
        self._store = store
        self._stacks = stacks
        self._modules = modules
        self._chunks = chunks
        self._max_answer_tokens = max_answer_tokens
        self._route_gold = route_gold
        self._extractor = extractor
        self._extractor_rag = extractor_rag or extractor
        settings = store.settings
        self._router = Router(
            store.catalog,
            store.model.hash,
            modules=settings.modules,
            module_threshold=settings.module_threshold,
            passage_threshold=settings.passage_threshold,
            max_rank=settings.max_lora_rank,
        )

    def find(self, question: EvalQuestion) -> Found:
        """Searches all documents for a question and routes it, as the product does."""
        most = self._store.settings.passages
        found = self._store.searcher.search(
            question.question, k=max(most, ROUTING_PASSAGES), collection=DEFAULT_COLLECTION
        )
        route = self._router.route(found, Mode.HYBRID, DEFAULT_COLLECTION, k=most)
        routed = [doc_id for choice in route.modules for doc_id in choice.module.documents]
        return Found(route.passages, tuple(routed), DocumentEvidence(found).of_each())

    def check(self, arms: Sequence[Arm], questions: Sequence[EvalQuestion]) -> None:
        """Raises `InputError` for a question that an arm cannot ask: it would end the grid after all training."""
        window = context_length(self._store.model.path, self._store.settings.max_model_len)
        gold = any(arm.sources is Sources.GOLD for arm in arms)
        for question in questions:
            room = self._room(self._targets(question))
            try:
                self._store.prompts.build(question.question, (), (), max_answer_tokens=room)
            except QuestionError as error:
                raise InputError(f"question {question.qid!r} cannot be asked: {error}") from error
            sources = [self._gold_source(question, doc_id) for doc_id in question.doc_ids] if gold else []
            size = len(self._store.prompts.encode(messages_for(question.question, sources))) + room
            if size > window:
                raise InputError(
                    f"question {question.qid!r} needs {size} tokens with its {len(sources)} gold chunks and its "
                    f"answer; expected at most {window}, the model's window. Raise max_model_len, leave the arms with "
                    "the gold chunk out with --arms, or leave the question out."
                )

    def plan(self, arm: Arm, question: EvalQuestion, found: Found | None) -> Asked:
        """The question as the arm asks it; `found` must be there where the arm retrieves or the router routes."""
        targets = self._targets(question)
        room = self._room(targets)
        return Asked(
            question.qid, self._prompt(arm, question, found, room), targets, self._adapter(arm, question, found)
        )

    def _targets(self, question: EvalQuestion) -> tuple[tuple[int, ...], ...]:
        """The gold answers that are scored, without the turn's end: an arm that cites its source goes on there."""
        prompts = self._store.prompts
        return tuple(prompts.encode_answer(answer, ended=False) for answer in question.answers[:MOST_TARGETS])

    def _room(self, targets: Sequence[Sequence[int]]) -> int:
        """The tokens that the prompt leaves for the answer."""
        return max(self._max_answer_tokens, *(len(target) + 1 for target in targets))

    def _prompt(self, arm: Arm, question: EvalQuestion, found: Found | None, room: int) -> tuple[int, ...]:
        prompts = self._store.prompts
        if arm.sources is Sources.GOLD:
            sources = [self._gold_source(question, doc_id) for doc_id in question.doc_ids]
            return prompts.encode(messages_for(question.question, sources))
        passages: tuple[ScoredPassage, ...] = ()
        if arm.sources is Sources.RETRIEVED:
            assert found is not None
            passages = found.passages[: arm.passages]
        return prompts.build(question.question, (), passages, max_answer_tokens=room).token_ids

    def _gold_source(self, question: EvalQuestion, doc_id: str) -> str:
        """The gold chunk with the document's title over it, as a module's teacher reads it."""
        title = self._store.catalog.get_document(DEFAULT_COLLECTION, doc_id).title
        chunk = self._chunks[doc_id][gold_chunk(question, self._chunks[doc_id])]
        return f"{title}\n{chunk}" if title else chunk

    def _adapter(self, arm: Arm, question: EvalQuestion, found: Found | None) -> Adapter | None:
        modules = self._module_adapters(arm, question, found)
        if not arm.extractor:
            return self._stacks.adapter(modules)
        extractor = self._extractor if arm.objective else self._without_modules(arm)
        assert extractor is not None
        parts: list[tuple[LoraAdapter, Weight]] = [
            (module, scaled(extractor.weight_of(module), share)) for module, share in modules
        ]
        return self._stacks.adapter([*parts, (extractor.adapter, 1.0)])

    def _without_modules(self, arm: Arm) -> Extractor | None:
        return self._extractor_rag if arm.sources is Sources.RETRIEVED else self._extractor

    def _module_adapters(
        self, arm: Arm, question: EvalQuestion, found: Found | None
    ) -> list[tuple[LoraAdapter, float]]:
        """The modules that the arm plugs in, and what each counts; a document without a trained module has none."""
        if arm.objective is None:
            return []
        doc_ids: Sequence[str] = question.doc_ids
        evidence: Mapping[str, float] = {}  # where the right modules are given, none of them leads
        if arm.stacked is not None:
            assert found is not None
            evidence = found.evidence
            doc_ids = [*doc_ids, *self._others(question, arm.objective, evidence)[: arm.stacked - 1]]
        elif not self._route_gold and arm.sources is not Sources.GOLD:
            assert found is not None
            evidence = found.evidence
            doc_ids = found.routed
        modules = [(doc_id, self._modules.get((doc_id, arm.objective))) for doc_id in doc_ids]
        plugged = [(doc_id, module.adapter) for doc_id, module in modules if module is not None and module.adapter]
        shares = self._shares([evidence.get(doc_id, 0.0) for doc_id, _ in plugged])
        return [(adapter, share) for (_, adapter), share in zip(plugged, shares, strict=True)]

    def _others(self, question: EvalQuestion, objective: str, evidence: Mapping[str, float]) -> list[str]:
        """Other documents with a module, those that could be mistaken for the right one first.

        The rest are in an order of the question's document's own; smaller stacks are in larger ones.
        """
        others = sorted(
            module.doc_id
            for module in self._modules.values()
            if module.objective == objective and module.adapter is not None and module.doc_id not in question.doc_ids
        )
        random.Random(f"{self._store.settings.seed}\0{cluster_of(question)}").shuffle(others)
        return sorted(others, key=lambda doc_id: -evidence.get(doc_id, 0.0))
