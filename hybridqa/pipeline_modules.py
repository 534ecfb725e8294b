"""What HybridQA does with modules: lists, refreshes, distils, imports, rolls back and removes them; extractors.

Knows nothing about questions or how a module is trained. Invariant: a module that is removed is in no later stack, and
its files are gone or noted to be deleted, whenever the process is killed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hybridqa.catalog import DocumentSummary
from hybridqa.engine.loop import together
from hybridqa.engine.protocol import Completion, Sampling
from hybridqa.errors import InputError, ModelError
from hybridqa.modules.folders import slug
from hybridqa.modules.registry import module_id_for
from hybridqa.parts import Parts
from hybridqa.types import DEFAULT_COLLECTION, Module, ModuleKind

if TYPE_CHECKING:
    from hybridqa.pipeline import HybridQA
    from hybridqa.training.distill import DistillOutcome
    from hybridqa.training.extractor_outcome import ExtractorOutcome
    from hybridqa.training.outcome import RefreshEvent, RefreshReport

log = logging.getLogger(__name__)


class ModulePipeline(Parts):
    """The modules of one open store."""

    def modules(self, collection: str | None = None) -> list[Module]:
        """Every version of every module."""
        return self.catalog.list_modules(collection)

    def module_state(self, doc_id: str, *, collection: str = DEFAULT_COLLECTION) -> str:
        """'none', 'published', 'stale' or 'rejected': what stands behind a document now."""
        from hybridqa.training.outcome import module_state

        return module_state(self.catalog, collection, doc_id)

    def module_states(self, documents: Sequence[DocumentSummary]) -> list[str]:
        """`module_state` of each of some documents of one collection."""
        from hybridqa.training.outcome import module_states, state_of

        states = module_states(self.catalog, documents[0].collection) if documents else {}
        return [state_of(states, document) for document in documents]

    def rollback(self, module_id: str, version: int | None = None, *, collection: str = DEFAULT_COLLECTION) -> Module:
        """Puts an older version of a module (the one before, by default) back into service."""
        return self.registry.rollback(collection, module_id, version)

    def import_module(
        self,
        folder: str | Path,
        *,
        module_id: str | None = None,
        kind: ModuleKind | str | None = None,
        collection: str = DEFAULT_COLLECTION,
    ) -> Module:
        """Takes a PEFT folder in as the next version of a module: one with our manifest, or as peft has saved it.

        The folder is only read. Without a manifest `kind` must say what it is, and `module_id` is the folder's name
        when it is left out. Raises `InputError`, `AdapterError` with its kinds, `CollectionNotFoundError`.
        """
        from hybridqa.modules.importing import ModuleImporter

        try:
            given = None if kind is None else ModuleKind(kind)
        except ValueError as error:
            raise InputError(f"no kind of module {kind!r}; expected one of {', '.join(ModuleKind)}.") from error
        self.catalog.require_collection(collection)
        work_dir, rank = self.settings.module_dir / "work", self.settings.max_lora_rank
        importer = ModuleImporter(self.catalog, self.registry, self.model, work_dir, rank)
        return importer.run(Path(folder), collection, module_id=module_id, kind=given)

    def remove_module(self, module_id: str, *, collection: str = DEFAULT_COLLECTION) -> list[Module]:
        """Removes every version of a plug-in or an extractor, and every stack that holds one; gives what was removed.

        Raises `ModuleNotFoundInStoreError`, and `InputError` for a document's module, which goes with its document.
        """
        versions = [module for module in self.catalog.list_modules(collection) if module.module_id == module_id]
        if versions and versions[0].kind is ModuleKind.DOCUMENT:
            doc_id = next(iter(versions[-1].documents))
            raise InputError(
                f"module {module_id!r} is of document {doc_id!r} and goes with it: `hybridqa rm` removes both, "
                "`hybridqa refresh --force` makes a new version, `hybridqa modules rollback` puts an older one back, "
                "and the setting `modules = 0` plugs in none."
            )
        removed = self.catalog.remove_versions(collection, module_id)
        self._forget_modules(removed, f"module {module_id!r}")
        return removed

    def _forget_modules(self, removed: Sequence[Module], what: str) -> None:
        """Removes the stacks and folders of modules whose rows are gone."""
        if not removed:  # then no base model is needed
            return
        with self._building:
            in_use = self.stacks_in_use
        self._loop.run(in_use.let_go(self.stacks.forget(removed)))
        try:
            self.registry.remove_for(removed)
        except ModelError as error:  # the catalog has noted the folders; a registry that opens deletes them
            log.warning("the files of %s stay until a base model is there: %s", what, error)

    def module_id(self, doc_id: str, *, collection: str = DEFAULT_COLLECTION) -> str:
        """The id of the module that covers a document."""
        return module_id_for(collection, doc_id)

    def refresh(
        self,
        *,
        collection: str | None = None,
        doc_ids: Sequence[str] | None = None,
        force: bool = False,
        on_event: Callable[[RefreshEvent], None] | None = None,
    ) -> RefreshReport:
        """Distils, gates and publishes a module for every document that has no fresh one; blocks until done."""
        from hybridqa.training.refresh import Refresher

        refresher = Refresher(self.catalog, self.registry, self.model, self.prompts, self.settings, self.generate_many)
        return refresher.run(collection=collection, doc_ids=doc_ids, force=force, on_event=on_event)

    def distill(
        self,
        *,
        instructions: str | Path | None = None,
        examples: str | Path | None = None,
        scratchpad: str | Path | None = None,
        module_id: str | None = None,
        questions: str | Path | None = None,
        count: int | None = None,
        collection: str = DEFAULT_COLLECTION,
        objective: str | None = None,
        force: bool = False,
        on_event: Callable[[RefreshEvent], None] | None = None,
    ) -> DistillOutcome:
        """Distils, gates and publishes a plug-in from one file of instructions, examples or scratchpads; blocks.

        Its id is `module_id`, or the file's name made safe. It learns on `count` answers to the questions of a file, or
        to the context's own, those about the collection's documents, and general ones. The same content again does
        nothing unless `force`; changed content makes a new version. Raises `InputError` naming each bad line,
        `CollectionNotFoundError`, `ConfigError` and `TrainingError`.
        """
        from hybridqa.modules.importing import checked_id
        from hybridqa.training.context_files import read_context, read_questions
        from hybridqa.training.distill import COUNT, Distiller
        from hybridqa.training.recipe import behaviour_recipe

        files = {
            ModuleKind.INSTRUCTIONS: instructions,
            ModuleKind.EXAMPLES: examples,
            ModuleKind.SCRATCHPAD: scratchpad,
        }
        given = [(kind, Path(path)) for kind, path in files.items() if path is not None]
        if len(given) != 1:
            raise InputError(
                f"{len(given)} files to distil were given; expected one, of instructions, examples or scratchpads."
            )
        [(kind, path)] = given
        name = checked_id(module_id or slug(path.stem))
        if count is not None and count < 1:
            raise InputError(f"count={count!r} cannot be used; expected 1 or more.")
        self.catalog.require_collection(collection)
        recipe = behaviour_recipe(self.settings, objective)
        context = read_context(kind, path)
        asked = () if questions is None else read_questions(Path(questions))
        distiller = Distiller(
            self.catalog,
            self.registry,
            self.model,
            self.prompts,
            self.settings,
            self.generate_many,
            self._best_source,
        )
        return distiller.run(
            context,
            name,
            collection,
            recipe,
            questions=asked,
            count=count or COUNT,
            force=force,
            on_event=on_event,
        )

    def _best_source(self, question: str, collection: str) -> str | None:
        """The text of the passage that a question finds first."""
        from hybridqa.answering.prompt import source_text

        found = self.searcher.search(question, k=1, collection=collection)
        return source_text(found[0].passage) if found else None

    def train_extractor(
        self,
        docs: str | Path,
        questions: str | Path,
        *,
        collection: str = DEFAULT_COLLECTION,
        work: str | Path | None = None,
        documents: int | None = None,
        questions_per_document: int = 50,
        steps: int = 0,
        modules: bool = True,
        module_documents: int | None = None,
        publish: bool = True,
        output: str | Path | None = None,
        on_event: Callable[[RefreshEvent], None] | None = None,
    ) -> ExtractorOutcome:
        """Trains an extractor for a collection on other documents and their questions; blocks until done.

        `docs` and `questions` are JSON lines (see README). The documents go into a store of their own in the folder
        `work` (default: one inside this store), with modules unless `modules` is false, at most `module_documents` of
        them. At most `documents` are used, with `questions_per_document` (0: all) questions each; `steps` is 0 for one
        pass over the exercises that are made of these.
        With `publish` it becomes a version in the registry, current when it passed its gate; `output` is a new folder
        for it outside. The same call again takes up what a killed one left.
        Raises `InputError`, `CollectionNotFoundError`, `TrainingError`, and `StoreError` when another is at work.
        """
        from hybridqa.training.extractor import ExtractorMaker
        from hybridqa.training.extractor_outcome import ExtractorOptions

        options = ExtractorOptions(
            collection=collection,
            work=None if work is None else Path(work),
            documents=documents,
            questions_per_document=questions_per_document,
            steps=steps,
            modules=modules,
            module_documents=module_documents,
            publish=publish,
            output=None if output is None else Path(output),
        )
        maker = ExtractorMaker(self.catalog, self.registry, self.model, self.settings, self._open_beside)
        return maker.run(Path(docs), Path(questions), options, on_event)

    def _open_beside(self, folder: Path) -> HybridQA:
        """A store in another folder with this one's settings."""
        from hybridqa.pipeline import HybridQA

        settings = self.settings.model_dump(exclude={"store", "name"})
        return HybridQA.open(folder, create=True, name="default", **settings)

    def generate_many(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """Completions of token ids, batched in the engine; for the trainer's synthetic data."""

        async def work() -> list[Completion]:
            engine = await self.engine_ready()
            return await together(engine.generate(ids, sampling) for ids in prompts)

        return self._loop.run(work())
