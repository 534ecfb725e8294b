"""The training loop: which pack at which step, the optimiser, checkpoints.

Knows nothing about documents or files but the checkpoint. Invariant: the steps of a run are decided by its examples and
its recipe alone, so one that is taken up again goes on where it stopped.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from hybridqa.errors import TrainingError
from hybridqa.routing.shares import share_of
from hybridqa.training.checkpoint import Spent, load_checkpoint, save_checkpoint
from hybridqa.training.kept import Kept
from hybridqa.training.lora import Companion
from hybridqa.training.objectives import TeacherTargets, concatenate, distillation_loss
from hybridqa.training.packing import Example, Pack
from hybridqa.training.recipe import Recipe, Weights
from hybridqa.training.schedule import Row, retained_of, rows_of, second_plan, steps_of
from hybridqa.training.targets import Teachers

if TYPE_CHECKING:
    from hybridqa.training.trainer import Trainer

CLIP = 1.0  # the largest norm of a step's gradients
WEIGHT_RATIO = 5.0  # the rate of numbers that weigh whole layers, over B's: a few hundred steps have to move them
ECHO = 1.5  # how much a copy of the adapter itself counts beside it, at most
ECHOES = 3  # how many copies stand beside it, at most, where each counts what it counts in a stack
PLAIN_TEXT = Weights(kl=0.0, hidden=0.0, cross_entropy=1.0)  # what has no teacher is learned by
PLAIN_KL = Weights(kl=1.0, hidden=0.0)  # what prompts are held by that have nothing to do with the document


@dataclass(frozen=True, slots=True)
class Part:
    """One pack that a step learns, and what it is learned beside."""

    row: Pack
    companion: Companion | None
    share: float  # what the adapter and the companion count, each
    teacher: TeacherTargets | None  # of the pack's targets, in order; None where no part of the loss asks for it
    weights: Weights
    temperature: float
    lower_T_D: Tensor | None  # what the layers below the adapter make of the pack; None: they are run

    def loss(self, logits_N_V: Tensor, states_N_L_D: Tensor | None, targets_N: Tensor) -> Tensor:
        """Of what the model says to the pack; a scalar."""
        return distillation_loss(
            logits_N_V, states_N_L_D, targets_N, self.teacher, self.weights, temperature=self.temperature
        )


class Fit:
    """One adapter's training, step by step: `parts` says what a step learns, `take` takes it. Use it in a `with` block.

    The adapter is the one that is attached to the trainer when this is made, and has to be whenever it is called.
    """

    def __init__(
        self,
        trainer: Trainer,
        students: Sequence[Sequence[Example]],
        teachers: Teachers,
        recipe: Recipe,
        *,
        companions: Sequence[Companion | None] = (),
        distractors: Sequence[Companion] = (),
        retained: Sequence[Sequence[Example]] = (),
        more: Callable[[], Sequence[Sequence[Example]]] | None = None,
        checkpoint: Path | None = None,
        on_step: Callable[[int, int, float], None] | None = None,
        share: float = 1.0,
    ) -> None:
        """See `fit`; `share` of the recipe's memory is this one's."""
        self._trainer = trainer
        self._lists = len(students)
        self._teachers = teachers
        self._recipe = recipe
        self._companions, self._distractors = companions, distractors
        self._more = more
        self._checkpoint = checkpoint
        self._on_step = on_step
        self._rows = rows_of(students, recipe)
        self._plan = steps_of(self._rows, recipe)
        self._turn = round(len(self._plan) * recipe.first_round) if more is not None else len(self._plan)
        self._held, self._holds = retained_of(retained, recipe, len(self._plan))
        self._weights, self._holding = recipe.weights(), replace(PLAIN_KL, kl=recipe.retention_weight)
        self._adapter = trainer.parameters()
        self._optimiser = _optimiser(self._adapter, recipe)
        self._step, self._spent = 0, Spent()
        if checkpoint is not None:
            begun = load_checkpoint(checkpoint, recipe, len(self._plan), self._adapter, self._optimiser)
            self._step, self._spent = begun
        self._began = 0.0  # the step under way
        spill = checkpoint if checkpoint is not None and checkpoint.is_dir() else None
        self._lowers = Kept(int(recipe.memory_mb * 1_000_000 * share) // 2, spill)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lowers.close()

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""
        return self._step >= len(self._plan)

    def parts(self) -> list[Part]:
        """What the next step learns, its main pack first; their gradients add up, and begin at nothing."""
        self._began = time.perf_counter()
        recipe = self._recipe
        if self._more is not None and self._step >= self._turn:
            added = rows_of(self._more(), recipe, first=self._lists)
            self._plan = second_plan(self._plan, self._turn, len(self._rows), len(added), recipe.seed)
            self._rows, self._more = [*self._rows, *added], None
        place = self._plan[self._step]
        for group in self._optimiser.param_groups:
            group["lr"] = group["full_rate"] * _share(self._step, len(self._plan), recipe)
        self._optimiser.zero_grad(set_to_none=True)
        row = self._rows[place]
        beside = _companion(self._trainer, row, self._step, self._companions, self._distractors, recipe)
        parts = [self._part(row, place, *beside, self._weights if row.taught else PLAIN_TEXT)]
        if (held := self._holds.get(self._step)) is not None:  # the number of steps stays what it is
            parts.append(self._part(self._held[held], -1 - held, None, 1.0, self._holding))
        self._spent.tokens += sum(len(part.row) for part in parts)
        return parts

    def _part(self, row: Row, place: int, companion: Companion | None, share: float, weights: Weights) -> Part:
        lower_T_D, pack = None, row.pack()
        if self._trainer.freezes(companion):
            if place not in self._lowers:
                lower_T_D = self._trainer.lower(pack)
                if lower_T_D is not None:
                    self._lowers.put(place, {"lower": lower_T_D})
            else:
                lower_T_D = self._lowers.get(place)["lower"].to(self._trainer.device)
        keys = pack.keys if weights.need_teacher else ()
        told = [self._teachers[key].to(self._trainer.device) for key in keys]  # those that were kept in files, too
        teacher = concatenate(told) if told else None
        return Part(pack, companion, share, teacher, weights, self._recipe.temperature, lower_T_D)

    def take(self, value: float, *, together: int = 1) -> None:
        """Takes the step whose parts are learned; `value` is the main one's loss.

        `together` is how many trainings took the time since `parts`. Raises `TrainingError` when the loss is no number.
        """
        recipe, spent = self._recipe, self._spent
        torch.nn.utils.clip_grad_norm_(self._adapter.values(), CLIP)
        self._optimiser.step()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value!r} at step {self._step}; expected a finite number. "
                "Lower `learning_rate` in hybridqa.toml and run `hybridqa refresh` again."
            )
        spent.loss = value if math.isnan(spent.loss) else 0.9 * spent.loss + 0.1 * value
        spent.seconds += (time.perf_counter() - self._began) / together
        self._step += 1
        total = len(self._plan)
        if self._on_step is not None:
            self._on_step(self._step, total, spent.loss)
        if self._checkpoint is not None and self._step % recipe.checkpoint_steps == 0 and not self.done:
            save_checkpoint(self._checkpoint, recipe, self._step, total, self._adapter, self._optimiser, spent)

    def report(self) -> dict[str, float]:
        """Steps, seconds, loss and tokens so far, those of earlier legs included."""
        spent = self._spent
        return {"steps": len(self._plan), "seconds": spent.seconds, "loss": spent.loss, "tokens": spent.tokens}


def fit(
    trainer: Trainer, students: Sequence[Sequence[Example]], teachers: Teachers, recipe: Recipe, **options: Any
) -> dict[str, float]:
    """Trains the attached adapter and says how it went: steps, seconds, last loss. `options` are `Fit`'s.

    `students[v]` are examples whose prompts begin alike, in packs of their own; an example's `key` finds its targets in
    `teachers`. `companions[v]`, where given, answers beside the adapter in the packs of list v; `distractors` are
    companions of which a share of the steps, `recipe.distracted`, draws one; where none are used, the adapter's own
    copy stands in for them in `recipe.echoed` of the steps. `retained` are examples, in such lists, to
    be answered as their targets in `teachers` say, by KL alone, whatever the objective: a share of the steps,
    `recipe.retention`, takes a pack of them along, with no companion there. `more` is called once, when
    `recipe.first_round` of the steps are done, for examples to put into the rest.
    With `checkpoint`, the state is saved every `recipe.checkpoint_steps` steps and taken up again from there.
    Raises `TrainingError` when there is no example, or the loss is no number.
    """
    with Fit(trainer, students, teachers, recipe, **options) as run:
        while not run.done:
            values = [learn(trainer, part) for part in run.parts()]
            run.take(values[0])
        return run.report()


def learn(trainer: Trainer, part: Part) -> float:
    """One pack forth and back, its gradients added to those that are there; its loss."""
    with trainer.beside(part.companion, share=part.share):
        said = trainer.forward(part.row, hidden=part.weights.hidden > 0, lower_T_D=part.lower_T_D)
        loss = part.loss(*said)
        loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def _companion(
    trainer: Trainer,
    row: Row,
    step: int,
    companions: Sequence[Companion | None],
    distractors: Sequence[Companion],
    recipe: Recipe,
) -> tuple[Companion | None, float]:
    """What answers beside the adapter at a step, and what each of the two counts."""
    if row.group < len(companions) and companions[row.group] is not None:
        return companions[row.group], 1.0
    draw = random.Random(recipe.seed * 1_000_003 + step)  # of the step alone: a resumed run draws alike
    if distractors and recipe.distracted:
        other = draw.choice(distractors) if draw.random() < recipe.distracted else None
        return other, share_of(1 + other.count) if other is not None and recipe.shared else 1.0
    if trainer.maps is None or companions or draw.random() >= recipe.echoed:
        return None, 1.0
    if recipe.shared:
        others = draw.randint(1, ECHOES)
        return trainer.maps.echo(others), share_of(1 + others)
    return trainer.maps.echo(draw.uniform(0.0, ECHO)), 1.0


def _optimiser(adapter: dict[str, torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with a rate for A, one for B, and one for the numbers that weigh whole layers."""
    rate_of_b = recipe.learning_rate * recipe.b_ratio
    rates = {"lora_A": recipe.learning_rate, "lora_B": rate_of_b}
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, weight in adapter.items():
        side = name.removesuffix(".weight").rpartition(".")[2]
        groups.setdefault(rates.get(side, rate_of_b * WEIGHT_RATIO), []).append(weight)
    return torch.optim.AdamW(
        [{"params": weights, "lr": rate, "full_rate": rate} for rate, weights in groups.items()],
        weight_decay=recipe.weight_decay,
        betas=(0.9, 0.95),
        fused=True,
    )


def _share(step: int, steps: int, recipe: Recipe) -> float:
    """Of the full rate: a linear warm-up, then half a cosine."""
    warmup = max(1, round(steps * recipe.warmup))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
