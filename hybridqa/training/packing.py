"""Packs many prompt-target pairs that begin alike into one sequence, so that what they share is computed once.

A pack is one row of tokens: the shared prefix, then each pair's own tokens. A pair sees the prefix and itself, never
another pair, and its positions continue the prefix's: with attention alone, the result equals running each pair alone.
A layer whose state runs along the row (convolution, state space) carries one pair into the next: `probe` shows it, and
`Pack.alone` is for such models. Knows nothing about documents or objectives. Invariant: `predicts[i]` is the place
whose logits predict `targets[i]`, one before the target.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NUMBERS: dict[int, int] = {}  # one of each token id


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the target that should follow it, tokenised apart and joined by ids."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    key: int = 0  # what it is an example of; two sides of one pair share it

    def __post_init__(self) -> None:
        # A tokeniser makes a number of each token anew: four fifths of what a long document's examples would hold.
        for name, ids in (("prompt", self.prompt), ("target", self.target)):
            object.__setattr__(self, name, tuple(map(_NUMBERS.setdefault, ids, ids)))


@dataclass(frozen=True, slots=True)
class Pack:
    """One packed row of T tokens holding N targets of M examples."""

    token_ids_T: Tensor
    positions_T: Tensor
    owners_T: Tensor  # whose each token is, by number; -1 for the prefix
    predicts_N: Tensor
    targets_N: Tensor
    lengths: tuple[int, ...]  # target tokens of each example, in order; sums to N
    keys: tuple[int, ...]  # each example's key, in order
    examples: tuple[Example, ...]

    def allowed(self, device: torch.device | None = None) -> Tensor:
        """bool (T, T), made where it is needed: row may look at column. It would be most of what a pack holds."""
        owners_T = self.owners_T.to(device)
        causal_T_T = torch.ones(len(self), len(self), dtype=torch.bool, device=device).tril()
        same_T_T = owners_T[:, None] == owners_T[None, :]
        return causal_T_T & (same_T_T | (owners_T[None, :] == -1))

    def alone(self) -> list[Pack]:
        """The same examples, each in a row of its own; together they have the same targets in the same order."""
        return [self] if len(self.examples) == 1 else [pack([item]) for item in self.examples]

    def __len__(self) -> int:
        return int(self.token_ids_T.numel())


@dataclass(frozen=True, slots=True)
class Joint(Pack):
    """Several packs in one row, each with its own prefix; none sees another."""

    sizes: tuple[int, ...]  # tokens of each pack, in order

    @classmethod
    def of(cls, packs: Sequence[Pack]) -> Joint:
        """One row of all of them, targets in their order."""
        starts = [0, *itertools.accumulate(len(part) for part in packs)]
        return cls(
            torch.cat([part.token_ids_T for part in packs]),
            torch.cat([part.positions_T for part in packs]),
            torch.cat([part.owners_T for part in packs]),
            torch.cat([part.predicts_N + start for part, start in zip(packs, starts, strict=False)]),
            torch.cat([part.targets_N for part in packs]),
            tuple(length for part in packs for length in part.lengths),
            tuple(key for part in packs for key in part.keys),
            tuple(item for part in packs for item in part.examples),
            tuple(len(part) for part in packs),
        )

    def allowed(self, device: torch.device | None = None) -> Tensor:
        """bool (T, T), made where it is needed: row may look at column, which is of its own pack."""
        pack_T = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes)).to(device)
        # Without `super()`: a dataclass with slots is another class than the one its methods were written in.
        return Pack.allowed(self, device) & (pack_T[:, None] == pack_T[None, :])


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts have in common, leaving at least one token of each to itself."""
    shortest = min(len(prompt) for prompt in prompts)
    first = prompts[0]
    for place in range(shortest - 1):
        if any(prompt[place] != first[place] for prompt in prompts):
            return place
    return max(shortest - 1, 0)


def pack(examples: Sequence[Example]) -> Pack:
    """All of `examples` in one row. Raises `ValueError` when there is none, or one has an empty prompt or target."""
    if not examples or any(not item.prompt or not item.target for item in examples):
        raise ValueError("a pack needs at least one example, each with a prompt and a target")
    prefix = shared_length([item.prompt for item in examples])
    tokens = list(examples[0].prompt[:prefix])
    positions = list(range(prefix))
    owners = [-1] * prefix
    predicts: list[int] = []
    targets: list[int] = []
    for owner, item in enumerate(examples):
        own = [*item.prompt[prefix:], *item.target[:-1]]
        first = len(tokens) + len(item.prompt) - prefix - 1
        predicts.extend(range(first, first + len(item.target)))
        targets.extend(item.target)
        positions.extend(range(prefix, prefix + len(own)))
        owners.extend([owner] * len(own))
        tokens.extend(own)
    return Pack(
        torch.tensor(tokens),
        torch.tensor(positions),
        torch.tensor(owners),
        torch.tensor(predicts),
        torch.tensor(targets),
        tuple(len(item.target) for item in examples),
        tuple(item.key for item in examples),
        tuple(examples),
    )


def group(examples: Iterable[Example], max_tokens: int | Callable[[Example], int]) -> Iterator[list[Example]]:
    """Splits `examples`, in order, into groups whose packs hold at most `max_tokens`; a longer one stands alone.

    Each group is given as soon as it is whole; `max_tokens` may hang on its first example. Sort them by what they share
    first: a group shares only what all of it begins with.
    """
    current: list[Example] = []
    prefix = own = most = 0  # of the group: tokens shared, tokens of its examples with nothing shared, its `max_tokens`
    for item in examples:
        length = len(item.prompt) + len(item.target) - 1
        if current:
            shared = min(shared_length([current[0].prompt, item.prompt]), prefix)
            if own + length - shared * len(current) <= most:
                current.append(item)
                prefix, own = shared, own + length
                continue
            yield current
        current = [item]
        prefix, own = len(item.prompt) - 1, length
        most = max_tokens(item) if callable(max_tokens) else max_tokens
    if current:
        yield current


def additive_mask(allowed_T_T: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as attention wants it: (1, 1, T, T), 0 where allowed, the dtype's lowest value elsewhere."""
    mask = torch.zeros(allowed_T_T.shape, dtype=dtype, device=allowed_T_T.device)
    return mask.masked_fill(~allowed_T_T, torch.finfo(dtype).min)[None, None]


def probe(vocabulary: int) -> Pack:
    """Two short random examples that share a prefix: the second shows what the first's tokens do to it."""
    draw = random.Random(0).randrange
    prefix = tuple(draw(vocabulary) for _ in range(6))
    return pack(
        [Example((*prefix, draw(vocabulary)), tuple(draw(vocabulary) for _ in range(4)), key) for key in range(2)]
    )


def same_result(first_N_V: Tensor, second_N_V: Tensor, dtype: torch.dtype) -> bool:
    """Whether two passes' logits agree as well as a model of this precision does with itself."""
    first_N_V, second_N_V = (
        logits.float() - logits.float().mean(-1, keepdim=True) for logits in (first_N_V, second_N_V)
    )
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2  # of the whole: a number near 0 may be nothing but rounding
    return float((first_N_V - second_N_V).norm()) <= tolerance * float(first_N_V.norm())
