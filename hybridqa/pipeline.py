"""HybridQA: adds documents and answers questions; what it does with modules is in `pipeline_modules`.

What `Parts` builds is put to work here; knows nothing of how retrieval, routing, stacking or training work.
Invariant: a question in one collection reaches no other collection's passages or modules, and a module that cannot be
used costs a question its module, never its answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack, cast

from hybridqa.answering.answerer import Answerer
from hybridqa.answering.options import AskOptions, RetrieveOptions, check_options
from hybridqa.answering.plan import Plan
from hybridqa.catalog import Catalog, DocumentSummary
from hybridqa.config import CONFIG_NAME, Settings
from hybridqa.engine.loop import close_stream, together
from hybridqa.engine.protocol import Delta
from hybridqa.errors import StoreNotFoundError
from hybridqa.files import atomic_write_text, unusable_folder_named
from hybridqa.ingest.library import AddResult
from hybridqa.keys import Key, Role, new_key
from hybridqa.pipeline_modules import ModulePipeline
from hybridqa.types import DEFAULT_COLLECTION, Answer, Route


class HybridQA(ModulePipeline):
    """Question answering over a store of documents and their knowledge modules."""

    @classmethod
    @unusable_folder_named()
    def open(cls, store: str | Path | None = None, *, create: bool = False, **settings: Any) -> HybridQA:
        """Opens the store at `store` (default: the working directory), or makes it when `create`.

        `settings` override HYBRIDQA_* variables and the store's hybridqa.toml. Loads no model: that happens at the
        first use. Raises `StoreNotFoundError`, `CorruptStoreError` or `ConfigError`.
        """
        resolved = Settings.load(store, **settings)
        if not resolved.catalog_path.is_file():
            if not create:
                raise StoreNotFoundError(
                    f"no store {resolved.name!r} at {str(resolved.store)!r}; expected {str(resolved.catalog_path)!r}. "
                    f"Make one with `hybridqa --store {resolved.store} init`."
                )
            resolved.index_dir.mkdir(parents=True, exist_ok=True)
            resolved.module_dir.mkdir(parents=True, exist_ok=True)
            config = resolved.store / CONFIG_NAME
            if not config.exists():
                atomic_write_text(
                    config, "# Settings of this store: see the table in README. For example:\n# passages = 4\n"
                )
        catalog = Catalog.open(
            resolved.catalog_path, create=create, module_dir=resolved.module_dir, collection=DEFAULT_COLLECTION
        )
        return cls(resolved, catalog)

    # Documents

    def add(
        self,
        path: str | Path,
        *,
        doc_id: str | None = None,
        collection: str = DEFAULT_COLLECTION,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[AddResult]:
        """Adds the file at `path`, or every readable file under it; the same content again changes nothing.

        A file's id is `doc_id`, or else its path below the folder that was given (its name, for a single file).
        Raises `UnreadableDocumentError`; of a folder, every good file is added before the first bad one is reported.
        """
        return self.library.add_path(Path(path), doc_id=doc_id, collection=collection, title=title, metadata=metadata)

    def add_text(
        self,
        doc_id: str,
        text: str,
        *,
        title: str = "",
        collection: str = DEFAULT_COLLECTION,
        metadata: Mapping[str, Any] | None = None,
    ) -> AddResult:
        """Adds a text that the caller has in hand."""
        return self.library.add_text(doc_id, text, title=title, collection=collection, metadata=metadata)

    def remove(self, doc_id: str, *, collection: str = DEFAULT_COLLECTION) -> None:
        """Removes a document with its passages, vectors, modules, and every stack that holds them."""
        from hybridqa.training.job_folder import forget_document

        removed = self.catalog.remove_document(collection, doc_id)
        self.dense.sync()  # takes the vectors out of the index's file too
        forget_document(self.settings.module_dir / "work", collection, doc_id)
        self._forget_modules(removed, f"the modules of {doc_id!r}")

    def compact(self) -> None:
        """Erases the last words of removed documents from the full-text index, and gives free space back."""
        self.catalog.compact()

    def documents(self, collection: str | None = None) -> list[DocumentSummary]:
        """What the store holds."""
        return self.catalog.list_documents(collection)

    # Keys of a served store

    def add_key(
        self,
        name: str,
        role: Role | str = Role.ASK,
        collections: Sequence[str] | None = None,
        *,
        per_minute: int | None = None,
        at_once: int | None = None,
    ) -> tuple[str, Key]:
        """Makes a key that reaches some collections (None: all), and gives its token, which is kept nowhere, with it.

        Raises `InputError`.
        """
        chosen = None if collections is None else tuple(collections)
        token, key = new_key(name, role, chosen, per_minute=per_minute, at_once=at_once)
        return token, self.catalog.add_key(key)

    def list_keys(self) -> list[Key]:
        """The keys, oldest first."""
        return self.catalog.list_keys()

    def remove_key(self, key_id: str) -> None:
        """Removes a key: a running server refuses it from the next request on. Raises `NotFoundError`."""
        self.catalog.remove_key(key_id)

    # Questions

    def ask(self, question: str, **options: Unpack[AskOptions]) -> Answer:
        """Answers `question` from the documents of a collection; see `AskOptions`.

        Raises `QuestionError` for an empty or too long question, `CollectionNotFoundError`, `TypeError` for an option
        that does not exist, and for plug-ins that are named `ModuleNotFoundInStoreError`, `InputError` for a module
        that is none, and `RankLimitError` when they do not fit one stack.
        """
        check_options(options)
        return self._loop.run(self._ask(question, options))

    async def aask(self, question: str, **options: Unpack[AskOptions]) -> Answer:
        """`ask` for asyncio; cancelling the task stops the generation."""
        check_options(options)
        return await asyncio.wrap_future(self._loop.submit(self._ask(question, options)))

    def ask_many(
        self,
        questions: Sequence[str],
        *,
        at_once: int = 16,
        on_answer: Callable[[int, Answer], None] | None = None,
        **options: Unpack[AskOptions],
    ) -> list[Answer]:
        """Answers many questions, `at_once` of them together in the engine; in order. A failure stops the rest."""
        check_options(options)

        async def work() -> list[Answer]:
            slots = asyncio.Semaphore(at_once)

            async def one(place: int, question: str) -> Answer:
                async with slots:
                    answer = await self._ask(question, options)
                if on_answer is not None:
                    on_answer(place, answer)
                return answer

            return await together(one(place, text) for place, text in enumerate(questions))

        return self._loop.run(work())

    def stream(self, question: str, **options: Unpack[AskOptions]) -> Iterator[Delta | Answer]:
        """The answer's text as it comes, then the whole `Answer`; closing the iterator stops the generation."""
        check_options(options)  # now: not when the first piece is asked for
        return self._loop.iterate(self._stream(question, options))

    def astream(self, question: str, **options: Unpack[AskOptions]) -> AsyncIterator[Delta | Answer]:
        """`stream` for asyncio."""
        check_options(options)
        return self._loop.aiterate(self._stream(question, options))

    def retrieve(self, question: str, **options: Unpack[RetrieveOptions]) -> Route:
        """What is found and chosen for `question`, and no answer: the `k` best passages, whatever speaks for them.

        The evidence for their documents, and the modules considered, are in the route. A question may be of any
        length. Raises as `ask` does.
        """
        check_options(options, RetrieveOptions)
        return self._loop.run(self._retrieve(question, options))

    async def aretrieve(self, question: str, **options: Unpack[RetrieveOptions]) -> Route:
        """`retrieve` for asyncio."""
        check_options(options, RetrieveOptions)
        return await asyncio.wrap_future(self._loop.submit(self._retrieve(question, options)))

    async def _retrieve(self, question: str, options: RetrieveOptions) -> Route:
        answerer, chosen = await asyncio.to_thread(self.answerer_ready), cast(AskOptions, options)
        await asyncio.to_thread(answerer.check, question, chosen, prompt=False)
        return await asyncio.to_thread(answerer.find, chosen, await answerer.seek(question, chosen))

    @asynccontextmanager
    async def _planned(self, question: str, options: AskOptions) -> AsyncIterator[tuple[Answerer, Plan]]:
        """The plan of a question; its stack stays until the end of the block."""
        answerer = await asyncio.to_thread(self.answerer_ready)
        await asyncio.to_thread(answerer.check, question, options)
        sought = await answerer.seek(question, options)
        make = partial(answerer.plan, question, options, sought)
        async with self.stacks_in_use.planned(make) as plan:
            yield answerer, plan

    async def _ask(self, question: str, options: AskOptions) -> Answer:
        started = time.perf_counter()
        async with self._planned(question, options) as (answerer, plan):
            if plan.prompt is None:
                return answerer.abstain(plan, total_s=time.perf_counter() - started)
            answer = await answerer.answer(plan, await self.engine_ready())
        return replace(answer, timings={**answer.timings, "total": time.perf_counter() - started})

    async def _stream(self, question: str, options: AskOptions) -> AsyncIterator[Delta | Answer]:
        started = time.perf_counter()
        async with self._planned(question, options) as (answerer, plan):
            if plan.prompt is None:
                abstention = answerer.abstain(plan, total_s=time.perf_counter() - started)
                yield Delta(abstention.text, finish_reason="stop")
                yield abstention
                return
            pieces = answerer.stream(plan, await self.engine_ready())
            try:
                async for piece in pieces:
                    if isinstance(piece, Answer):
                        piece = replace(piece, timings={**piece.timings, "total": time.perf_counter() - started})
                    yield piece
            finally:
                await close_stream(pieces)

    def warm_up(self) -> None:
        """Loads the models and starts the engine now instead of at the first question."""

        async def work() -> None:
            await asyncio.to_thread(self.answerer_ready)
            await self.engine_ready()

        self._loop.run(work())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)
