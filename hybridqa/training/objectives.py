"""Deep Context Distillation: the student without the document matches the teacher that reads it.

Loss = T² · KL(teacher ‖ student) on the logits that predict the targets + L1 between hidden states over the teacher's
L1 norm, averaged over layers (arXiv 2503.08727), and, where asked for, next-token cross-entropy. Knows nothing about
documents or packs. Invariant: teacher and student rows are aligned one to one by target token; the embedding output is
never matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """What the teacher said at N target tokens: its K likeliest tokens, the mass of the rest, and hidden states."""

    ids_N_K: Tensor  # int32
    logprobs_N_K: Tensor  # float32, at temperature T
    rest_N: Tensor  # float32: log of the probability outside the K
    hidden_N_L_D: Tensor  # bfloat16, the outputs of L layers
    target_logprob_N: Tensor  # float32, log-probability of the target itself, at temperature 1

    def to(self, device: torch.device) -> TeacherTargets:
        """The same targets on `device`."""
        return TeacherTargets(
            self.ids_N_K.to(device),
            self.logprobs_N_K.to(device),
            self.rest_N.to(device),
            self.hidden_N_L_D.to(device),
            self.target_logprob_N.to(device),
        )


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


def summarise_teacher(
    logits_N_V: Tensor, hidden_N_L_D: Tensor, targets_N: Tensor, *, top_k: int, temperature: float = 1.0
) -> TeacherTargets:
    """Keeps of the teacher's output what the loss needs, a thousandth of its size."""
    plain_N_V = F.log_softmax(logits_N_V.float(), dim=-1)
    target_N = plain_N_V.gather(1, targets_N[:, None]).squeeze(1)
    scaled_N_V = plain_N_V if temperature == 1.0 else F.log_softmax(logits_N_V.float() / temperature, dim=-1)
    logprobs_N_K, ids_N_K = scaled_N_V.topk(min(top_k, scaled_N_V.shape[-1]), dim=-1)
    return TeacherTargets(
        ids_N_K.to(torch.int32),
        logprobs_N_K,
        _log_rest(logprobs_N_K),
        hidden_N_L_D.to(torch.bfloat16),
        target_N,
    )


def _log_rest(logprobs_N_K: Tensor) -> Tensor:
    """log(1 - Σ p) over the last dimension, kept finite."""
    return torch.log1p(-logprobs_N_K.exp().sum(-1).clamp(max=1 - 1e-6))


def kl_divergence(student_logits_N_V: Tensor, teacher: TeacherTargets, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) of each of N tokens, in nats over K tokens and one bucket for the rest, times T²."""
    student_N_V = F.log_softmax(student_logits_N_V.float() / temperature, dim=-1)
    student_N_K = student_N_V.gather(1, teacher.ids_N_K.long())
    kept_N = (teacher.logprobs_N_K.exp() * (teacher.logprobs_N_K - student_N_K)).sum(-1)
    rest_N = teacher.rest_N.exp() * (teacher.rest_N - _log_rest(student_N_K))
    return (kept_N + rest_N) * temperature**2


def hidden_distance(student_N_L_D: Tensor, teacher_N_L_D: Tensor, weight_N: Tensor) -> Tensor:
    """Σ w|h_s - h_t| / Σ w|h_t| over tokens and dimensions for each layer, averaged over layers."""
    teacher = teacher_N_L_D.to(student_N_L_D.dtype) * weight_N[:, None, None]
    distance_L = (student_N_L_D * weight_N[:, None, None] - teacher).abs().sum(dim=(0, 2))
    return (distance_L / teacher.abs().sum(dim=(0, 2)).clamp(min=1e-6)).mean()


def distillation_loss(
    logits_N_V: Tensor,
    hidden_N_L_D: Tensor | None,
    targets_N: Tensor,
    teacher: TeacherTargets,
    weights: Weights,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """The weighted sum of the parts, each a mean over the N tokens; a scalar."""
    trust_N = teacher.target_logprob_N.exp() if weights.trust else torch.ones_like(teacher.target_logprob_N)
    doubt_N = 1 - trust_N if weights.trust else trust_N
    loss = logits_N_V.new_zeros((), dtype=torch.float32)
    if weights.kl:
        loss = loss + weights.kl * (trust_N * kl_divergence(logits_N_V, teacher, temperature=temperature)).mean()
    if weights.hidden and hidden_N_L_D is not None:
        loss = loss + weights.hidden * hidden_distance(hidden_N_L_D, teacher.hidden_N_L_D, trust_N)
    if weights.cross_entropy:
        entropy_N = F.cross_entropy(logits_N_V.float(), targets_N, reduction="none")
        loss = loss + weights.cross_entropy * (doubt_N * entropy_N).mean()
    return loss


def concatenate(parts: Sequence[TeacherTargets]) -> TeacherTargets:
    """Targets of several examples, one after another."""
    return TeacherTargets(
        torch.cat([part.ids_N_K for part in parts]),
        torch.cat([part.logprobs_N_K for part in parts]),
        torch.cat([part.rest_N for part in parts]),
        torch.cat([part.hidden_N_L_D for part in parts]),
        torch.cat([part.target_logprob_N for part in parts]),
    )


def split(targets: TeacherTargets, lengths: Sequence[int]) -> list[TeacherTargets]:
    """The opposite of `concatenate`."""
    pieces = [
        torch.split(part, list(lengths))
        for part in (
            targets.ids_N_K,
            targets.logprobs_N_K,
            targets.rest_N,
            targets.hidden_N_L_D,
            targets.target_logprob_N,
        )
    ]
    return [TeacherTargets(*piece) for piece in zip(*pieces, strict=True)]
