"""The recipe of a training run: plain numbers and names, all of them on record in the module's manifest.

Knows nothing about torch. Invariant: two runs with equal recipes, examples and hardware give equal adapters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hybridqa.config import Settings
from hybridqa.errors import ConfigError

OBJECTIVES = ("dcd", "prompt-distillation", "next-token", "sft")
KEPT = ("bfloat16", "float32")
BEHAVIOUR_RATE, BEHAVIOUR_B_RATIO = 0.5, 8.0  # of the setting `learning_rate`; B's rate over A's
DTYPES = ("auto", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each part of the loss counts.

    With `trust`, each target token's teacher counts as much as it believes the token, and cross-entropy takes the rest:
    a teacher that would have said something else than the document's words does not unteach them.
    """

    kl: float = 1.0
    hidden: float = 1.0
    cross_entropy: float = 0.0
    trust: bool = False

    @property
    def need_teacher(self) -> bool:
        """Whether any part asks what the teacher says."""
        return bool(self.kl or self.hidden or self.trust)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what a training run does. Raises `ConfigError` for a name that is none of those known."""

    objective: str = "dcd"  # one of OBJECTIVES; `weights` says what each is
    rank: int = 16
    alpha: int = 32
    first_layer: float = 0.5  # share of the lowest layers that get no adapter
    learning_rate: float = 2e-3  # of A
    b_ratio: float = 2.0  # B's learning rate over A's (LoRA+, arXiv 2402.12354, has it above 1: B starts at 0)
    warmup: float = 0.06  # share of the steps
    epochs: float = 5.0  # passes over the examples, when steps is 0
    least_steps: int = 120  # of those passes together: a short document is read more often
    steps: int = 0
    pack_tokens: int = 208  # of a pack's examples, beside what their prompts share; as many as that, if it is more
    reading: float = 0.5  # share of the pairs that are also learned with their chunk in the prompt
    text: int = 2  # how often a pass goes through the document's own text; of dcd, and of next-token at least once
    top_k: int = 64  # of the teacher's logits, the likeliest that are kept; 0: all
    keep_dtype: str = "bfloat16"  # one of KEPT: what the teacher's hidden states are kept in
    dtype: str = "auto"  # one of DTYPES: what is computed in; auto: bfloat16 where the machine is faster at it
    temperature: float = 1.0
    kl: float = 1.0  # this, `hidden`, `cross_entropy` and `trust` are dcd's; the other objectives have one part
    hidden: float = 1.0
    cross_entropy: float = 1.0
    trust: bool = True  # the teacher counts as far as it believes the target; cross-entropy takes the rest
    weight_decay: float = 0.0
    first_round: float = 0.6  # share of the steps before the second round of examples is chosen, where there is one
    distracted: float = 0.5  # share of the steps with other modules plugged in, where there are others
    echoed: float = 0.25  # where none are used: share of the steps with a copy of itself plugged in
    shared: bool = False  # beside others each counts in training what it counts in a stack
    distractors: int = 4  # other modules to draw those from, at most
    retention: float = 0.1  # share of the steps that take along a pack of prompts to be answered as without a module
    retention_weight: float = 1.0  # of that pack's loss
    checkpoint_steps: int = 25
    memory_mb: int = 4096  # of what is kept between steps; beyond it, it is kept in files
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("objective", OBJECTIVES), ("keep_dtype", KEPT), ("dtype", DTYPES)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    f"the recipe's {name} is {value!r}; expected one of {', '.join(map(repr, known))}. "
                    f"Set `{name}` to one of them and run `hybridqa refresh` again."
                )

    @property
    def text_passes(self) -> int:
        """How often a pass goes through the document's own text, which is learned by cross-entropy."""
        if self.objective == "next-token":
            return max(1, self.text)
        return self.text if self.objective == "dcd" else 0

    def weights(self) -> Weights:
        """What the loss is made of.

        dcd: the parts as the recipe weighs them. prompt-distillation (arXiv 2412.14964): KL alone. next-token and sft:
        cross-entropy alone, on all text and on answers; what is a target is the examples' matter.
        """
        if self.objective == "dcd":
            return Weights(self.kl, self.hidden, self.cross_entropy, self.trust)
        if self.objective == "prompt-distillation":
            return Weights(kl=1.0, hidden=0.0)
        return Weights(kl=0.0, hidden=0.0, cross_entropy=1.0)


def behaviour_recipe(settings: Settings, objective: str | None = None) -> Recipe:
    """The recipe for instructions, examples and scratchpads.

    The answers are the teacher's own, so that it is followed in all of them; and they are one thing to learn, not many
    facts: A may be slower and B faster. No copy of it stands beside it: it was not seen to need one.
    """
    recipe = recipe_for(settings, objective)
    rate = recipe.learning_rate * BEHAVIOUR_RATE
    return replace(recipe, cross_entropy=0.0, trust=False, echoed=0.0, learning_rate=rate, b_ratio=BEHAVIOUR_B_RATIO)


def recipe_for(settings: Settings, objective: str | None = None) -> Recipe:
    """The recipe that a store's settings ask for; `objective`, where given, in place of theirs."""
    return Recipe(
        objective=objective or settings.objective,
        rank=settings.module_rank,
        alpha=settings.module_alpha,
        steps=settings.train_steps,
        epochs=settings.train_epochs,
        learning_rate=settings.learning_rate,
        memory_mb=settings.train_memory_mb,
        seed=settings.seed,
    )
