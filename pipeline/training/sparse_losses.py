"""The soft loss against sparse targets: k kept classes and one log-sum for all others.

Shapes: N samples, C classes, k kept. Teacher and student are compared on the same support, so the
student's mass outside the kept classes is one term too; nothing of `[N, C]` is made of the
targets.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softlabel.pipeline.training.losses import LossTerms, hard_loss, mixed


class SparseTeacher(NamedTuple):
    """What was kept of a teacher: ids int64 and logits `[N, k]`; tail_lse `[N]`.

    tail_lse is `logsumexp(t / T)` over the classes not kept, at the temperature of use; -inf for
    none.
    """

    ids: Tensor
    logits: Tensor
    tail_lse: Tensor


def sparse_kd_loss(
    student: Tensor,
    teacher: SparseTeacher,
    labels: Tensor,
    soft_weight: float,
    temperature: float,
    label_smoothing: float = 0.0,
) -> LossTerms:
    """`(1-a) H(y', s) + a T^2 H(t_T, s_T)` with the soft term over k + 1 outcomes."""
    hard = hard_loss(student, labels, label_smoothing)
    soft = bucket_loss(student, *teacher, temperature)
    entropy = sparse_teacher_entropy(teacher.logits, teacher.tail_lse, temperature)
    return LossTerms(mixed(hard, temperature**2 * soft, soft_weight), hard, soft, soft - entropy)


def bucket_loss(
    student: Tensor, ids: Tensor, logits: Tensor, tail_lse: Tensor, temperature: float
) -> Tensor:
    """`H(t_T, s_T)` over k + 1 outcomes: each kept class, and "any other" as one bucket.

    student `[N, C]`; ids int64 and logits float `[N, k]`, shifted per row; tail_lse `[N]` is
    `logsumexp(t / T)` over the classes not kept, -inf for none. Batch mean, without the factor
    T^2. By the log-sum inequality its KL is a lower bound of the KL over all C.
    """
    kept, tail = _teacher(logits, tail_lse, temperature)
    own_kept, own_tail = _student(student, ids, temperature)
    return -((kept * own_kept).sum(dim=1) + _times(tail, own_tail)).mean()


def sparse_teacher_entropy(logits: Tensor, tail_lse: Tensor, temperature: float) -> Tensor:
    """Mean entropy of the teacher's k + 1 outcomes, `[]`: what `bucket_loss` cannot go below."""
    kept, tail = _teacher(logits, tail_lse, temperature)
    return -(torch.xlogy(kept, kept).sum(dim=1) + torch.xlogy(tail, tail)).mean()


def _teacher(logits: Tensor, tail_lse: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Probabilities of the kept `[N, k]` and of the tail `[N]`; together 1 by construction."""
    scaled = torch.cat([logits / temperature, tail_lse[:, None]], dim=1)
    probs = torch.softmax(scaled, dim=1)
    return probs[:, :-1], probs[:, -1]


def _student(student: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the kept `[N, k]` and of all others `[N]`.

    The others are summed around their own maximum: `1 - sum(kept)` would lose a small tail.
    """
    scaled = student / temperature
    norm = scaled.logsumexp(dim=1, keepdim=True)
    kept = scaled.gather(1, ids)
    others = scaled.scatter(1, ids, -math.inf).logsumexp(dim=1)
    return kept - norm, others - norm[:, 0]


def _times(mass: Tensor, logs: Tensor) -> Tensor:
    """`mass * logs`, 0 where there is no mass."""
    return torch.where(mass > 0, mass * logs, torch.zeros_like(mass))
