"""The arms of the grid: what stands in the prompt, and which adapters are plugged in, when a question is asked.

Knows nothing about how any of it is made. Invariant: an arm's name says everything about it, and the same name always
means the same arm.

    closed              the base model alone            KM:<objective>   the document's module, nothing in the prompt
    RAG, RAG+KM         retrieved passages, without and with the module of the main objective
    KE, RAG+KE, KM+KE, RAG+KM+KE                        the same with the task extractor
    gold, gold+KM       the chunk that holds the answer in the prompt, without and with the module
    RAG@k …             arms that retrieve, with at most k passages, where several numbers were asked for
    KM×k                the document's module with those of the k - 1 likeliest other documents, weighed as they serve
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from hybridqa.errors import ConfigError
from hybridqa.training.recipe import OBJECTIVES

COMPARED = ("dcd", "prompt-distillation", "next-token")  # what a grid compares when it is not told
_RETRIEVED = ("RAG", "RAG+KM", "RAG+KE", "RAG+KM+KE")
_FEWER = (
    *((name, name) for name in _RETRIEVED),
    ("RAG+KM", "RAG"),
    ("RAG+KM+KE", "RAG+KE"),
)  # what fewer passages cost
NEEDS_EXTRACTOR = "it needs an extractor: give --extractor FOLDER"


class Sources(StrEnum):
    """What of the documents stands in the prompt."""

    NOTHING = "nothing"
    RETRIEVED = "retrieved"
    GOLD = "gold"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to ask a question."""

    name: str
    sources: Sources = Sources.NOTHING
    objective: str | None = None  # of the module that is plugged in
    extractor: bool = False
    stacked: int | None = None  # KM×k: so many modules in the stack, the gold document's own among them
    passages: int | None = None  # RAG@k: so many passages at most; None: as many as the settings say

    @property
    def closed_book(self) -> bool:
        """Whether a module answers with nothing of the document in the prompt."""
        return self.objective is not None and self.sources is Sources.NOTHING


def check_objectives(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. Raises `ConfigError` for one that the trainer does not know."""
    for name in names:
        if name not in OBJECTIVES:
            raise ConfigError(f"objective {name!r} is unknown; expected some of {', '.join(OBJECTIVES)}.")
    if not names:
        raise ConfigError(f"no objective was given; expected some of {', '.join(OBJECTIVES)}.")
    return tuple(dict.fromkeys(names))


def all_arms(objectives: Sequence[str], stacked: Sequence[int] = (), passages: Sequence[int] = ()) -> list[Arm]:
    """Every arm there is for these objectives (the first is the main one), in the order in which they are shown.

    With several numbers of `passages` each arm that retrieves is there with each of them.
    """
    main = objectives[0]

    def retrieved(name: str, objective: str | None = None, *, extractor: bool = False) -> list[Arm]:
        arm = Arm(name, Sources.RETRIEVED, objective, extractor)
        return [replace(arm, name=f"{name}@{k}", passages=k) for k in passages] if len(passages) > 1 else [arm]

    return [
        Arm("closed"),
        *(Arm(f"KM:{objective}", objective=objective) for objective in objectives),
        *(Arm(f"KM×{count}", objective=main, stacked=count) for count in stacked),
        *retrieved("RAG"),
        *retrieved("RAG+KM", main),
        Arm("KE", extractor=True),
        Arm("KM+KE", objective=main, extractor=True),
        *retrieved("RAG+KE", extractor=True),
        *retrieved("RAG+KM+KE", main, extractor=True),
        Arm("gold", Sources.GOLD),
        Arm("gold+KM", Sources.GOLD, main),
    ]


def choose_arms(
    names: Sequence[str] | None,
    objectives: Sequence[str],
    stacked: Sequence[int],
    passages: Sequence[int] = (),
    *,
    extractor: bool,
) -> tuple[list[Arm], dict[str, str]]:
    """The arms of those names (default: all), and why others of them are absent.

    'KM' is short for the main objective's, 'RAG' for that with each number of passages. Raises `ConfigError` for an
    unknown name, and for a stack of no module.
    """
    if bad := [count for count in stacked if count < 1]:
        raise ConfigError(f"a stack of {bad[0]!r} modules cannot be composed; expected 1 or more.")
    arms = all_arms(objectives, tuple(dict.fromkeys(stacked)), tuple(dict.fromkeys(passages)))
    known = {arm.name: arm for arm in arms}
    if names is not None:
        wanted = [f"KM:{objectives[0]}" if name == "KM" else name.replace("KMx", "KM×") for name in names]
        short = {arm.name.partition("@")[0] for arm in arms} - known.keys()
        wanted = [
            arm
            for name in wanted
            for arm in ([one for one in known if one.startswith(f"{name}@")] if name in short else [name])
        ]
        if unknown := [name for name in wanted if name not in known]:
            way_out = " Stacks of k modules are there with --compose k." if unknown[0].startswith("KM×") else ""
            raise ConfigError(f"arm {unknown[0]!r} is unknown; expected some of {', '.join(known)}.{way_out}")
        if not wanted:
            raise ConfigError(f"no arm was given; expected some of {', '.join(known)}.")
        arms = [arm for arm in arms if arm.name in wanted]
    absent = {arm.name: NEEDS_EXTRACTOR for arm in arms if arm.extractor and not extractor}
    if len(absent) == len(arms):
        raise ConfigError(f"no arm is left: {', '.join(absent)} need an extractor; give --extractor FOLDER.")
    return [arm for arm in arms if arm.name not in absent], absent


def comparisons(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """The pairs of arms whose difference says something: what a module, an objective or an extractor adds."""
    names = {arm.name for arm in arms}
    modules = [arm.name for arm in arms if arm.name.startswith("KM:")]
    stacks = [arm.name for arm in arms if arm.stacked is not None]
    numbers = sorted({arm.passages for arm in arms if arm.passages is not None})
    each: list[int | None] = [*numbers] or [None]

    def at(name: str, k: int | None) -> str:
        return f"{name}@{k}" if k and name in _RETRIEVED else name

    def of_each(*named: tuple[str, str]) -> list[tuple[str, str]]:
        """The pairs with each number of passages."""
        return [(at(one, k), at(other, k)) for one, other in named for k in each]

    pairs = [
        *((name, "closed") for name in modules),
        *((modules[0], other) for other in modules[1:]),
        *((arm.name, one) for one in modules[:1] for arm in arms if arm.stacked not in (None, 1)),
        *((stack, stacks[0]) for stack in stacks[1:]),
        *of_each(("RAG", "closed"), ("RAG+KM", "RAG")),
        ("KE", "closed"),
        *(("KM+KE", other) for other in ("KE", *modules[:1])),
        *of_each(("RAG+KE", "RAG"), ("RAG+KM+KE", "RAG+KE"), ("RAG+KM+KE", "RAG+KM")),
        ("gold", "closed"),
        *of_each(("gold", "RAG")),
        ("gold+KM", "gold"),
        *((f"{mine}@{k}", f"{other}@{numbers[-1]}") for mine, other in _FEWER for k in numbers[:-1]),
    ]
    return [(one, other) for one, other in pairs if {one, other} <= names]
