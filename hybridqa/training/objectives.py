"""The loss: the student without the document matches the teacher that reads it, or the text itself.

Loss = T² · KL(teacher ‖ student) on the logits that predict the targets + L1 between hidden states over the teacher's
L1 norm, averaged over layers (arXiv 2503.08727), and next-token cross-entropy, each as far as `Weights` ask for it.
Knows nothing about documents or packs. Invariant: teacher and student rows are aligned one to one by target token; the
embedding output is never matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridqa.training.recipe import Weights
from hybridqa.training.token_loss import row_slices, token_loss


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """What the teacher said at N target tokens: its K likeliest tokens, the mass of the rest, and hidden states.

    Where all of the vocabulary is kept, K is its size, the log-probabilities stand in its order, and there are neither
    ids nor a rest: `ids_N_K` is (N, 0) and `rest_N` holds -inf.
    """

    ids_N_K: Tensor  # int32
    logprobs_N_K: Tensor  # float32, at temperature T
    rest_N: Tensor  # float32: log of the probability outside the K
    hidden_N_L_D: Tensor  # bfloat16 or as asked for, the outputs of L layers
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


def summarise_teacher(
    logits_N_V: Tensor,
    hidden_N_L_D: Tensor,
    targets_N: Tensor,
    *,
    top_k: int,
    temperature: float = 1.0,
    keep_dtype: torch.dtype = torch.bfloat16,
) -> TeacherTargets:
    """Keeps of the teacher's output what the loss needs, a thousandth of its size; all logits with `top_k` 0."""
    parts = [
        _summarise(logits_N_V[part], targets_N[part], top_k, temperature)
        for part in row_slices(len(targets_N), logits_N_V.device)
    ]
    ids_N_K, logprobs_N_K, rest_N, target_N = (torch.cat(each) for each in zip(*parts, strict=True))
    return TeacherTargets(ids_N_K, logprobs_N_K, rest_N, hidden_N_L_D.to(keep_dtype), target_N)


def _summarise(
    logits_N_V: Tensor, targets_N: Tensor, top_k: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, their log-probabilities, the rest's, and the target's."""
    plain_N_V = F.log_softmax(logits_N_V.float(), dim=-1)
    target_N = plain_N_V.gather(1, targets_N[:, None]).squeeze(1)
    scaled_N_V = plain_N_V if temperature == 1.0 else F.log_softmax(logits_N_V.float() / temperature, dim=-1)
    if 0 < top_k < scaled_N_V.shape[-1]:
        logprobs_N_K, ids_N_K = scaled_N_V.topk(top_k, dim=-1)
        return ids_N_K.to(torch.int32), logprobs_N_K, _log_rest(scaled_N_V, ids_N_K), target_N
    none_N_0 = targets_N.new_empty((len(targets_N), 0), dtype=torch.int32)
    return none_N_0, scaled_N_V, torch.full_like(target_N, -torch.inf), target_N


def _log_rest(scores_N_V: Tensor, ids_N_K: Tensor) -> Tensor:
    """log Σ exp over what is not among the ids; log(1 - Σ p) would lose a small rest to rounding."""
    return scores_N_V.scatter(1, ids_N_K, -torch.inf).logsumexp(-1)


def kl_divergence(student_logits_N_V: Tensor, teacher: TeacherTargets, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) of each of N tokens, in nats, times T²: over all V tokens where the teacher's are all kept.

    Else over K tokens and one bucket for the rest, which is less than the whole by rest · KL inside the rest (the chain
    rule), and whose gradient by a token's logits is off by at most 2 · T · rest in L1.
    """
    scores_N_V = student_logits_N_V.float() / temperature
    if not teacher.ids_N_K.shape[1]:
        student_N_V = F.log_softmax(scores_N_V, dim=-1)
        kl_N = (teacher.logprobs_N_K.exp() * (teacher.logprobs_N_K - student_N_V)).sum(-1)
        return kl_N * temperature**2
    ids_N_K = teacher.ids_N_K.long()
    kept_N_K, rest_N = scores_N_V.gather(1, ids_N_K), _log_rest(scores_N_V, ids_N_K)
    whole_N = torch.logaddexp(kept_N_K.logsumexp(-1), rest_N)
    kl_N = (teacher.logprobs_N_K.exp() * (teacher.logprobs_N_K - kept_N_K + whole_N[:, None])).sum(-1)
    return (kl_N + teacher.rest_N.exp() * (teacher.rest_N - rest_N + whole_N)) * temperature**2


def hidden_distance(student_N_L_D: Tensor, teacher_N_L_D: Tensor, weight_N: Tensor) -> Tensor:
    """Σ w|h_s - h_t| / Σ w|h_t| over tokens and dimensions for each layer, averaged over layers."""
    teacher = teacher_N_L_D.float() * weight_N[:, None, None]
    distance_L = (student_N_L_D.float() * weight_N[:, None, None] - teacher).abs().sum(dim=(0, 2))
    return (distance_L / teacher.abs().sum(dim=(0, 2)).clamp(min=1e-6)).mean()


def distillation_loss(
    logits_N_V: Tensor,
    hidden_N_L_D: Tensor | None,
    targets_N: Tensor,
    teacher: TeacherTargets | None,
    weights: Weights,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """The weighted sum of the parts, each a mean over the N tokens; a scalar. No teacher where no part needs one."""
    count = len(targets_N)
    ones_N = logits_N_V.new_ones(count, dtype=torch.float32)
    trust_N = doubt_N = ones_N  # how much the teacher counts, and how much the text's own token
    loss = ones_N.new_zeros(())
    kept: dict[str, Tensor] = {}
    if weights.need_teacher:
        assert teacher is not None, "a loss that follows a teacher was given none"
        if weights.trust:
            trust_N = teacher.target_logprob_N.exp()
            doubt_N = 1 - trust_N
        if weights.kl and not teacher.ids_N_K.shape[1]:
            kl_N = kl_divergence(logits_N_V, teacher, temperature=temperature)
            loss = loss + weights.kl * (trust_N * kl_N).mean()
        elif weights.kl:
            kept = {"ids_N_K": teacher.ids_N_K, "logprobs_N_K": teacher.logprobs_N_K, "rest_N": teacher.rest_N}
            kept["kl_N"] = weights.kl * trust_N / count
        if weights.hidden and hidden_N_L_D is not None:
            loss = loss + weights.hidden * hidden_distance(hidden_N_L_D, teacher.hidden_N_L_D, trust_N)
    if weights.cross_entropy or kept:
        entropy_N = weights.cross_entropy * doubt_N / count
        loss = loss + token_loss(logits_N_V, targets_N, entropy_N, **kept, temperature=temperature)
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
