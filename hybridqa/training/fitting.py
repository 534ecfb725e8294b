"""The training loop: which pack at which step, the optimiser, checkpoints.

Knows nothing about documents or files but the checkpoint. Invariant: the steps of a run are decided by its examples and
its recipe alone, so one that is taken up again goes on where it stopped.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hybridqa.errors import TrainingError
from hybridqa.training.checkpoint import Spent, load_checkpoint, save_checkpoint
from hybridqa.training.kept import Kept
from hybridqa.training.lora import Companion
from hybridqa.training.objectives import concatenate, distillation_loss
from hybridqa.training.packing import Example
from hybridqa.training.recipe import Recipe, Weights
from hybridqa.training.schedule import Row, retained_of, rows_of, second_plan, steps_of
from hybridqa.training.targets import Teachers

if TYPE_CHECKING:
    from hybridqa.training.trainer import Trainer

CLIP = 1.0  # the largest norm of a step's gradients
WEIGHT_RATIO = 5.0  # the rate of numbers that weigh whole layers, over B's: a few hundred steps have to move them
ECHO = 1.5  # how much a copy of the adapter itself counts beside it, at most
PLAIN_KL = Weights(kl=1.0, hidden=0.0)  # what prompts are held by that have nothing to do with the document


def fit(
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
) -> dict[str, float]:
    """Trains the attached adapter and says how it went: steps, seconds, last loss.

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
    rows = rows_of(students, recipe)
    plan = steps_of(rows, recipe)
    turn = round(len(plan) * recipe.first_round) if more is not None else len(plan)
    held, holds = retained_of(retained, recipe, len(plan))
    weights, holding = recipe.weights(), replace(PLAIN_KL, kl=recipe.retention_weight)
    adapter = trainer.parameters()
    optimiser = _optimiser(adapter, recipe)
    step, spent = load_checkpoint(checkpoint, recipe, len(plan), adapter, optimiser) if checkpoint else (0, Spent())
    started = time.perf_counter() - spent.seconds
    spill = checkpoint if checkpoint is not None and checkpoint.is_dir() else None
    with Kept(recipe.memory_mb * 1_000_000 // 2, spill) as lowers:
        while step < len(plan):
            if more is not None and step >= turn:
                added = rows_of(more(), recipe, first=len(students))
                plan = second_plan(plan, turn, len(rows), len(added), recipe.seed)
                rows, more = [*rows, *added], None
            row = rows[plan[step]]
            companion = _companion(trainer, row, step, companions, distractors, recipe)
            for part in optimiser.param_groups:
                part["lr"] = part["full_rate"] * _share(step, len(plan), recipe)
            optimiser.zero_grad(set_to_none=True)
            value = _learn(trainer, row, plan[step], companion, teachers, weights, recipe, lowers)
            if (place := holds.get(step)) is not None:  # gradients add up: the number of steps stays what it is
                _learn(trainer, held[place], -1 - place, None, teachers, holding, recipe, lowers)
                spent.tokens += len(held[place].pack)
            torch.nn.utils.clip_grad_norm_(adapter.values(), CLIP)
            optimiser.step()
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss became {value!r} at step {step}; expected a finite number. "
                    "Lower `learning_rate` in hybridqa.toml and run `hybridqa refresh` again."
                )
            spent.tokens += len(row.pack)
            spent.loss = value if math.isnan(spent.loss) else 0.9 * spent.loss + 0.1 * value
            spent.seconds = time.perf_counter() - started
            step += 1
            if on_step is not None:
                on_step(step, len(plan), spent.loss)
            if checkpoint is not None and step % recipe.checkpoint_steps == 0 and step < len(plan):
                save_checkpoint(checkpoint, recipe, step, len(plan), adapter, optimiser, spent)
    return {"steps": len(plan), "seconds": spent.seconds, "loss": spent.loss, "tokens": spent.tokens}


def _learn(
    trainer: Trainer,
    row: Row,
    place: int,
    companion: Companion | None,
    teachers: Teachers,
    weights: Weights,
    recipe: Recipe,
    lowers: Kept,
) -> float:
    """One pack forth and back, its gradients added to those that are there; its loss."""
    lower_T_D = None
    if trainer.freezes(companion):
        if place not in lowers:
            lower_T_D = trainer.lower(row.pack)
            if lower_T_D is not None:
                lowers.put(place, {"lower": lower_T_D})
        else:
            lower_T_D = lowers.get(place)["lower"].to(trainer.device)
    keys = row.pack.keys if weights.need_teacher else ()
    teacher = concatenate([teachers[key] for key in keys]).to(trainer.device) if keys else None
    with trainer.beside(companion):
        logits_N_V, states_N_L_D, targets_N = trainer.forward(row.pack, hidden=weights.hidden > 0, lower_T_D=lower_T_D)
        loss = distillation_loss(logits_N_V, states_N_L_D, targets_N, teacher, weights, temperature=recipe.temperature)
        loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def _companion(
    trainer: Trainer,
    row: Row,
    step: int,
    companions: Sequence[Companion | None],
    distractors: Sequence[Companion],
    recipe: Recipe,
) -> Companion | None:
    """What answers beside the adapter at a step."""
    if row.group < len(companions) and companions[row.group] is not None:
        return companions[row.group]
    draw = random.Random(recipe.seed * 1_000_003 + step)  # of the step alone: a resumed run draws alike
    if distractors and recipe.distracted:
        return draw.choice(distractors) if draw.random() < recipe.distracted else None
    if trainer.maps is None or companions or draw.random() >= recipe.echoed:
        return None
    return trainer.maps.echo(draw.uniform(0.0, ECHO))


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
