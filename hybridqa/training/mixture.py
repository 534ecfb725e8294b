"""In which configurations an extractor learns to answer: what stands in the prompt, and which module is plugged in.

    passages_module        as served: the passages that were found, and the document's module
    passages               the passages alone
    module                 the module alone, with nothing of the document in the prompt
    passages_wrong_module  the passages, and another document's module
    module_without_gold    the passages but those that hold the answer, and the document's module
    neither                the passages but those that hold the answer, and no module: "I don't know."

An answer that stands in a passage of the prompt is given with that passage's number, one that the module alone can know
without any, and where neither holds it the extractor abstains. Unanswerable questions have no share of their own: each
is asked as it would be served, and the extractor abstains; they count among the few exercises in which it may. Knows
nothing about prompts or tokens. Invariant: equal questions and seeds give equal configurations, whatever other
questions there are.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from enum import StrEnum

from hybridqa.errors import ConfigError


class Sources(StrEnum):
    """What of the documents is in the prompt."""

    FOUND = "found"  # what the product's own search finds
    WITHOUT_GOLD = "without gold"  # the same without any passage that holds the answer
    NONE = "none"


class Plugged(StrEnum):
    """Which module is plugged in beside the extractor."""

    NONE = "none"
    RIGHT = "right"
    WRONG = "wrong"


CONFIGURATIONS: dict[str, tuple[Sources, Plugged]] = {
    "passages_module": (Sources.FOUND, Plugged.RIGHT),
    "passages": (Sources.FOUND, Plugged.NONE),
    "module": (Sources.NONE, Plugged.RIGHT),
    "passages_wrong_module": (Sources.FOUND, Plugged.WRONG),
    "module_without_gold": (Sources.WITHOUT_GOLD, Plugged.RIGHT),
    "neither": (Sources.WITHOUT_GOLD, Plugged.NONE),
}
SERVING = ("passages_module", "passages")  # the first of these that a question has is how it would be served


@dataclass(frozen=True, slots=True)
class Mixture:
    """The share of the answerable questions that each configuration gets. Raises `ConfigError` unless they sum to 1."""

    passages_module: float = 0.35
    passages: float = 0.22
    module: float = 0.13
    passages_wrong_module: float = 0.10
    module_without_gold: float = 0.15
    neither: float = 0.05

    def __post_init__(self) -> None:
        shares = asdict(self)
        if any(not share >= 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1):
            raise ConfigError(f"the shares of the mixture are {shares}; expected numbers from 0 that sum to 1.")

    def without_modules(self) -> Mixture:
        """The same with every module taken out: what had one is asked with its passages alone."""
        return Mixture(0.0, 1.0 - self.neither, 0.0, 0.0, 0.0, self.neither)

    def draw(self, qid: str, seed: int, *, module: bool = True, other: bool = True) -> str:
        """The configuration of a question; `module` and `other`: whether its document and others have a module.

        What the draw cannot have is asked with its passages alone, as it would be served.
        """
        shares = asdict(self)
        name = random.Random(f"{seed}\0{qid}").choices(list(shares), list(shares.values()))[0]
        plugged = CONFIGURATIONS[name][1]
        if (plugged is Plugged.RIGHT and not module) or (plugged is Plugged.WRONG and not other):
            return "passages"
        return name
