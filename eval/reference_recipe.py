"""Deep Context Distillation written plainly: what hybridqa's trainer is measured against.

The method is that of arXiv 2503.08727: LoRA on every linear map of every layer (peft); at each step the teacher, the
same model without the adapter, reads chunk and pair anew; batches are padded; logits are the whole vocabulary's at all
places; the loss is KL plus normalised L1 between the hidden states of all layers, at the target tokens. Competent
otherwise: sdpa attention, one model for both sides, no gradients for the teacher, cosine schedule with warm-up, and the
corrections that hybridqa's design asks for (the logits one place before the target, targets joined by ids, no matching
of the embedding's output). Knows nothing about hybridqa: it gets token ids. Invariant: nothing is kept between steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DistilledPair:
    """One pair as token ids: two prompts, with and without the chunk, and the target that follows both."""

    teacher_prompt: tuple[int, ...]
    student_prompt: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReferenceSettings:
    """Everything that decides what a run does."""

    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-3
    batch: int = 8  # pairs
    steps: int = 250
    warmup: float = 0.06  # share of the steps
    dtype: str = "float32"  # of the base model; the adapter is float32
    seed: int = 0


class Reference:
    """A base model with a fresh adapter, and the plain way to train it."""

    def __init__(self, model_path: Path, settings: ReferenceSettings, *, device: str | None = None) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.settings = settings
        base: Any = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=getattr(torch, settings.dtype), attn_implementation="sdpa"
        )
        base.to(self.device)
        torch.manual_seed(settings.seed)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
        )
        self.model: Any = get_peft_model(base, config)
        self.model.eval()  # there is no dropout to train with

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's weights by name."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def loss(self, batch: Sequence[DistilledPair]) -> Tensor:
        """KL + normalised L1 of a batch, a scalar with gradients for the adapter."""
        with torch.no_grad(), self.model.disable_adapter():
            teacher_N_V, teacher_states = self._read([(pair.teacher_prompt, pair.target) for pair in batch])
            teacher_logprobs_N_V = F.log_softmax(teacher_N_V.float(), dim=-1)
        student_N_V, student_states = self._read([(pair.student_prompt, pair.target) for pair in batch])
        student_logprobs_N_V = F.log_softmax(student_N_V.float(), dim=-1)
        divergence = F.kl_div(student_logprobs_N_V, teacher_logprobs_N_V, log_target=True, reduction="batchmean")
        distances = [
            (student_N_D - teacher_N_D).abs().sum() / teacher_N_D.abs().sum()
            for student_N_D, teacher_N_D in zip(student_states, teacher_states, strict=True)
        ]
        return divergence + torch.stack(distances).mean()

    def _read(self, sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple[Tensor, list[Tensor]]:
        """Logits (N, V) that predict the targets' tokens, and the states (N, D) of every layer at the same places."""
        rows = [[*prompt, *target] for prompt, target in sequences]
        longest = max(len(row) for row in rows)
        ids_B_T = torch.zeros(len(rows), longest, dtype=torch.long)
        given_B_T = torch.zeros_like(ids_B_T)
        predicts_B_T = torch.zeros(len(rows), longest, dtype=torch.bool)
        for place, (row, (prompt, _)) in enumerate(zip(rows, sequences, strict=True)):
            ids_B_T[place, : len(row)] = torch.tensor(row)
            given_B_T[place, : len(row)] = 1
            predicts_B_T[place, len(prompt) - 1 : len(row) - 1] = True
        output = self.model(
            input_ids=ids_B_T.to(self.device),
            attention_mask=given_B_T.to(self.device),
            output_hidden_states=True,
            use_cache=False,
        )
        predicts_B_T = predicts_B_T.to(self.device)
        return output.logits[predicts_B_T], [state[predicts_B_T].float() for state in output.hidden_states[1:]]

    def train(
        self, pairs: Sequence[DistilledPair], on_step: Callable[[int, int, Sequence[DistilledPair]], None]
    ) -> None:
        """Takes all steps; `on_step` hears the step's number from 1, of how many, and its batch."""
        settings = self.settings
        weights = list(self.parameters().values())
        optimiser = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
        warmup = max(1, round(settings.steps * settings.warmup))

        def share(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))

        plan = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
        batches = _batches(pairs, settings.batch, random.Random(settings.seed))
        for step in range(settings.steps):
            batch = next(batches)
            optimiser.zero_grad(set_to_none=True)
            self.loss(batch).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            plan.step()
            on_step(step + 1, settings.steps, batch)


def _batches(pairs: Sequence[DistilledPair], size: int, rng: random.Random) -> Any:
    """Batches without end; every pass takes all pairs, in an order drawn anew."""
    while True:
        order = list(pairs)
        rng.shuffle(order)
        for first in range(0, len(order), size):
            yield order[first : first + size]
