"""What hybridqa answers when its sources disagree: a document changes under a service whose module knows the old one.

What the user says outranks passages, passages outrank modules, modules the base model's memory. Documents are changed,
and modules trained, in a store of the suite's own, by the product's own way. Knows nothing about how modules are made.
Invariant: every way of asking is asked about the same documents, and a stage that has ended is not gone through again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from hybridqa.answering.options import AskOptions
from hybridqa.answering.plan import Plan
from hybridqa.answering.seeking import Sought
from hybridqa.engine.loop import together
from hybridqa.engine.protocol import Engine
from hybridqa.errors import StoreError
from hybridqa.evaluation.conflict_plan import Change, ConflictPlan
from hybridqa.evaluation.conflict_scores import CLOSED, Told, scores
from hybridqa.evaluation.datasets import EvalDocument
from hybridqa.evaluation.metrics import contains
from hybridqa.evaluation.provenance import provenance
from hybridqa.evaluation.stores import Tell, store_of
from hybridqa.files import atomic_write_text, sha256_file
from hybridqa.ingest.library import content_hash
from hybridqa.pipeline import HybridQA
from hybridqa.types import DEFAULT_COLLECTION, Message, Mode, Module, ModuleChoice

_Version = Callable[[Change], EvalDocument]
_OLD: _Version = attrgetter("before")
_NEW: _Version = attrgetter("after")
STAGES = "stages"  # in the work folder: what was answered, by stage
AT_ONCE = 8
REPLY = "Thank you, I will keep to that."


def run_conflict(plan: ConflictPlan, work: Path, tell: Tell) -> dict[str, Any]:
    """The report, as plain data; blocks while modules are trained, twice for each document.

    Raises `StoreError` while another run is at work in the folder or when another plan was begun there,
    `TrainingError`, `EngineError`.
    """
    work.mkdir(parents=True, exist_ok=True)
    stages = _Stages(work, plan)
    documents = stages.documents()
    with store_of(documents, work, tell, extractor=plan.extractor, **plan.settings) as store:
        told = _Run(plan, store, stages, tell).go()
        model = {"name": store.model.name, "hash": store.model.hash}
    return {
        **provenance(plan.docs, plan.questions_file, plan.seed),
        "suite": "conflict",
        "model": model,
        "extractor": None if plan.extractor is None else plan.extractor.name,
        "settings": dict(plan.settings),
        "data": {"documents": len(plan.documents), "changed": len(plan.changes)},
        **scores(told, plan.seed),
    }


class _Stages:
    """What was answered so far, in files of the work folder."""

    def __init__(self, work: Path, plan: ConflictPlan) -> None:
        self._folder = work / STAGES
        self._folder.mkdir(exist_ok=True)
        self._plan = plan
        about = [
            [sha256_file(path) for path in (plan.docs, plan.questions_file)],
            [change.question.qid for change in plan.changes],
            str(plan.extractor),
            {name: str(value) for name, value in sorted(plan.settings.items())},
        ]
        path, text = self._folder / "plan.json", json.dumps(about)
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise StoreError(
                f"{str(work)!r} holds another measurement of conflicts: other data, questions, extractor or settings. "
                "Expected to go on with the same; give another --work."
            )
        atomic_write_text(path, text)

    def documents(self) -> list[EvalDocument]:
        """What the store is to hold now: the new versions where the documents were changed before."""
        if not self.ended("before"):
            return self._plan.documents
        new = {change.doc_id: change.after for change in self._plan.changes}
        return [
            EvalDocument(one.doc_id, new[one.doc_id].title, new[one.doc_id].text, one.meta)
            if one.doc_id in new
            else one
            for one in self._plan.documents
        ]

    def ended(self, stage: str) -> bool:
        return (self._folder / f"{stage}.json").is_file()

    def load(self, stage: str) -> list[Told]:
        return [Told(**one) for one in json.loads((self._folder / f"{stage}.json").read_text(encoding="utf-8"))]

    def keep(self, stage: str, told: Sequence[Told]) -> None:
        atomic_write_text(self._folder / f"{stage}.json", json.dumps([asdict(one) for one in told]))


class _Run:
    def __init__(self, plan: ConflictPlan, store: HybridQA, stages: _Stages, tell: Tell) -> None:
        self._plan = plan
        self._store = store
        self._stages = stages
        self._tell = tell

    def go(self) -> list[Told]:
        told: list[Told] = []
        for stage, work in (("before", self._before), ("changed", self._changed), ("refreshed", self._refreshed)):
            if not self._stages.ended(stage):
                self._stages.keep(stage, work())
            told += self._stages.load(stage)
        return told

    def _before(self) -> list[Told]:
        """The old documents and their modules."""
        self._refresh("old")
        return [
            *self._ask(CLOSED, Mode.CLOSED),
            *self._ask("before: modules", Mode.MODULES),
            *self._ask("before: the module, whatever its gate said", Mode.CLOSED, forced=_OLD),
            *self._ask("before: passages", Mode.RETRIEVAL),
            *self._ask("before: hybrid", Mode.HYBRID),
            *self._ask("before: passages, and the user says the new", Mode.RETRIEVAL, user=True),
            *self._ask("before: hybrid, and the user says the new", Mode.HYBRID, user=True),
        ]

    def _changed(self) -> list[Told]:
        """The new documents, and modules of the old ones."""
        for change in self._plan.changes:
            self._store.add_text(change.doc_id, change.after.text, title=change.after.title)
        return [
            *self._ask("changed: modules", Mode.MODULES),
            *self._ask("changed: passages", Mode.RETRIEVAL),
            *self._ask("changed: hybrid", Mode.HYBRID),
            *self._ask("changed: passages, and the old module forced in", Mode.RETRIEVAL, forced=_OLD),
        ]

    def _refreshed(self) -> list[Told]:
        self._refresh("new")
        return [
            *self._ask("refreshed: modules", Mode.MODULES),
            *self._ask("refreshed: the module, whatever its gate said", Mode.CLOSED, forced=_NEW),
            *self._ask("refreshed: hybrid", Mode.HYBRID),
        ]

    def _refresh(self, which: str) -> None:
        doc_ids = [change.doc_id for change in self._plan.changes]

        def heard(event: Any) -> None:
            done = doc_ids.index(event.doc_id) if event.doc_id in doc_ids else 0
            self._tell(f"{which} modules: {event.stage} {event.doc_id}", done, len(doc_ids))

        self._store.refresh(doc_ids=doc_ids, on_event=heard)

    def _ask(self, way: str, mode: Mode, *, user: bool = False, forced: _Version | None = None) -> list[Told]:
        self._tell(way, 0, len(self._plan.changes))

        async def work() -> list[Told]:
            engine = await self._store.engine_ready()
            told: list[Told] = []
            for start in range(0, len(self._plan.changes), AT_ONCE):
                some = self._plan.changes[start : start + AT_ONCE]
                told += await together(self._one(way, change, mode, user, forced, engine) for change in some)
                self._tell(way, len(told), len(self._plan.changes))
            return told

        self._store.answerer_ready()  # here: building takes no place on the engine's loop
        return self._store.run(work())

    async def _one(
        self, way: str, change: Change, mode: Mode, user: bool, forced: _Version | None, engine: Engine
    ) -> Told:
        nothing = Told(way, change.question.qid, "", False, False, None, None, 0, 0)
        question = change.question.question
        options: AskOptions = {"mode": mode, "history": _said(change) if user else ()}
        sought = await self._store.answerer.seek(question, options)
        module = None if forced is None else self._module_of(change, forced)
        if forced is not None and module is None:
            return nothing
        make: Callable[[], Plan] = partial(self._plan_of, question, options, sought, module)
        async with self._store.stacks_in_use.planned(make) as plan:
            if plan.prompt is None:
                return nothing
            answer = await self._store.answerer.answer(plan, engine)
            adapter, ids = plan.adapter, plan.prompt.token_ids
            old, new = (self._store.prompts.encode_answer(text, ended=False) for text in (change.old, change.new))
            likely_old = await engine.score(ids, old, adapter) / len(old)
            likely_new = await engine.score(ids, new, adapter) / len(new)
        text = answer.text
        mine = [choice.module for choice in plan.route.modules if change.doc_id in choice.module.documents]
        return Told(
            way,
            change.question.qid,
            text,
            bool(contains(text, [change.old])),
            bool(contains(text, [change.new])),
            likely_old,
            likely_new,
            fresh=sum(self._is_fresh(module) for module in mine),
            stale=sum(not self._is_fresh(module) for module in mine),
        )

    def _plan_of(self, question: str, options: AskOptions, sought: Sought, module: Module | None) -> Plan:
        """The product's own plan; with a module plugged in, whatever speaks against it, where one is given."""
        plan = self._store.answerer.plan(question, options, sought)
        if module is not None:
            extractor = [] if plan.route.extractor is None else [plan.route.extractor]
            choices = [ModuleChoice(module, 1.0, 1.0), *extractor]
            plan.adapter = self._store.stacks.stack(choices, self._store.settings.max_lora_rank)
        return plan

    def _module_of(self, change: Change, version: _Version) -> Module | None:
        """The latest module that was trained on a version of the document; none where there was too little to learn."""
        digest = content_hash(version(change).title, version(change).text)
        known = [one for one in self._store.modules() if one.documents.get(change.doc_id) == digest]
        return known[-1] if known else None

    def _is_fresh(self, module: Module) -> bool:
        hashes = self._store.catalog.document_hashes(DEFAULT_COLLECTION, sorted(module.documents))
        return hashes == dict(module.documents)


def _said(change: Change) -> tuple[Message, ...]:
    """A turn of the user's in which the new answer is given, and the reply to it."""
    said = f"Keep in mind what has changed: to the question {change.question.question!r} the answer is {change.new}."
    return Message("user", said), Message("assistant", REPLY)
