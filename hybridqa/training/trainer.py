"""Trains LoRA adapters on packed examples against a teacher that has the document in its prompt.

Knows nothing about documents, questions or stores: it gets examples as token ids. Invariant: the base model's weights
never change, and a run resumed from a checkpoint takes the same steps as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridqa.errors import TrainingError
from hybridqa.training.attention import Layout, segmented, use_packed_attention
from hybridqa.training.fitting import fit
from hybridqa.training.frozen import FrozenLayers, linear_names
from hybridqa.training.lora import Companion, LoraMaps
from hybridqa.training.memory import Slack
from hybridqa.training.objectives import TeacherTargets, split, summarise_teacher
from hybridqa.training.packing import Example, Joint, Pack, additive_mask, group, pack, probe, same_result
from hybridqa.training.precision import faster_dtype
from hybridqa.training.recipe import Recipe
from hybridqa.training.targets import KeptTargets, Teachers
from hybridqa.training.token_loss import row_slices


class Trainer:
    """Holds one base model and trains adapters on it: one, or several by way of `Together`."""

    def __init__(self, model_path: Path, *, device: str | None = None, dtype: str = "float32") -> None:
        """`dtype` is what the base model computes in: "float32", "bfloat16", or "auto" for what is faster here.

        The adapter's own weights are float32 whatever it is.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = faster_dtype(self.device) if dtype == "auto" else getattr(torch, dtype)
        self.base: Any = _load(model_path, self.dtype)
        self.base.to(self.device).eval().requires_grad_(False)
        self.layers: int = self.base.config.get_text_config().num_hidden_layers
        self.targets = linear_names(self.base)  # what an adapter sits on, such as "q_proj"
        self.maps: LoraMaps | None = None  # while an adapter is attached
        self._frozen: FrozenLayers | None = None  # the lowest layers, when they carry no adapter
        self._window = _window(self.base.config.get_text_config())
        self._packs: bool | None = None  # whether a pack gives what its examples give alone; None: not yet seen
        self._slack = Slack()
        self._apart = use_packed_attention(self.base)  # whether attention may go through a pack example by example

    # The adapter

    def attach(self, recipe: Recipe, *, learn_weights: bool = False) -> None:
        """Puts a fresh adapter on the base model; its first output equals the base model's."""
        self.detach()
        first = min(int(self.layers * recipe.first_layer), self.layers - 1)
        self.maps = LoraMaps(
            self.base,
            rank=recipe.rank,
            alpha=recipe.alpha,
            first_layer=first,
            seed=recipe.seed,
            learn_weights=learn_weights,
        )
        self._frozen = FrozenLayers(self.base, first) if first else None

    def detach(self) -> None:
        """Takes the adapter off again."""
        if self.maps is not None:
            self.maps.remove()
            self.maps = None
            self._frozen = None

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's weights by name."""
        return dict(self.maps.parameters) if self.maps is not None else {}

    def companion(self, folders: Sequence[Path]) -> Companion:
        """Published adapters, to stand beside the attached one.

        Raises `TrainingError`, `BaseModelMismatchError`, `CorruptModuleError`, `UnsupportedAdapterError`.
        """
        if self.maps is None:
            raise TrainingError("no adapter is attached for another to stand beside; expected `attach` first.")
        return self.maps.check(Companion.load(folders)).to(self.device, self.dtype)

    @contextmanager
    def beside(self, companion: Companion | None, *, adapter: bool = True, share: float = 1.0) -> Iterator[None]:
        """Inside, `companion` answers with the model, and the adapter too unless `adapter` is false.

        Each counts `share` of itself.
        """
        if self.maps is None:
            yield
            return
        with self.maps.only(adapter=adapter, companion=companion, share=share):
            yield

    def base_alone(self) -> AbstractContextManager[None]:
        """A context inside which the model answers without any adapter."""
        return self.beside(None, adapter=False)

    # Forward

    def forward(
        self, row: Pack, *, hidden: bool, lower_T_D: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Logits (N, V), hidden states of the layers with an adapter (N, L, D) or None, and targets (N,) of a pack.

        With `lower_T_D`, what `lower` gave for the same pack, the layers below the adapter are not run again.
        """
        self._slack.limit()
        rows = self._rows(row)
        lowers = [None] * len(rows) if lower_T_D is None else torch.split(lower_T_D, [len(part) for part in rows])
        passes = [self._forward(part, hidden, lower) for part, lower in zip(rows, lowers, strict=True)]
        states_N_L_D = torch.cat([states for _, states in passes if states is not None]) if hidden else None
        return torch.cat([logits for logits, _ in passes]), states_N_L_D, row.targets_N.to(self.device)

    def _forward(self, row: Pack, hidden: bool, lower_T_D: Tensor | None) -> tuple[Tensor, Tensor | None]:
        predicts_N = row.predicts_N.to(self.device)
        with self._frozen.replaced(lower_T_D) if self._frozen and lower_T_D is not None else nullcontext():
            output = self._run(row, output_hidden_states=hidden, logits_to_keep=predicts_N)
        if not hidden:
            return output.logits[0], None
        first = 1 + (self._frozen.count if self._frozen else 0)  # the first is the embedding output: no layer to match
        return output.logits[0], torch.stack([state[0, predicts_N] for state in output.hidden_states[first:]], dim=1)

    def freezes(self, companion: Companion | None) -> bool:
        """Whether the layers that `lower` runs say the same with `companion` there as without."""
        if self.maps is None or self._frozen is None:
            return False
        return self.maps.lowest(companion) >= self._frozen.count

    def lower(self, row: Pack) -> Tensor | None:
        """What the layers without an adapter make of a pack, for `forward`; None when every layer has one."""
        if self._frozen is None:
            return None
        with torch.no_grad():
            return torch.cat([self._lower(self._frozen, part) for part in self._rows(row)])

    def _lower(self, frozen: FrozenLayers, row: Pack) -> Tensor:
        return frozen.capture(lambda: self._run(row, logits_to_keep=1))

    def _rows(self, row: Pack) -> list[Pack]:
        """The pack itself, or each of its examples alone where this model cannot keep them apart."""
        return [row] if self.keeps_apart(row) else row.alone()

    def keeps_apart(self, row: Pack) -> bool:
        """Whether this model gives a pack's examples what it gives each alone."""
        if self._packs is None:
            self._packs = self._can_pack()
        return self._packs and int(row.positions_T.max()) < self._window

    def _can_pack(self) -> bool:
        """Whether two examples packed give what they give alone: no list of families could be kept complete."""
        row = probe(self.base.config.get_text_config().vocab_size)
        with torch.no_grad(), self.base_alone():
            alone_N_V = torch.cat([self._forward(part, False, None)[0] for part in row.alone()])
            for apart in (True, False) if self._apart else (False,):
                self._apart = apart
                try:
                    packed_N_V, _ = self._forward(row, False, None)
                except (RuntimeError, ValueError, TypeError, IndexError):  # a family that takes no mask of pairs
                    continue
                if same_result(alone_N_V, packed_N_V, self.base.dtype):
                    return True
        return False

    def _run(self, row: Pack, **options: Any) -> Any:
        layout = None
        if len(row.examples) > 1:  # one alone needs neither, and some families take neither
            options["position_ids"] = row.positions_T[None].to(self.device)
            options["attention_mask"] = additive_mask(row.allowed(self.device), self.base.dtype)
            layout = Layout.of(row, self.device) if self._apart and not isinstance(row, Joint) else None
        with segmented(layout):
            return self.base(input_ids=row.token_ids_T[None].to(self.device), use_cache=False, **options)

    def teach(
        self,
        examples: Iterable[Example],
        recipe: Recipe,
        *,
        hidden: bool = True,
        tokens: int | Callable[[Example], int] = 1024,
        keep: KeptTargets | None = None,
    ) -> list[TeacherTargets]:
        """The base model's targets for each example, whose prompts hold the document; in order.

        With `keep` they are put there instead, under their examples' keys, and the list is empty.
        """
        results: list[TeacherTargets] = []
        with torch.no_grad(), self.base_alone():
            for part in group(examples, tokens):
                row = pack(part)
                logits_N_V, states_N_L_D, targets_N = self.forward(row, hidden=hidden)
                if states_N_L_D is None:
                    states_N_L_D = logits_N_V.new_zeros((len(targets_N), 0, 0))
                kept = summarise_teacher(
                    logits_N_V,
                    states_N_L_D,
                    targets_N,
                    top_k=recipe.top_k,
                    temperature=recipe.temperature,
                    keep_dtype=getattr(torch, recipe.keep_dtype),
                )
                pieces = split(kept, row.lengths)
                if keep is None:
                    results.extend(pieces)
                else:
                    for key, piece in zip(row.keys, pieces, strict=True):
                        keep.put(key, piece)
        return results

    def score(
        self,
        examples: Sequence[Example],
        *,
        adapter: bool = True,
        companion: Companion | None = None,
        share: float = 1.0,
        tokens: int = 1024,
    ) -> list[float]:
        """Mean log-probability per target token of each example, in nats, with or without adapter and companion.

        Each of these counts `share` of itself.
        """
        scores: list[float] = []
        with torch.no_grad(), self.beside(companion, adapter=adapter, share=share):
            for part in group(examples, tokens):
                row = pack(part)
                logits_N_V, _, targets_N = self.forward(row, hidden=False)
                scores.extend(_mean_logprobs(logits_N_V, targets_N, row.lengths))
        return scores

    def compare(self, examples: Sequence[Example], *, tokens: int = 1024) -> tuple[list[float], list[float]]:
        """`score` without and with the adapter; the layers below the adapter run once for both."""
        scores: tuple[list[float], list[float]] = ([], [])
        with torch.no_grad():
            for part in group(examples, tokens):
                row = pack(part)
                lower = self.lower(row)
                with self.base_alone():
                    base = self.forward(row, hidden=False, lower_T_D=lower)
                adapted = self.forward(row, hidden=False, lower_T_D=lower)
                for found, (logits_N_V, _, targets_N) in zip(scores, (base, adapted), strict=True):
                    found.extend(_mean_logprobs(logits_N_V, targets_N, row.lengths))
        return scores

    # Training

    def fit(
        self, students: Sequence[Sequence[Example]], teachers: Teachers, recipe: Recipe, **options: Any
    ) -> dict[str, float]:
        """Trains the attached adapter; see `hybridqa.training.fitting.fit`."""
        return fit(self, students, teachers, recipe, **options)

    def save(self, folder: Path, base_model: str | None = None) -> None:
        """Writes the adapter as a PEFT folder for `base_model`, weights in bfloat16; rounds the attached ones alike."""
        if self.maps is None:
            raise TrainingError("no adapter is attached that could be saved; expected `attach` and `fit` first.")
        self.maps.save(folder, base_model, self.targets, self.layers)


def _mean_logprobs(logits_N_V: Tensor, targets_N: Tensor, lengths: Sequence[int]) -> list[float]:
    """The mean log-probability of each example's targets."""
    logprobs = [
        torch.log_softmax(logits_N_V[part].float(), -1).gather(1, targets_N[part, None]).squeeze(1)
        for part in row_slices(len(targets_N), logits_N_V.device)
    ]
    logprob_N = torch.cat(logprobs)
    return [float(piece.mean()) for piece in torch.split(logprob_N, list(lengths))]


def _window(config: Any) -> float:
    """How far a layer looks back at least: a pack's mask knows nothing of layers that look less far than all of it."""
    known = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((size for size in known if size), default=math.inf)


def _load(path: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    except ValueError:  # a family that knows no other way than its own; any other fault shows again
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
