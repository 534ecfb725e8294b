"""Trains one LoRA adapter on packed examples against a teacher that has the document in its prompt.

Knows nothing about documents, questions or stores: it gets examples as token ids. Invariant: the base model's weights
never change, and a run resumed from a checkpoint takes the same steps as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from hybridqa.errors import TrainingError
from hybridqa.files import atomic_write_bytes
from hybridqa.training.checkpoint import load_checkpoint, save_checkpoint
from hybridqa.training.frozen import FrozenLayers, linear_names
from hybridqa.training.objectives import (
    TeacherTargets,
    Weights,
    concatenate,
    distillation_loss,
    split,
    summarise_teacher,
)
from hybridqa.training.packing import (
    Example,
    Pack,
    additive_mask,
    group,
    pack,
    probe,
    same_result,
)
from hybridqa.training.recipe import Recipe
from hybridqa.training.schedule import schedule


class Trainer:
    """Holds one base model and trains adapters on it, one at a time."""

    def __init__(self, model_path: Path, *, device: str | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.base: Any = _load(model_path, dtype)
        self.base.to(self.device).eval().requires_grad_(False)
        self.targets = linear_names(self.base)  # what an adapter sits on, such as "q_proj"
        self.model: Any = None  # the peft model while an adapter is attached
        self._frozen: FrozenLayers | None = None  # the lowest layers, when they carry no adapter
        self._packs: bool | None = None  # whether a pack gives what its examples give alone; None: not yet seen

    # The adapter

    def attach(self, recipe: Recipe) -> None:
        """Puts a fresh adapter on the base model; its first output equals the base model's."""
        from peft import LoraConfig, get_peft_model

        self.detach()
        torch.manual_seed(recipe.seed)
        layers = self.base.config.get_text_config().num_hidden_layers
        first = min(int(layers * recipe.first_layer), layers - 1)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=0.0,
            target_modules=self.targets,
            layers_to_transform=list(range(first, layers)) if first else None,
        )
        self.model = get_peft_model(self.base, config, autocast_adapter_dtype=True)
        self.model.eval()  # no dropout anywhere: the teacher and the student see the same network
        self._frozen = FrozenLayers(self.base, first) if first else None

    def detach(self) -> None:
        """Takes the adapter off again."""
        if self.model is not None:
            self.base = self.model.unload()
            self.base.requires_grad_(False)
            self.model = None
            self._frozen = None

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's weights by name."""
        if self.model is None:
            return {}
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    @contextmanager
    def base_alone(self) -> Iterator[None]:
        """Inside, the model answers without its adapter."""
        if self.model is None:
            yield
            return
        with self.model.disable_adapter():
            yield

    # Forward

    def forward(
        self, row: Pack, *, hidden: bool, lower_T_D: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Logits (N, V), hidden states of the layers with an adapter (N, L, D) or None, and targets (N,) of a pack.

        With `lower_T_D`, what `lower` gave for the same pack, the layers below the adapter are not run again.
        """
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
        if self._packs is None:
            self._packs = self._can_pack()
        return [row] if self._packs else row.alone()

    def _can_pack(self) -> bool:
        """Whether two examples packed give what they give alone: no list of families could be kept complete."""
        row = probe(self.base.config.get_text_config().vocab_size)
        with torch.no_grad(), self.base_alone():
            alone_N_V = torch.cat([self._forward(part, False, None)[0] for part in row.alone()])
            try:
                packed_N_V, _ = self._forward(row, False, None)
            except (RuntimeError, ValueError, TypeError, IndexError):  # a family that takes no mask of pairs
                return False
        return same_result(alone_N_V, packed_N_V, self.base.dtype)

    def _run(self, row: Pack, **options: Any) -> Any:
        model = self.model if self.model is not None else self.base
        if len(row.examples) > 1:  # one alone needs neither, and some families take neither
            options["position_ids"] = row.positions_T[None].to(self.device)
            options["attention_mask"] = additive_mask(row.allowed_T_T.to(self.device), self.base.dtype)
        return model(input_ids=row.token_ids_T[None].to(self.device), use_cache=False, **options)

    def teach(
        self, examples: Sequence[Example], recipe: Recipe, *, hidden: bool = True, tokens: int = 1024
    ) -> list[TeacherTargets]:
        """The base model's targets for each example, whose prompts hold the document; in order."""
        results: list[TeacherTargets] = []
        with torch.no_grad(), self.base_alone():
            for part in group(examples, tokens):
                row = pack(part)
                logits_N_V, states_N_L_D, targets_N = self.forward(row, hidden=hidden)
                if states_N_L_D is None:
                    states_N_L_D = logits_N_V.new_zeros((len(targets_N), 0, 0))
                kept = summarise_teacher(
                    logits_N_V, states_N_L_D, targets_N, top_k=recipe.top_k, temperature=recipe.temperature
                )
                results.extend(split(kept, row.lengths))
        return results

    def score(self, examples: Sequence[Example], *, adapter: bool = True, tokens: int = 1024) -> list[float]:
        """Mean log-probability per target token of each example, in nats, with or without the adapter."""
        scores: list[float] = []
        with torch.no_grad(), nullcontext() if adapter else self.base_alone():
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
        self,
        students: Sequence[Sequence[Example]],
        teachers: Sequence[TeacherTargets],
        recipe: Recipe,
        *,
        checkpoint: Path | None = None,
        on_step: Callable[[int, int, float], None] | None = None,
    ) -> dict[str, float]:
        """Trains the attached adapter and says how it went: steps, seconds, last loss.

        `students[v]` are examples whose prompts begin alike, in packs of their own; an example's `key` indexes
        `teachers`.
        With `checkpoint`, the state is saved every `recipe.checkpoint_steps` steps and taken up again from there.
        Raises `TrainingError` when there is no example, or the loss is no number.
        """
        weights = Weights(recipe.kl, recipe.hidden, recipe.cross_entropy, recipe.trust)
        packs, plan = schedule(students, recipe)
        lowers: dict[int, Tensor | None] = {}
        adapter = self.parameters()
        rates = {"lora_A": recipe.learning_rate, "lora_B": recipe.learning_rate * recipe.b_ratio}
        optimiser = torch.optim.AdamW(
            [
                {"params": [weight for name, weight in adapter.items() if side in name], "lr": rate, "full_rate": rate}
                for side, rate in rates.items()
            ],
            weight_decay=recipe.weight_decay,
            betas=(0.9, 0.95),
        )
        warmup = max(1, round(len(plan) * recipe.warmup))

        def share(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, len(plan) - warmup)))

        started = time.perf_counter()
        first = load_checkpoint(checkpoint, recipe, len(plan), adapter, optimiser) if checkpoint else 0
        smoothed = float("nan")
        for step in range(first, len(plan)):
            row = packs[plan[step]]
            if plan[step] not in lowers:
                lowers[plan[step]] = self.lower(row)
            teacher = concatenate([teachers[key] for key in row.keys]).to(self.device)
            for part in optimiser.param_groups:
                part["lr"] = part["full_rate"] * share(step)
            logits_N_V, states_N_L_D, targets_N = self.forward(
                row, hidden=weights.hidden > 0, lower_T_D=lowers[plan[step]]
            )
            loss = distillation_loss(
                logits_N_V, states_N_L_D, targets_N, teacher, weights, temperature=recipe.temperature
            )
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss became {value!r} at step {step}; expected a finite number. "
                    "Lower `learning_rate` in hybridqa.toml and run `hybridqa refresh` again."
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(adapter.values(), 1.0)
            optimiser.step()
            smoothed = value if math.isnan(smoothed) else 0.9 * smoothed + 0.1 * value
            if on_step is not None:
                on_step(step + 1, len(plan), smoothed)
            if checkpoint is not None and (step + 1) % recipe.checkpoint_steps == 0 and step + 1 < len(plan):
                save_checkpoint(checkpoint, recipe, step + 1, len(plan), adapter, optimiser)
        return {"steps": len(plan), "seconds": time.perf_counter() - started, "loss": smoothed}

    def save(self, folder: Path, base_model: str | None = None) -> None:
        """Writes the adapter as a PEFT folder for `base_model`, weights in bfloat16; rounds the attached ones alike."""
        with torch.no_grad():
            for weight in self.parameters().values():
                weight.copy_(weight.to(torch.bfloat16).to(weight.dtype))
        for config in self.model.peft_config.values():
            config.base_model_name_or_path = base_model  # a name: a path would tell of this machine
        self.model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
        path = folder / "adapter_model.safetensors"
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}
        atomic_write_bytes(path, save(tensors, metadata={"format": "pt"}))


def _mean_logprobs(logits_N_V: Tensor, targets_N: Tensor, lengths: Sequence[int]) -> list[float]:
    """The mean log-probability of each example's targets."""
    logprob_N = torch.log_softmax(logits_N_V.float(), -1).gather(1, targets_N[:, None]).squeeze(1)
    return [float(piece.mean()) for piece in torch.split(logprob_N, list(lengths))]


def _load(path: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    except ValueError:  # a family that knows no other way than its own; any other fault shows again
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
