"""Distillation losses: one page of formulas, one function each.

Shapes: N samples, C classes. s: student logits, t: teacher logits, y: hard labels, all in nats,
all batch means; p_T is `softmax(z / T)`. `a` is always the weight of the soft term. Soft losses
come without the factor T^2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The label of a position that has none; torch leaves it out.
IGNORED = -100
# Keeps a row of equal logits, whose deviation is 0, from dividing by it.
TINY = 1e-7


class LossTerms(NamedTuple):
    """The weighted sum to minimise and its raw terms; those that a run does not have are None.

    soft is the soft loss as its function gives it; soft_kl is `KL(t_T || s_T)`, where the soft
    loss is a cross-entropy.
    """

    total: Tensor
    hard: Tensor
    soft: Tensor | None = None
    soft_kl: Tensor | None = None
    hint: Tensor | None = None


def hard_loss(
    student: Tensor, labels: Tensor, label_smoothing: float = 0.0, *, others_only: bool = False
) -> Tensor:
    """`H(y', s)` with `y' = (1-e) y + e/C`, uniform over all C (Szegedy et al. 2016, section 7).

    student `[N, C]`, labels int64 `[N]`; a mean over those that are not `IGNORED`, 0 where all
    are. With `others_only` the convention of e/(C-1) on each
    class but the labelled one, which keeps 1-e.
    """
    if others_only:
        # e/(C-1) on the others is e' = e C/(C-1) over all C.
        classes = student.shape[1]
        label_smoothing = label_smoothing * classes / (classes - 1)
        if label_smoothing > 1:
            raise ValueError(f"label_smoothing must be at most {1 - 1 / classes:g} for {classes}")
    total = F.cross_entropy(student, labels, label_smoothing=label_smoothing, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`H(t_T, s_T)` (Hinton et al. 2015, section 2).

    student and teacher `[N, C]`; the teacher's logits may carry any shift per row. The
    cross-entropy has the gradient of the KL and needs no logarithm of the targets.
    """
    targets = F.softmax(teacher / temperature, dim=1)
    logs = F.log_softmax(student / temperature, dim=1)
    return -(targets * logs).sum(dim=1).mean()


def teacher_entropy(teacher: Tensor, temperature: float) -> Tensor:
    """Mean entropy of `t_T`: the part of the soft loss that no student can remove."""
    targets = F.softmax(teacher / temperature, dim=1)
    return -torch.xlogy(targets, targets).sum(dim=1).mean()


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`KL(s_T || t_T)` (Gu et al. 2024, section 2.1): seeks the teacher's modes.

    A class that the teacher masks (-inf) costs an infinite loss wherever the student has mass.
    """
    own = F.log_softmax(student / temperature, dim=1)
    theirs = F.log_softmax(teacher / temperature, dim=1)
    return (own.exp() * (own - theirs)).sum(dim=1).mean()


def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`KL(t_T || m)/2 + KL(s_T || m)/2` with `m = (t_T + s_T)/2` (Lin 1991, section III).

    At most ln 2, for distributions that share nothing.
    """
    own = F.softmax(student / temperature, dim=1)
    theirs = F.softmax(teacher / temperature, dim=1)
    middle = ((own + theirs) / 2).clamp_min(torch.finfo(own.dtype).tiny).log()
    terms = torch.xlogy(own, own) + torch.xlogy(theirs, theirs) - (own + theirs) * middle
    return terms.sum(dim=1).mean() / 2


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """`mean over C of (s - mean s - t + mean t)^2 / 2`: matching of centred logits, at no T.

    It is the limit of `T^2 KL(t_T || s_T)` for high T (Hinton et al. 2015, section 2.1). Needs
    finite logits of all classes.
    """
    difference = student - teacher
    return ((difference - difference.mean(dim=1, keepdim=True)) ** 2).mean(dim=1).mean() / 2


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
) -> Tensor:
    """Decoupled KD: `w_target TCKD + w_other NCKD` (Zhao et al. 2022, eq. 7).

    `KL(t_T || s_T) = TCKD + (1 - p_target) NCKD`, with p_target the teacher's at T: TCKD is the
    divergence of (labelled, any other), NCKD the one among the others.
    """
    target, others = _decoupled(student, teacher, labels, temperature)
    return (target_weight * target + other_weight * others).mean()


def _decoupled(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of each sample, `[N]`."""
    here = F.one_hot(labels, student.shape[1]).bool()
    binary, rest = [], []
    for logits in (teacher, student):
        logs = F.log_softmax(logits / temperature, dim=1)
        target = logs[here]
        other = logs.masked_fill(here, -torch.inf)
        mass = other.logsumexp(dim=1)
        binary.append(torch.stack([target, mass], dim=1))
        rest.append(other - mass[:, None])
    return _divergence(*binary), _divergence(*rest)


def _divergence(theirs: Tensor, own: Tensor) -> Tensor:
    """`KL(theirs || own)` of log-probabilities `[N, M]`; a class without mass counts nothing."""
    mass = theirs.exp()
    difference = torch.where(mass > 0, theirs - own, torch.zeros_like(own))
    return (mass * difference).sum(dim=1)


def dist_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`(1 - r between classes) + (1 - r within a class)` of p_T (Huang et al. 2022, eq. 9 and 11).

    r is Pearson's correlation of student and teacher, over the classes of each sample and over the
    samples of each class, averaged; so scale and offset of the probabilities do not matter.
    """
    own = F.softmax(student / temperature, dim=1)
    theirs = F.softmax(teacher / temperature, dim=1)
    between = 1 - _correlation(own, theirs).mean()
    within = 1 - _correlation(own.T, theirs.T).mean()
    return between + within


def _correlation(left: Tensor, right: Tensor) -> Tensor:
    left = left - left.mean(dim=1, keepdim=True)
    right = right - right.mean(dim=1, keepdim=True)
    return F.cosine_similarity(left, right, dim=1, eps=TINY)


def standardise(logits: Tensor) -> Tensor:
    """Each row less its mean, over its deviation (Sun et al. 2024, eq. 10); T divides it after.

    Student and teacher are then compared in the order and spacing of their logits alone.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (centred.std(dim=1, keepdim=True, correction=0) + TINY)


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    soft_weight: float,
    temperature: float,
    label_smoothing: float = 0.0,
    *,
    standardised: bool = False,
) -> LossTerms:
    """`(1-a) H(y', s) + a T^2 H(t_T, s_T)` (Hinton et al. 2015, section 2).

    The factor T^2 keeps the soft gradient's size over T. Label smoothing touches y alone. With
    `standardised` the soft term compares the logits after `standardise`.
    """
    hard = hard_loss(student, labels, label_smoothing)
    if standardised:
        student, teacher = standardise(student), standardise(teacher)
    soft = soft_loss(student, teacher, temperature)
    total = mixed(hard, temperature**2 * soft, soft_weight)
    return LossTerms(total, hard, soft, soft - teacher_entropy(teacher, temperature))


def mixed(hard: Tensor, soft: Tensor, soft_weight: float) -> Tensor:
    """`(1-a) hard + a soft`."""
    return (1 - soft_weight) * hard + soft_weight * soft
