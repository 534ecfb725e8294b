"""The grid: one set of documents and questions, asked with and without passages, modules and the task extractor.

Builds a store of its own in a work folder, trains modules there, asks every arm, and hands the scores to the report.
Knows nothing about how numbers are shown. Invariant: a run that was killed, run again with the same work folder, trains
and asks only what is missing, and gives the report that it would have given.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hybridqa.engine.protocol import Sampling
from hybridqa.errors import StoreError
from hybridqa.evaluation.answers import AnswerBook, Asked, Given
from hybridqa.evaluation.arms import Arm, Sources
from hybridqa.evaluation.modules import GridModule, GridModules, Tell
from hybridqa.evaluation.options import Plan
from hybridqa.evaluation.planner import Found, Planner, Shares
from hybridqa.evaluation.stacks import GridStacks
from hybridqa.evaluation.stores import fill
from hybridqa.files import sha256_file
from hybridqa.pipeline import HybridQA
from hybridqa.routing.shares import shares_of
from hybridqa.training.recipe import Recipe
from hybridqa.types import DEFAULT_COLLECTION, Module, ModuleStatus

STACKS_AT_ONCE = 64  # questions whose stacks are on disk at a time


@dataclass(frozen=True, slots=True)
class ArmAnswers:
    """One arm's answers, in the order of the plan's questions."""

    arm: Arm
    given: list[Given]
    asked: list[Asked]
    known: int  # of the answers, those that an earlier run gave
    seconds: float  # of this run


@dataclass(frozen=True, slots=True)
class GridResult:
    """Everything that a report is made from."""

    plan: Plan
    work: Path
    settings: dict[str, Any]
    recipe: dict[str, Any]
    model: dict[str, str]
    answers: list[ArmAnswers]
    modules: dict[tuple[str, str], GridModule]
    timings: dict[str, float] = field(default_factory=dict)


def run_grid(
    plan: Plan, work: Path, tell: Tell, *, recipe: Recipe | None = None, shares: Shares = shares_of
) -> GridResult:
    """Carries out a plan in a work folder, which is made; blocks for as long as training and answering take.

    `recipe`, where given, trains in place of the settings' own, whatever its objective; `shares` says what each
    module of a stack counts, from the evidence for each.

    Raises `StoreError` while another grid is at work there, `AdapterError` for an extractor of another base model,
    `TrainingError`, `EngineError`.
    """
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / ".grid.lock", timeout=0):
            return _Grid(plan, work, tell, recipe, shares).run()
    except Timeout as error:
        raise StoreError(
            f"another grid is at work in {str(work)!r}; expected to be the only one. Wait for it, or give another "
            "--work."
        ) from error


class _Grid:
    def __init__(self, plan: Plan, work: Path, tell: Tell, recipe: Recipe | None, shares: Shares) -> None:
        self._plan = plan
        self._recipe = recipe
        self._shares = shares
        self._work = work
        self._tell = tell
        self._timings: dict[str, float] = {}

    def run(self) -> GridResult:
        plan = self._plan
        with HybridQA.open(self._work / self._store_name(), create=True, **plan.settings) as store:
            for extractor in (plan.extractor, plan.extractor_rag):
                if extractor is not None:
                    extractor.check_base_model(store.model.hash)
            self._timed("add documents", lambda: self._add_documents(store))
            maker = GridModules(store, self._work, self._tell, self._recipe)
            stacks = GridStacks(store.settings.module_dir / "grid-stacks", store.settings.max_lora_rank)
            chunks = {doc_id: maker.chunks(doc_id) for doc_id in plan.doc_ids}
            self._planner(store, stacks, chunks, {}).check(plan.arms, plan.questions)
            modules = self._timed("modules", lambda: maker.make(plan.doc_ids, plan.trained) if plan.trained else {})
            if plan.options.route == "router":
                self._put_into_service(store, modules)
            planner = self._planner(store, stacks, chunks, modules)
            found = self._timed("search", lambda: self._find(planner))
            answers = self._timed("answers", lambda: self._answer(store, planner, stacks, found))
            result = GridResult(
                plan=plan,
                work=self._work,
                settings=store.settings.model_dump(mode="json"),
                recipe={name: value for name, value in asdict(maker.recipe).items() if name != "objective"},
                model={"name": store.model.name, "hash": store.model.hash},
                answers=answers,
                modules=modules,
                timings=self._timings,
            )
        return result

    def _planner(
        self,
        store: HybridQA,
        stacks: GridStacks,
        chunks: dict[str, list[str]],
        modules: dict[tuple[str, str], GridModule],
    ) -> Planner:
        plan = self._plan
        return Planner(
            store,
            stacks,
            modules,
            chunks,
            max_answer_tokens=plan.options.max_answer_tokens,
            route_gold=plan.options.route == "gold",
            extractor=plan.extractor,
            extractor_rag=plan.extractor_rag,
            shares=self._shares,
        )

    def _store_name(self) -> str:
        """A store for these documents, model and splitting; others in the same work folder get another."""
        settings = {name: self._plan.settings.get(name) for name in ("model", "embedder", "passage_tokens")}
        text = json.dumps([sha256_file(self._plan.options.docs), settings], default=str, sort_keys=True)
        return f"store-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        self._timings[name] = time.perf_counter() - started
        return result

    def _add_documents(self, store: HybridQA) -> None:
        fill(store, self._plan.documents, self._tell)

    def _put_into_service(self, store: HybridQA, modules: dict[tuple[str, str], GridModule]) -> None:
        """Rows in the catalog for the router to find, of the main objective's modules, whatever their gate said."""
        rows = {module.module_id for module in store.modules()}
        for module_id in rows:  # of an earlier run: those of documents that this one does not ask about rest
            store.catalog.set_current(DEFAULT_COLLECTION, module_id, None)
        for (doc_id, objective), module in modules.items():
            module_id = store.module_id(doc_id)
            if module.adapter is None or objective != self._plan.trained[0]:
                continue
            if module_id in rows:
                store.catalog.set_current(DEFAULT_COLLECTION, module_id, 1)
                continue
            document = store.catalog.get_document(DEFAULT_COLLECTION, doc_id)
            row = Module(
                module_id=module_id,
                version=1,
                collection=DEFAULT_COLLECTION,
                path=module.adapter.path,
                documents={doc_id: document.content_hash},
                base_model_hash=store.model.hash,
                rank=module.adapter.rank,
                status=ModuleStatus.PUBLISHED,
                current=False,
            )
            store.catalog.add_module(row)
            store.catalog.set_current(DEFAULT_COLLECTION, module_id, 1)

    def _find(self, planner: Planner) -> dict[str, Found]:
        """What retrieval and routing give for each question, where an arm needs it."""
        retrieved = any(arm.sources is Sources.RETRIEVED or arm.stacked is not None for arm in self._plan.arms)
        if not retrieved and self._plan.options.route == "gold":
            return {}
        found = {}
        for place, question in enumerate(self._plan.questions):
            self._tell("search", place, len(self._plan.questions))
            found[question.qid] = planner.find(question)
        return found

    def _answer(
        self, store: HybridQA, planner: Planner, stacks: GridStacks, found: dict[str, Found]
    ) -> list[ArmAnswers]:
        settings = store.settings
        book = AnswerBook(self._work / "answers", [store.model.hash, settings.engine, settings.dtype])
        sampling = Sampling(max_tokens=self._plan.options.max_answer_tokens, stop=store.prompts.stop)
        answers = []
        for arm in self._plan.arms:
            started = time.perf_counter()
            self._tell(f"ask {arm.name}", 0, len(self._plan.questions))
            questions = self._plan.questions
            asked: list[Asked] = []
            given: list[Given] = []
            known = 0
            for start in range(0, len(questions), STACKS_AT_ONCE):  # a stack may be of one question alone
                some = questions[start : start + STACKS_AT_ONCE]
                asked += [planner.plan(arm, question, found.get(question.qid)) for question in some]
                answered, before = store.run(self._ask(store, book, arm, asked[start:], sampling, start))
                given += answered
                known += before
                stacks.clear()
            answers.append(ArmAnswers(arm, given, asked, known, time.perf_counter() - started))
        return answers

    async def _ask(
        self, store: HybridQA, book: AnswerBook, arm: Arm, asked: list[Asked], sampling: Sampling, done: int
    ) -> tuple[list[Given], int]:
        """The answers, and how many of them an earlier run gave; `done` questions are behind it."""

        def count() -> None:
            nonlocal done
            done += 1
            self._tell(f"ask {arm.name}", done, len(self._plan.questions))

        return await book.answer(arm.name, asked, store.engine_ready, sampling, count)
