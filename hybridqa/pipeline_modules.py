"""What HybridQA does with modules: lists, refreshes, imports, rolls back and removes them.

Knows nothing about questions or how a module is trained. Invariant: a module that is removed is in no later stack, and
its files are gone or noted to be deleted, whenever the process is killed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hybridqa.engine.loop import together
from hybridqa.errors import InputError, ModelError
from hybridqa.modules.registry import module_id_for
from hybridqa.parts import Parts
from hybridqa.types import DEFAULT_COLLECTION, Module, ModuleKind

if TYPE_CHECKING:
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

        refresher = Refresher(self.catalog, self.registry, self.model, self.prompts, self.settings, self._generate_many)
        return refresher.run(collection=collection, doc_ids=doc_ids, force=force, on_event=on_event)

    def _generate_many(self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: str) -> list[str]:
        """Greedy completions of token ids, batched in the engine; for the trainer's synthetic data."""
        from hybridqa.engine.protocol import Sampling

        async def work() -> list[str]:
            engine = await self.engine_ready()
            sampling = Sampling(max_tokens=max_tokens, stop=(stop,))
            return [done.text for done in await together(engine.generate(ids, sampling) for ids in prompts)]

        return self._loop.run(work())
