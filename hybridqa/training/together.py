"""Trains the adapters of several documents at once: the packs of all of them go through the base model in one row.

A small model on a GPU spends most of a step on starting kernels: one row of eight documents' packs takes hardly longer
than one document's. Each document keeps its own adapter, optimiser, order of steps and checkpoint. Knows nothing about
documents or files. Invariant: each adapter learns what it would have learned alone, up to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridqa.training.fitting import Fit, Part, learn
from hybridqa.training.lora import Companion, LoraMaps
from hybridqa.training.packing import Joint, Pack, probe, same_result
from hybridqa.training.recipe import Recipe

if TYPE_CHECKING:
    from hybridqa.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Some of a row's tokens, and what answers with the model there."""

    first: int
    last: int  # the first token behind it
    maps: LoraMaps | None
    companion: Companion | None
    share: float  # what each of these counts

    def factors(self, name: str) -> Iterator[tuple[Tensor, Tensor, float]]:
        """A (R, I), B (O, R) and scale of each that has something to say in a linear map."""
        if self.companion is not None and name in self.companion.factors:
            yield *self.companion.factors[name], self.share
        if self.maps is not None and (own := self.maps.factors(name)) is not None:
            yield own[0], own[1], own[2] * self.share


class Together:
    """Several fresh adapters on one trainer. One of them is the trainer's at a time; in `fit` each has its own tokens.

    Use it in a `with` block: the adapters are gone afterwards.
    """

    def __init__(self, trainer: Trainer, recipe: Recipe, count: int) -> None:
        """`count` adapters by one recipe, 1 or more, the first of them in use."""
        self._trainer = trainer
        self._stretches: list[_Stretch] = []
        trainer.detach()
        self._maps: list[LoraMaps] = []
        for _ in range(count):
            trainer.maps = None  # those before stay on the model
            trainer.attach(recipe)
            assert trainer.maps is not None
            self._maps.append(trainer.maps)
        names = self._maps[0].maps
        self._handles = [part.register_forward_hook(self._adder(name)) for name, part in names.items()]
        self.joined: bool | None = None  # whether this model takes several packs in one row; None: not yet seen
        self.use(0)

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for maps in self._maps:
            maps.remove()
        self._trainer.detach()

    def use(self, place: int) -> None:
        """Makes one of the adapters the trainer's; the others rest."""
        for maps in self._maps:
            maps.resting = maps is not self._maps[place]
        self._trainer.maps = self._maps[place]

    def fit(self, runs: dict[int, Fit]) -> dict[int, Exception]:
        """Takes all steps of these adapters' trainings; what ended some of them early, by their places.

        Raises what the step of all of them raises; steps that were kept in checkpoints are not lost.
        """
        failed: dict[int, Exception] = {}
        live = [place for place, run in runs.items() if not run.done]
        while live:
            parts: dict[int, list[Part]] = {}
            for place in live:
                with self._apart(place, failed):
                    parts[place] = runs[place].parts()
            losses = self._learn(parts)
            for place in parts:
                with self._apart(place, failed):
                    runs[place].take(losses[place], together=len(parts))
            live = [place for place in live if place not in failed and not runs[place].done]
        return failed

    @contextmanager
    def _apart(self, place: int, failed: dict[int, Exception]) -> Iterator[None]:
        """Inside, one adapter is in use, and what goes wrong is its alone."""
        self.use(place)
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # one job's own failure: the others may succeed
            failed[place] = error

    def _learn(self, parts: dict[int, list[Part]]) -> dict[int, float]:
        """Gradients of one step of each; their main packs' losses."""
        losses: dict[int, float] = {}
        for turn in range(max((len(each) for each in parts.values()), default=0)):
            now = {place: each[turn] for place, each in parts.items() if turn < len(each)}
            found = self._learn_at_once(now)
            if turn == 0:
                losses = found
        return losses

    def _learn_at_once(self, parts: dict[int, Part]) -> dict[int, float]:
        """One pack of each adapter forth and back, in one row where this model can do that."""
        if len(parts) == 1 or not all(self._trainer.keeps_apart(part.row) for part in parts.values()):
            return {place: self._alone(place, part) for place, part in parts.items()}
        if self.joined is None:
            self.joined = self._can_join()
        if not self.joined:
            return {place: self._alone(place, part) for place, part in parts.items()}
        lowers = [part.lower_T_D for part in parts.values()]
        whole = [lower_T_D for lower_T_D in lowers if lower_T_D is not None]
        lower_T_D = torch.cat(whole) if len(whole) == len(lowers) else None
        row = Joint.of([part.row for part in parts.values()])
        hidden = any(part.weights.hidden > 0 for part in parts.values())
        with self._spread(row, [(self._maps[place], part.companion, part.share) for place, part in parts.items()]):
            logits_N_V, states_N_L_D, targets_N = self._trainer.forward(row, hidden=hidden, lower_T_D=lower_T_D)
            sizes = [sum(part.row.lengths) for part in parts.values()]
            states = [None] * len(sizes) if states_N_L_D is None else torch.split(states_N_L_D, sizes)
            said = zip(torch.split(logits_N_V, sizes), states, torch.split(targets_N, sizes), strict=True)
            losses = [part.loss(*each) for part, each in zip(parts.values(), said, strict=True)]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        return {place: float(loss.detach()) for place, loss in zip(parts, losses, strict=True)}

    def _alone(self, place: int, part: Part) -> float:
        self.use(place)
        return learn(self._trainer, part)

    def _can_join(self) -> bool:
        """Whether two packs, each beside something of its own, give in one row what they give apart."""
        trainer = self._trainer
        row = probe(trainer.base.config.get_text_config().vocab_size)
        beside = [(None, self._noise(seed), 1.0) for seed in range(2)]
        with torch.no_grad():
            try:
                apart = []
                for each in beside:
                    with self._spread(row, [each]):
                        apart.append(trainer.forward(row, hidden=False)[0])
                with self._spread(Joint.of([row, row]), beside):
                    joint_N_V, _, _ = trainer.forward(Joint.of([row, row]), hidden=False)
            except (RuntimeError, ValueError, TypeError, IndexError):  # a linear map that gets some of the tokens alone
                return False
        return same_result(torch.cat(apart), joint_N_V, trainer.base.dtype)

    def _noise(self, seed: int) -> Companion:
        """A random companion on every linear map that learns, strong enough to be seen."""
        draw = torch.Generator().manual_seed(seed)
        factors = {}
        for name in self._maps[0].trained:
            a_R_I, b_O_R, _ = self._maps[0].factors(name) or (None, None, 0.0)
            assert a_R_I is not None and b_O_R is not None
            noise = torch.randn((b_O_R.shape[0], 1), generator=draw) * 0.1
            dtype = self._trainer.base.dtype
            factors[name] = a_R_I.detach()[:1].to(dtype), noise.to(a_R_I.device, dtype)
        return Companion(factors)

    @contextmanager
    def _spread(self, row: Pack, beside: Sequence[tuple[LoraMaps | None, Companion | None, float]]) -> Iterator[None]:
        """Inside, each pack of a row is answered with its own adapter and companion, and all other adapters rest."""
        sizes = row.sizes if isinstance(row, Joint) else (len(row),)
        ends = list(itertools.accumulate(sizes))
        before = [maps.resting for maps in self._maps]
        for maps in self._maps:
            maps.resting = True
        self._stretches = [
            _Stretch(end - size, end, maps, companion, share)
            for end, size, (maps, companion, share) in zip(ends, sizes, beside, strict=True)
        ]
        try:
            yield
        finally:
            self._stretches = []
            for maps, resting in zip(self._maps, before, strict=True):
                maps.resting = resting

    def _adder(self, name: str) -> Any:
        def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            """All stretches' low-rank products in two, whatever their number: each is masked to its own tokens."""
            found = [(stretch, *each) for stretch in self._stretches for each in stretch.factors(name)]
            if not found:
                return None
            x = args[0]
            if x.shape[:-1] != (1, self._stretches[-1].last):
                raise ValueError(
                    f"the linear map {name!r} got tokens of shape {tuple(x.shape)}; expected the whole row"
                )
            stretches, a_each, b_each, scales = zip(*found, strict=True)
            mask_T_R = x.new_zeros(x.shape[1], sum(map(len, a_each)))
            place = 0
            for stretch, a_R_I, scale in zip(stretches, a_each, scales, strict=True):
                mask_T_R[stretch.first : stretch.last, place : place + len(a_R_I)] = scale
                place += len(a_R_I)
            every_a_R_I = torch.cat([each.to(x.dtype) for each in a_each])
            every_b_O_R = torch.cat([each.to(x.dtype) for each in b_each], dim=1)
            return output + F.linear(F.linear(x, every_a_R_I) * mask_T_R, every_b_O_R)

        return add
