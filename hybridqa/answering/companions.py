"""What is in a stack beside the documents' modules: the plug-ins that were asked for, and the collection's extractor.

Knows nothing about passages or evidence. Invariant: everything chosen is current, of the question's collection, whole,
and of the base model in use, and fits one adapter; what was asked for by the request and is not there is an error, and
what is there and cannot be used is left out and named in `notes`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hybridqa.catalog import Catalog
from hybridqa.errors import (
    AdapterError,
    InputError,
    ModuleNotFoundInStoreError,
    NotFoundError,
    RankLimitError,
    StoreError,
)
from hybridqa.modules.manifest import read_manifest
from hybridqa.modules.registry import ModuleRegistry
from hybridqa.routing.shares import weighed
from hybridqa.types import Mode, Module, ModuleChoice, Route

log = logging.getLogger(__name__)
UNUSABLE = (AdapterError, StoreError, NotFoundError, OSError)  # what costs a question its module, not its answer


@dataclass(frozen=True, slots=True)
class Companions:
    """What goes into one question's stack whatever its documents."""

    plugins: tuple[ModuleChoice, ...] = ()
    extractor: ModuleChoice | None = None
    module_weights: Mapping[str, float] | None = None  # of documents' modules beside this extractor
    notes: tuple[str, ...] = ()  # for the route's reason

    @property
    def choices(self) -> tuple[ModuleChoice, ...]:
        """All of them."""
        return self.plugins if self.extractor is None else (*self.plugins, self.extractor)

    @property
    def rank(self) -> int:
        """What they take of a stack's rank."""
        return sum(choice.module.rank for choice in self.choices)

    def join(self, route: Route) -> Route:
        """The route with these beside its modules, with the weights that the extractor was trained with."""
        modules = route.modules
        if self.module_weights:  # none of one that was trained without modules
            modules = weighed(modules, self.module_weights)
        return replace(
            route,
            modules=modules,
            plugins=self.plugins,
            extractor=self.extractor,
            reason="; ".join((route.reason, *self.notes)),
        )


class CompanionChooser:
    """Chooses companions from one store's registry."""

    def __init__(
        self,
        catalog: Catalog,
        registry: ModuleRegistry,
        base_model_hash: str,
        *,
        plugins: Sequence[str],
        extractor: bool,
        max_rank: int,
    ) -> None:
        """`plugins` and `extractor` are the settings, for questions that say nothing of their own."""
        self._catalog = catalog
        self._registry = registry
        self._base_model_hash = base_model_hash
        self._plugins = tuple(plugins)
        self._extractor = extractor
        self._max_rank = max_rank

    def choose(
        self, collection: str, mode: Mode, plugins: Sequence[str] | None = None, extractor: bool | None = None
    ) -> Companions:
        """What a question in a mode gets. Raises `ModuleNotFoundInStoreError`, `InputError` and `RankLimitError`."""
        notes: list[str] = []
        chosen = self._choose_plugins(collection, plugins, notes)
        ranks = sum(choice.module.rank for choice in chosen)
        if ranks > self._max_rank:
            named = ", ".join(f"{choice.module.name!r} of rank {choice.module.rank}" for choice in chosen)
            raise RankLimitError(
                f"the plug-ins {named} need rank {ranks} together; expected at most {self._max_rank}. Ask for fewer, "
                "or raise max_lora_rank in hybridqa.toml."
            )
        wanted = self._extractor if extractor is None else extractor
        found = None
        if wanted and mode is not Mode.CLOSED:
            found = self._choose_extractor(collection, self._max_rank - ranks, notes)
        if found is None:
            return Companions(chosen, notes=tuple(notes))
        choice, module_weights = found
        return Companions(chosen, choice, module_weights, tuple(notes))

    def _choose_plugins(
        self, collection: str, asked: Sequence[str] | None, notes: list[str]
    ) -> tuple[ModuleChoice, ...]:
        chosen = []
        for module_id in dict.fromkeys(self._plugins if asked is None else asked):
            try:
                module = self._catalog.get_module(collection, module_id)
            except ModuleNotFoundInStoreError:
                if asked is not None:
                    raise
                continue  # the setting is for every collection, and this one has none
            if not module.kind.is_plugin:
                raise InputError(
                    f"module {module_id!r} of collection {collection!r} is of kind '{module.kind}' and no plug-in; "
                    "expected one of kind instructions, examples or scratchpad. `hybridqa modules` lists them."
                )
            try:
                self._registry.verify(module)
            except UNUSABLE as error:
                self._leave_out("plug-in", module, error, notes)
                continue
            chosen.append(ModuleChoice(module, 1.0, 1.0))
            notes.append(f"plug-in {module.name!r}")
        return tuple(chosen)

    def _choose_extractor(
        self, collection: str, room: int, notes: list[str]
    ) -> tuple[ModuleChoice, Mapping[str, float] | None] | None:
        """The extractor, and what documents' modules are weighted with beside it."""
        module = self._catalog.find_extractor(collection, self._base_model_hash)
        if module is None:
            return None
        try:
            self._registry.verify(module)
            weights = read_manifest(module.path).module_weights
        except UNUSABLE as error:
            self._leave_out("extractor", module, error, notes)
            return None
        if module.rank > room:
            notes.append(f"extractor {module.name!r} left out: its rank {module.rank} is over the {room} that are left")
            return None
        notes.append(f"extractor {module.name!r}")
        return ModuleChoice(module, 1.0, 1.0), weights

    def _leave_out(self, what: str, module: Module, error: Exception, notes: list[str]) -> None:
        log.warning("%s %r left out: %s", what, module.name, error)
        notes.append(f"{what} {module.name!r} left out: {error}")
