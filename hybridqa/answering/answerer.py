"""From a question to an answer: search, route, stack, prompt, generate, cite.

Knows the order of the steps and nothing of how each works. Invariant: a module of any kind that is corrupt, missing or
refused by the engine is left out, said so in the answer's route, and the question is answered without it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from hybridqa.answering.abstaining import abstention, certain, confidence
from hybridqa.answering.citations import resolve_citations
from hybridqa.answering.companions import UNUSABLE, CompanionChooser, Companions
from hybridqa.answering.neighbours import Neighbours
from hybridqa.answering.options import AskOptions, check_values, sampling_of
from hybridqa.answering.plan import Plan, bare, is_empty
from hybridqa.answering.prompt import PromptBuilder
from hybridqa.answering.refusal import is_refusal
from hybridqa.answering.seeking import Seeker, Sought, Where
from hybridqa.answering.written import Written
from hybridqa.catalog import Catalog
from hybridqa.engine.loop import close_stream
from hybridqa.engine.protocol import Adapter, Completion, Delta, Engine, Sampling
from hybridqa.errors import AdapterError, StoreError
from hybridqa.modules.registry import ModuleRegistry
from hybridqa.modules.stacks import StackCache
from hybridqa.routing.router import Router
from hybridqa.routing.shares import weighed
from hybridqa.types import DEFAULT_COLLECTION, Answer, Citation, Mode, ModuleChoice, Route, Usage

log = logging.getLogger(__name__)
SURE = 0.65  # evidence for a module beside which fewer passages are enough
ROUTING_PASSAGES = 32  # evidence for a module comes from at least so many passages, whatever the prompt holds


class Answerer:
    """Answers questions with one store's parts."""

    def __init__(
        self,
        catalog: Catalog,
        seeker: Seeker,
        router: Router,
        companions: CompanionChooser,
        registry: ModuleRegistry,
        stacks: StackCache,
        prompts: PromptBuilder,
        *,
        passages: int,
        max_answer_tokens: int,
        max_rank: int,
        abstain_below: float,
        passages_with_module: int = 0,
        neighbours: int = 0,
    ) -> None:
        """`abstain_below` is the evidence that some document must have for an answer to be tried.

        `passages_with_module` are those of a prompt, at most, where the right module surely answers too; 0: as ever.
        `neighbours` are the passages on each side that come with one.
        """
        self._catalog = catalog
        self._seeker = seeker
        self._router = router
        self._companions = companions
        self._registry = registry
        self._stacks = stacks
        self._prompts = prompts
        self._passages = passages
        self._sampling = Sampling(max_tokens=max_answer_tokens, stop=prompts.stop)
        self._max_rank = max_rank
        self._abstain_below = abstain_below
        self._passages_with_module = passages_with_module
        self._neighbours = neighbours

    def check(self, question: str, options: AskOptions, *, prompt: bool = True) -> None:
        """Raises what `plan` raises for a question or options that nothing can be done with, before anything is.

        Without `prompt`, the question may be longer than the model's window.
        """
        check_values(question, options)
        self._catalog.require_collection(options.get("collection", DEFAULT_COLLECTION))
        if prompt:
            self._prompts.check(question, max_answer_tokens=self._reserved(sampling_of(options, self._sampling)))

    async def seek(self, question: str, options: AskOptions) -> Sought:
        """What is found for a question that was checked. Raises as `Seeker.seek` does."""
        if Mode(options.get("mode", Mode.HYBRID)) is Mode.CLOSED:
            return Sought()
        rerank, rewrite = options.get("rerank"), options.get("rewrite")
        return await self._seeker.seek(question, rerank=rerank, rewrite=rewrite, **self._where(options))

    def _where(self, options: AskOptions) -> Where:
        return {
            "k": max(options.get("k") or self._passages, ROUTING_PASSAGES),
            "collection": options.get("collection", DEFAULT_COLLECTION),
            "history": tuple(options.get("history", ())),
            "filter": options.get("filter"),
            "hops": options.get("hops"),
        }

    def plan(self, question: str, options: AskOptions, sought: Sought | None = None) -> Plan:
        """Everything up to the engine, from what was found, or is found now by search alone.

        Raises `QuestionError`, `CollectionNotFoundError`, and for plug-ins that the question names
        `ModuleNotFoundInStoreError`, `InputError` and `RankLimitError`.
        """
        mode, k = Mode(options.get("mode", Mode.HYBRID)), options.get("k")
        collection, history = options.get("collection", DEFAULT_COLLECTION), tuple(options.get("history", ()))
        if sought is None:
            self.check(question, options)
            sought = Sought() if mode is Mode.CLOSED else self._seeker.look(question, **self._where(options))
        timings, sampling = dict(sought.timings), sampling_of(options, self._sampling)
        started = time.perf_counter()
        route, companions = self._route(mode, options, sought)
        route = certain(route, question, history, self._abstain_below)
        route = companions.join(self._usable(route))
        timings["route"] = time.perf_counter() - started
        started = time.perf_counter()
        route, adapter = self._stack(route)
        timings["stack"] = time.perf_counter() - started
        if k is None and not sought.hopped:
            route = self._fewer(route)
        if is_empty(route):
            return Plan(question, collection, mode, route, None, None, sampling, timings)
        started = time.perf_counter()
        beside = options.get("neighbours")
        prompt = self._prompts.build(
            question,
            history,
            route.passages,
            max_answer_tokens=self._reserved(sampling),
            wider=Neighbours(self._catalog, self._neighbours if beside is None else beside).wider,
        )
        timings["prompt"] = time.perf_counter() - started
        left = self._prompts.max_model_len - len(prompt.token_ids)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, left), scope=collection)
        return Plan(question, collection, mode, route, prompt, adapter, sampling, timings)

    def find(self, options: AskOptions, sought: Sought) -> Route:
        """What was found and is decided for a question that is not answered here: its `k` best passages.

        None is left out for want of evidence. Raises as `plan` does for plug-ins.
        """
        route, companions = self._route(Mode.HYBRID, options, sought)
        route = replace(route, passages=route.found[: options.get("k") or self._passages])
        return companions.join(self._usable(route))

    def _route(self, mode: Mode, options: AskOptions, sought: Sought) -> tuple[Route, Companions]:
        """What the router decides, and what is plugged in beside it."""
        collection = options.get("collection", DEFAULT_COLLECTION)
        companions = self._companions.choose(collection, mode, options.get("plugins"), options.get("extractor"))
        route = self._router.route(
            sought.passages,
            mode,
            collection,
            k=options.get("k") or self._passages,
            modules=options.get("modules"),
            max_rank=self._max_rank - companions.rank,
            filter=options.get("filter"),
        )
        return replace(route, reason="; ".join((*sought.notes, route.reason))), companions

    def _reserved(self, sampling: Sampling) -> int:
        """The tokens that a prompt leaves for the answer; a longer one has what the prompt does not need."""
        return min(sampling.max_tokens, self._sampling.max_tokens)

    def _fewer(self, route: Route) -> Route:
        """The route with as many passages as it takes beside a module that is surely the right one."""
        enough = self._passages_with_module
        if not enough or len(route.passages) <= enough or not any(one.evidence >= SURE for one in route.modules):
            return route
        reason = f"{route.reason}; {enough} of the passages, beside a module"
        return replace(route, passages=route.passages[:enough], reason=reason)

    def _usable(self, route: Route) -> Route:
        """The route less modules that turn out unusable: before the others get their shares."""
        kept: list[ModuleChoice] = []
        for choice in route.modules:
            try:
                self._registry.verify(choice.module)
            except UNUSABLE as error:
                log.warning("module %r left out: %s", choice.module.name, error)
                route = replace(route, reason=f"{route.reason}; module {choice.module.name!r} left out: {error}")
            else:
                kept.append(choice)
        return route if len(kept) == len(route.modules) else replace(route, modules=weighed(kept))

    def _stack(self, route: Route) -> tuple[Route, Adapter | None]:
        """Everything that the route plugs in as one adapter."""
        if is_empty(route):
            return route, None
        choices = [*route.modules, *route.plugins, *([] if route.extractor is None else [route.extractor])]
        if not choices:
            return route, None
        try:
            return route, self._stacks.stack(choices, self._max_rank)
        except (AdapterError, StoreError, OSError) as error:
            log.warning("stack left out: %s", error)
            return bare(route, error), None

    async def answer(self, plan: Plan, engine: Engine) -> Answer:
        """Generates the planned answer."""
        assert plan.prompt is not None
        try:
            done = await engine.generate(plan.prompt.token_ids, plan.sampling, plan.adapter)
        except AdapterError as error:
            plan = self._without_modules(plan, error)
            assert plan.prompt is not None
            done = await engine.generate(plan.prompt.token_ids, plan.sampling, None)
        return self._finish(plan, done)

    async def stream(self, plan: Plan, engine: Engine) -> AsyncIterator[Delta | Answer]:
        """The planned answer in pieces, then whole: its text is what the pieces said."""
        assert plan.prompt is not None
        started = time.perf_counter()
        written = Written(plan.prompt.passages, plan.question)
        begun, finish, logprob, unsaid, first = False, "stop", 0.0, 0.0, 0.0
        usage = Usage(prompt_tokens=len(plan.prompt.token_ids))
        for attempt in (plan.adapter, None):
            try:
                pieces = engine.stream(plan.prompt.token_ids, plan.sampling, attempt)
                try:
                    async for piece in pieces:
                        first = first or time.perf_counter() - started
                        begun = begun or bool(piece.text)
                        logprob, unsaid = logprob + piece.logprob, unsaid + piece.logprob
                        finish = piece.finish_reason or finish
                        usage = piece.usage or usage
                        if said := written.add(piece.text):
                            yield Delta(said, logprob=unsaid)
                            unsaid = 0.0
                finally:
                    await close_stream(pieces)
                break
            except AdapterError as error:
                if attempt is None or begun:
                    raise
                plan = self._without_modules(plan, error)
                assert plan.prompt is not None
        total = time.perf_counter() - started
        rest, text, citations = written.end()
        yield Delta(rest, finish, usage, unsaid)
        yield self._finish(plan, Completion(text, finish, usage, logprob, first, total), citations)

    def _without_modules(self, plan: Plan, error: AdapterError) -> Plan:
        log.warning("modules left out: %s", error)
        return replace(plan, route=bare(plan.route, error), adapter=None)

    def _finish(self, plan: Plan, done: Completion, citations: tuple[Citation, ...] | None = None) -> Answer:
        """The answer that a completion is; with `citations` its text is as it stays."""
        assert plan.prompt is not None
        started, text = time.perf_counter(), done.text
        if citations is None:
            text, citations = resolve_citations(text.strip(), plan.prompt.passages, plan.question)
        timings = {
            **plan.timings,
            "first_token": done.first_token_s,
            "generate": done.total_s,
            "cite": time.perf_counter() - started,
        }
        tokens = done.usage.completion_tokens
        refused = is_refusal(text)
        probability = math.exp(min(0.0, done.logprob / tokens)) if tokens else None
        return Answer(
            text=text,
            mode=plan.mode,
            abstained=refused,
            missing=f"an answer to {plan.question.strip()!r} in what was found" if refused else None,
            citations=citations,
            passages=plan.prompt.passages,
            modules=plan.route.modules,
            confidence=confidence(plan.route, probability, refused),
            probability=probability,
            timings=timings,
            usage=done.usage,
            finish_reason=done.finish_reason,
            route_reason=plan.route.reason,
            plugins=plan.route.plugins,
            extractor=plan.route.extractor,
            route=plan.route,
        )

    def abstain(self, plan: Plan, *, total_s: float) -> Answer:
        """The answer when nothing was found to answer from."""
        return abstention(plan, total_s)
