"""Distillation losses: one page of formulas, one function each.

Shapes: N samples, C classes. s: student logits, t: teacher logits, y: hard labels, all in nats,
all batch means. `a` is always the weight of the soft term.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LossTerms(NamedTuple):
    """The weighted sum to minimise and its raw terms; the soft ones are None without a teacher.

    soft is `H(t_T, s_T)`; soft_kl is the same less the teacher's entropy, `KL(t_T || s_T)`.
    """

    total: Tensor
    hard: Tensor
    soft: Tensor | None = None
    soft_kl: Tensor | None = None


def hard_loss(student: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """`H(y', s)` with `y' = (1-e) y + e/C`, uniform over all C (Szegedy et al. 2016, section 7).

    student `[N, C]`, labels int64 `[N]`.
    """
    return F.cross_entropy(student, labels, label_smoothing=label_smoothing)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`H(softmax(t/T), softmax(s/T))` (Hinton et al. 2015, section 2), without the factor T^2.

    student and teacher `[N, C]`; the teacher's logits may carry any shift per row. The
    cross-entropy has the gradient of the KL and needs no logarithm of the targets.
    """
    targets = F.softmax(teacher / temperature, dim=1)
    logs = F.log_softmax(student / temperature, dim=1)
    return -(targets * logs).sum(dim=1).mean()


def teacher_entropy(teacher: Tensor, temperature: float) -> Tensor:
    """Mean entropy of `softmax(t/T)`: the part of the soft loss that no student can remove."""
    logs = F.log_softmax(teacher / temperature, dim=1)
    return -torch.xlogy(logs.exp(), logs.exp()).sum(dim=1).mean()


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    soft_weight: float,
    temperature: float,
    label_smoothing: float = 0.0,
) -> LossTerms:
    """`(1-a) H(y', s) + a T^2 H(t_T, s_T)` (Hinton et al. 2015, section 2).

    The factor T^2 keeps the soft gradient's size over T. Label smoothing touches y alone.
    """
    hard = hard_loss(student, labels, label_smoothing)
    soft = soft_loss(student, teacher, temperature)
    total = (1 - soft_weight) * hard + soft_weight * temperature**2 * soft
    return LossTerms(total, hard, soft, soft - teacher_entropy(teacher, temperature))
