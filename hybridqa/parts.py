"""The composition root: every part of a store, built from its `Settings` when it is first needed.

Only here are parts built and handed their collaborators; knows nothing of what they do. Invariant: each part is built
once for a store, and none that needs a model before something asks for it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from contextlib import ExitStack
from functools import cached_property
from typing import Any, TypeVar

from hybridqa.answering.answerer import Answerer
from hybridqa.answering.companions import CompanionChooser
from hybridqa.answering.prompt import PromptBuilder
from hybridqa.answering.rewriting import Rewriter
from hybridqa.answering.seeking import Seeker
from hybridqa.answering.stacks_in_use import StacksInUse
from hybridqa.catalog import Catalog
from hybridqa.config import Settings
from hybridqa.engine.loop import EngineLoop
from hybridqa.engine.protocol import Engine
from hybridqa.engine.vllm_args import context_length
from hybridqa.errors import EngineClosedError, StoreError
from hybridqa.ingest.library import Library
from hybridqa.models import ModelFolder, load_tokenizer, resolve_embedder, resolve_model, resolve_reranker
from hybridqa.modules.registry import ModuleRegistry
from hybridqa.modules.stacks import StackCache
from hybridqa.retrieval.cross_encoder import CrossEncoderReranker
from hybridqa.retrieval.dense import DenseIndex
from hybridqa.retrieval.embedder import Embedder
from hybridqa.retrieval.lexical import LexicalIndex
from hybridqa.retrieval.rerank import LikelihoodReranker, Reranker
from hybridqa.retrieval.searcher import Searcher
from hybridqa.routing.router import Router

log = logging.getLogger(__name__)
T = TypeVar("T")


class Parts:
    """The parts of one open store."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self.settings = settings
        self.catalog = catalog
        self._loop = EngineLoop()
        self._engine: Engine | None = None  # once it runs
        self._starting: asyncio.Task[Engine] | None = None  # of it, ended or not; None when it has failed
        self._building = threading.RLock()
        self._closed = False

    @cached_property
    def model(self) -> ModelFolder:
        """The base model's folder and hash."""
        return resolve_model(self.settings.model, self.settings.cache_dir)

    @cached_property
    def embedder(self) -> Embedder:
        """What turns text into vectors."""
        return Embedder(resolve_embedder(self.settings.embedder))

    @cached_property
    def library(self) -> Library:
        """What reads files and keeps them as documents."""
        return Library(
            self.catalog,
            self.embedder,
            passage_tokens=self.settings.passage_tokens,
            max_bytes=int(self.settings.max_document_mb * 1e6),
        )

    @cached_property
    def dense(self) -> DenseIndex:
        """The vectors' index."""
        return DenseIndex(self.settings.index_dir, self.catalog)

    @cached_property
    def searcher(self) -> Searcher:
        """Dense and lexical search, fused."""
        return Searcher(self.catalog, self.embedder, self.dense, LexicalIndex(self.catalog))

    @cached_property
    def registry(self) -> ModuleRegistry:
        """The versions of all modules."""
        return ModuleRegistry(self.catalog, self.settings.module_dir, self.model.hash)

    @cached_property
    def stacks(self) -> StackCache:
        """Composed stacks on disk."""
        cache = StackCache(self.settings.module_dir / "stacks", self.settings.stack_cache_mb)
        cache.keep_only({module.name for module in self.catalog.list_modules()})  # a removal may have been cut short
        return cache

    @cached_property
    def stacks_in_use(self) -> StacksInUse:
        """The stacks of running requests."""
        return StacksInUse(self.stacks, lambda: self._engine)

    @cached_property
    def prompts(self) -> PromptBuilder:
        """What puts questions and sources into the model's own chat template."""
        return PromptBuilder(
            load_tokenizer(self.model.path),
            max_model_len=context_length(self.model.path, self.settings.max_model_len),
            context_tokens=self.settings.context_tokens,
        )

    @cached_property
    def router(self) -> Router:
        """What decides which passages and modules answer a question."""
        return Router(
            self.catalog,
            self.model.hash,
            modules=self.settings.modules,
            module_threshold=self.settings.module_threshold,
            passage_threshold=self.settings.passage_threshold,
            max_rank=self.settings.max_lora_rank,
        )

    @cached_property
    def seeker(self) -> Seeker:
        """What looks for passages, with the conversation and the base model where these help."""
        settings = self.settings
        length = context_length(self.model.path, settings.max_model_len)
        reranker: Reranker = LikelihoodReranker(self.prompts, self.engine_ready, max_model_len=length)
        if settings.reranker is not None:
            reranker = CrossEncoderReranker(resolve_reranker(settings.reranker))
        return Seeker(
            self.searcher,
            reranker,
            Rewriter(self.prompts, max_model_len=length),
            self.engine_ready,
            rerank=settings.rerank,
            history=settings.history,
            hops=settings.hops,
            rewrite=settings.rewrite,
        )

    @cached_property
    def answerer(self) -> Answerer:
        settings = self.settings
        companions = CompanionChooser(
            self.catalog,
            self.registry,
            self.model.hash,
            plugins=settings.plugins,
            extractor=settings.extractor,
            max_rank=settings.max_lora_rank,
        )
        return Answerer(
            self.catalog,
            self.seeker,
            self.router,
            companions,
            self.registry,
            self.stacks,
            self.prompts,
            passages=settings.passages,
            max_answer_tokens=settings.max_answer_tokens,
            max_rank=settings.max_lora_rank,
            abstain_below=settings.abstain_below,
            passages_with_module=settings.passages_with_module,
            neighbours=settings.neighbours,
        )

    def answerer_ready(self) -> Answerer:
        with self._building:  # cached_property takes no lock of its own
            _ = self.stacks_in_use
            return self.answerer

    async def engine_ready(self) -> Engine:
        """The engine, started once; runs on the engine's loop.

        A question that is cancelled does not stop the start: its thread would go on, and the next one begin another.
        """
        if self._closed:
            raise EngineClosedError("this HybridQA is closed; expected an open one: call HybridQA.open again.")
        if self._starting is None:
            self._starting = asyncio.create_task(self._start_engine())
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())  # if nobody waits
        return await asyncio.shield(self._starting)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` on the engine's loop, from any other thread; an interrupt of the caller cancels it."""
        return self._loop.run(work)

    async def _start_engine(self) -> Engine:
        try:
            engine = await asyncio.to_thread(self._make_engine)
            try:
                await engine.start()
            except BaseException:
                await engine.close()
                raise
        except BaseException:
            self._starting = None  # the next question tries again
            raise
        self._engine = engine
        return engine

    async def _stop_engine(self) -> None:
        if self._starting is not None:
            await asyncio.wait({self._starting})  # a model that is being loaded cannot be stopped
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await engine.close()

    def _make_engine(self) -> Engine:
        settings = self.settings
        if settings.engine == "reference":
            from hybridqa.engine.reference import ReferenceEngine

            return ReferenceEngine(
                self.model,
                dtype=settings.dtype,
                max_model_len=settings.max_model_len,
                max_lora_rank=settings.max_lora_rank,
                seed=settings.seed,
            )
        if settings.engine == "remote":
            from hybridqa.engine.remote import RemoteEngine

            return RemoteEngine(
                self.model,
                settings.engine_urls,
                settings.engine_key.get_secret_value() if settings.engine_key else "",
                max_model_len=settings.max_model_len,
                max_lora_rank=settings.max_lora_rank,
            )
        from hybridqa.engine.vllm import VllmEngine

        return VllmEngine(
            self.model,
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            max_lora_rank=settings.max_lora_rank,
            max_stacks=settings.max_stacks,
            kv_cache_mb=settings.kv_cache_mb,
            seed=settings.seed,
            apart=True,
        )

    def close(self) -> None:
        """Frees the engine and closes the store; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as last_first:  # each is closed whatever becomes of the others
            last_first.callback(self.catalog.close)
            if "dense" in self.__dict__:
                last_first.callback(self._save_index)
            if "stacks" in self.__dict__:
                last_first.callback(self.stacks.close)
            last_first.callback(self._loop.close)
            last_first.callback(lambda: self._loop.run(self._stop_engine()))

    def _save_index(self) -> None:
        try:
            self.dense.save()
        except (OSError, StoreError) as error:  # a full or read-only disk costs the next start time, nothing else
            log.warning("the dense index could not be written: %s", error)
