"""Which loss a run minimises, at the temperature and soft weight of its epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from softlabel.pipeline.training.losses import (
    LossTerms,
    dist_loss,
    dkd_loss,
    hard_loss,
    jensen_shannon,
    kd_loss,
    logit_mse,
    mixed,
    reverse_kl,
    standardise,
)
from softlabel.pipeline.training.sparse_losses import SparseTeacher, sparse_kd_loss
from softlabel.schemas.params import TrainParams


@dataclass(frozen=True, slots=True)
class SoftTerm:
    """The soft term's temperature T and weight a."""

    temperature: float
    weight: float


def soft_term(params: TrainParams, epoch: int) -> SoftTerm:
    """T and a of an epoch counted from 0: from their first values to their last ones.

    `linear`: in equal steps; `cosine`: slow at both ends. They stay where no last value is given.
    With targets `self` T is 1 and `a_t = a_T (t+1) / epochs`, so the last epoch has a_T (Kim et al.
    2021, whose t counts from 1).
    """
    if params.targets == "self":
        return SoftTerm(1.0, params.soft_weight * (epoch + 1) / params.epochs)
    share = epoch / max(1, params.epochs - 1)
    if params.soft_schedule == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return SoftTerm(
        temperature=_between(params.temperature, params.temperature_end, share),
        weight=_between(params.soft_weight, params.soft_weight_end, share),
    )


class LossSettings(Protocol):
    """What decides a loss beside its term's T and a; TrainParams describes each."""

    @property
    def loss(self) -> str:
        """Which soft loss, or `hard`."""

    @property
    def standardise(self) -> bool:
        """Whether z-scores of logits are compared."""

    @property
    def label_smoothing(self) -> float:
        """Of the hard term."""

    @property
    def target_weight(self) -> float:
        """Of the target's part in `dkd`."""

    @property
    def other_weight(self) -> float:
        """Of the other classes' part in `dkd`."""


def distillation_terms(
    params: LossSettings,
    term: SoftTerm,
    student: Tensor,
    teacher: Tensor | SparseTeacher | None,
    labels: Tensor,
) -> LossTerms:
    """The loss of a batch: student and teacher logits `[N, C]`, labels int64 `[N]`.

    `(1-a) H(y', s) + a F soft`, F being T^2 where the soft loss softens by T. Without a teacher
    the hard loss alone.
    """
    if teacher is None:
        hard = hard_loss(student, labels, params.label_smoothing)
        return LossTerms(hard, hard)
    T, smoothing = term.temperature, params.label_smoothing
    if isinstance(teacher, SparseTeacher):
        return sparse_kd_loss(student, teacher, labels, term.weight, T, smoothing)
    if params.loss == "kd":
        return kd_loss(
            student, teacher, labels, term.weight, T, smoothing, standardised=params.standardise
        )
    hard = hard_loss(student, labels, smoothing)
    if params.standardise:
        student, teacher = standardise(student), standardise(teacher)
    soft = _soft(params, T, student, teacher, labels)
    factor = 1.0 if params.loss == "mse" else T**2
    return LossTerms(mixed(hard, factor * soft, term.weight), hard, soft)


def certain(labels: Tensor, like: Tensor) -> Tensor:
    """Logits `[N, C]`, as `like`, of who is sure of the hard labels int64 `[N]`: 0, else -inf.

    The first teacher of a student that teaches itself (Kim et al. 2021).
    """
    nowhere = torch.full_like(like, -torch.inf, requires_grad=False)
    return nowhere.scatter(1, labels[:, None], 0.0)


def _soft(
    params: LossSettings, T: float, student: Tensor, teacher: Tensor, labels: Tensor
) -> Tensor:
    match params.loss:
        case "dkd":
            weights = (params.target_weight, params.other_weight)
            return dkd_loss(student, teacher, labels, T, *weights)
        case "dist":
            return dist_loss(student, teacher, T)
        case "reverse-kl":
            return reverse_kl(student, teacher, T)
        case "js":
            return jensen_shannon(student, teacher, T)
        case "mse":
            return logit_mse(student, teacher)
    raise ValueError(f"loss {params.loss!r} has no soft term of its own")


def _between(first: float, last: float | None, share: float) -> float:
    return first if last is None else first + (last - first) * share
