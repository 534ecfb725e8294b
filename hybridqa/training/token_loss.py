"""KL to the kept teacher and cross-entropy to the text, each token with weights of its own, and their gradient at once.

The logits are by far the largest tensor of a step, and each plain operation on them walks through all of memory: here
a few rows at a time go forth and back while they are in the processor's cache. Knows nothing about what the weights
mean. Invariant: value and gradient are those of the plain formulas, which the tests hold beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CACHE_ROWS = 32  # rows of logits at a time on a CPU; on a GPU all of them


def row_slices(count: int, device: torch.device) -> Iterator[slice]:
    """All of `count` rows, as many at a time as suit the device."""
    rows = CACHE_ROWS if device.type == "cpu" else max(1, count)
    return (slice(first, first + rows) for first in range(0, count, rows))


class _TokenLoss(torch.autograd.Function):
    """Σ_i kl_i · KL_i + entropy_i · CE_i; the gradient goes to the logits alone."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_N_V: Tensor,
        targets_N: Tensor,
        entropy_N: Tensor,
        kl_N: Tensor | None,
        ids_N_K: Tensor | None,
        logprobs_N_K: Tensor | None,
        rest_N: Tensor | None,
        temperature: float,
    ) -> Tensor:
        total = logits_N_V.new_zeros((), dtype=torch.float32)
        gradient_N_V = torch.empty_like(logits_N_V)
        for part in row_slices(len(targets_N), logits_N_V.device):
            logits, targets, entropy = logits_N_V[part], targets_N[part], entropy_N[part]
            if kl_N is None:
                value, gradient = _entropy_part(logits, targets, entropy)
            else:
                assert ids_N_K is not None and logprobs_N_K is not None and rest_N is not None
                teacher = ids_N_K[part].long(), logprobs_N_K[part], rest_N[part]
                at_once = temperature == 1.0  # both parts have the same probabilities then
                value, gradient = _kl_part(
                    logits,
                    targets,
                    entropy if at_once else torch.zeros_like(entropy),
                    kl_N[part],
                    *teacher,
                    temperature,
                )
                if not at_once and bool(entropy.any()):
                    more, steeper = _entropy_part(logits, targets, entropy)
                    value, gradient = value + more, gradient.add_(steeper)
            total += value
            gradient_N_V[part] = gradient
        ctx.save_for_backward(gradient_N_V)
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        (gradient_N_V,) = ctx.saved_tensors
        return gradient_N_V * outer.to(gradient_N_V.dtype), None, None, None, None, None, None, None


def _kl_part(
    logits_N_V: Tensor,
    targets_N: Tensor,
    entropy_N: Tensor,
    weight_N: Tensor,
    ids_N_K: Tensor,
    logprobs_N_K: Tensor,
    rest_N: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Σ weight · KL · T² over K tokens and one bucket for the rest, and its gradient (N, V) in float32.

    At T 1 also Σ entropy · cross-entropy; else `entropy_N` is zero.
    """
    scores_N_V = logits_N_V.float() if temperature == 1.0 else logits_N_V.float() / temperature
    log_whole_N = scores_N_V.logsumexp(-1)
    log_student_N_K = scores_N_V.gather(1, ids_N_K) - log_whole_N[:, None]
    log_target_N = scores_N_V.gather(1, targets_N[:, None]).squeeze(1) - log_whole_N
    student_N_V = (scores_N_V - log_whole_N[:, None]).exp_()  # no change in place: logits in float32 are not ours
    student_N_K = student_N_V.gather(1, ids_N_K)
    student_N_V.scatter_(1, ids_N_K, 0.0)
    student_rest_N = student_N_V.sum(-1).clamp_min(
        torch.finfo(torch.float32).tiny
    )  # 1 - Σ would round a small one away
    teacher_N_K, teacher_rest_N = logprobs_N_K.exp(), rest_N.exp()
    rest_kl_N = torch.where(teacher_rest_N > 0, teacher_rest_N * (rest_N - student_rest_N.log()), 0.0)
    kl_N = (teacher_N_K * (logprobs_N_K - log_student_N_K)).sum(-1) + rest_kl_N
    value = (weight_N * kl_N).sum() * temperature**2 - (entropy_N * log_target_N).sum()
    slope_N = weight_N * temperature  # T² of the loss, over T of the scores
    mass_N = teacher_N_K.sum(-1) + teacher_rest_N  # 1, but for rounding
    student_N_V.mul_((slope_N * (mass_N - teacher_rest_N / student_rest_N) + entropy_N)[:, None])
    kept_N_K = student_N_K * (slope_N * mass_N + entropy_N)[:, None] - teacher_N_K * slope_N[:, None]
    student_N_V.scatter_(1, ids_N_K, kept_N_K)
    student_N_V.scatter_add_(1, targets_N[:, None], -entropy_N[:, None])
    return value, student_N_V


def _entropy_part(logits_N_V: Tensor, targets_N: Tensor, weight_N: Tensor) -> tuple[Tensor, Tensor]:
    """Σ weight · cross-entropy, and its gradient (N, V) in float32."""
    gradient_N_V = F.log_softmax(logits_N_V, dim=-1, dtype=torch.float32)
    entropy_N = -gradient_N_V.gather(1, targets_N[:, None]).squeeze(1)
    gradient_N_V.exp_().mul_(weight_N[:, None])
    gradient_N_V.scatter_add_(1, targets_N[:, None], -weight_N[:, None])
    return (weight_N * entropy_N).sum(), gradient_N_V


def token_loss(
    logits_N_V: Tensor,
    targets_N: Tensor,
    entropy_N: Tensor,
    *,
    kl_N: Tensor | None = None,
    ids_N_K: Tensor | None = None,
    logprobs_N_K: Tensor | None = None,
    rest_N: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Σ over N tokens of `kl_N` · KL(teacher ‖ student) · T² and `entropy_N` · cross-entropy in nats; a scalar.

    The teacher's are K token ids with their log-probabilities at temperature T, and the log of the others' mass.
    """
    given = (logits_N_V, targets_N, entropy_N, kl_N, ids_N_K, logprobs_N_K, rest_N, temperature)
    value: Tensor = _TokenLoss.apply(*given)  # type: ignore[no-untyped-call]
    return value
