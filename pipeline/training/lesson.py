"""A part of a batch through the student and its loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from softlabel.pipeline.codecs import in_torch
from softlabel.pipeline.labelset.keys import few
from softlabel.pipeline.teachers.sequence_model import tensors
from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.distillation import certain, distillation_terms, soft_term
from softlabel.pipeline.training.hints import Hinted, with_hint
from softlabel.pipeline.training.losses import LossTerms
from softlabel.pipeline.training.mixing import Mixture
from softlabel.pipeline.training.sparse_losses import SparseTeacher
from softlabel.schemas.errors import DataError
from softlabel.schemas.params import TrainParams


class Outcome(NamedTuple):
    """The terms of the loss, student logits `[N, C]`, and the labels int64 `[N]` to compare with.

    labels: of pictures that are mixed, those that have the larger share.
    """

    terms: LossTerms
    student: Tensor
    labels: Tensor


class Lesson:
    """Asks `student` about pictures and holds its answers against their targets.

    fitted_temperature: divides the teacher's logits alone, before T divides both sides.
    """

    def __init__(
        self, params: TrainParams, fabric: Fabric, student: nn.Module, fitted_temperature: float
    ) -> None:
        self._params = params
        self._fabric = fabric
        self._student = student
        self._fitted = fitted_temperature

    def plain(self, part: TrainingBatch, epoch: int) -> Outcome:
        """The samples as they are. Raises DataError where they give nothing to learn from."""
        self._check_labels(part)
        said = self._student(self._inputs(part))
        student = said.logits if isinstance(said, Hinted) else said
        labels = self._tensor(part.labels)
        teacher = self._teacher(part)
        terms = self._of_all_labelled(self._terms(epoch, student, teacher, labels), part, epoch)
        if isinstance(said, Hinted) and part.features is not None:
            features = self._tensor(part.features).float()
            terms = with_hint(self._params, epoch, terms, said.features.float(), features)
        return Outcome(terms, student, labels)

    def mixed(
        self, part: TrainingBatch, partner: TrainingBatch, mixture: Mixture, epoch: int
    ) -> Outcome:
        """The pictures mixed with those of `partner`, and so their targets.

        Kept classes are each side's own: there the losses against both are mixed, which for the
        cross-entropy is the same.
        """
        self._check_labels(part)
        own, other = self._tensor(part.pixels), self._tensor(partner.pixels)
        student: Tensor = self._student(mixture.pixels(own, other))
        teachers = [self._teacher(part), self._teacher(partner)]
        if isinstance(teachers[0], Tensor) and isinstance(teachers[1], Tensor):
            mse = self._params.loss == "mse"
            T = 1.0 if mse else soft_term(self._params, epoch).temperature
            teachers = [mixture.logits(teachers[0], teachers[1], T)] * 2
        labels = [self._tensor(part.labels), self._tensor(partner.labels)]
        sides = [
            self._of_all_labelled(self._terms(epoch, student, teacher, hard), side, epoch)
            for side, teacher, hard in zip((part, partner), teachers, labels, strict=True)
        ]
        larger = labels[0] if mixture.share >= 0.5 else labels[1]
        return Outcome(mixture.terms(*sides), student, larger)

    def _inputs(self, part: TrainingBatch) -> Any:
        if part.pixels.dtype.names is None:
            return self._tensor(part.pixels)
        return self._fabric.to_device(tensors(part.pixels))

    def _check_labels(self, part: TrainingBatch) -> None:
        if not len(part.labels):
            raise DataError(
                f"train: of {few(part.keys.to_pylist())} every position is padding; leave such "
                "rows out, or take larger batches"
            )
        if self._params.loss != "dkd" or not part.partly:
            return
        unknown = np.flatnonzero(part.labels < 0)
        if len(unknown):
            ends = np.arange(1, len(part.keys) + 1)
            if part.lengths is not None:
                ends = np.cumsum(part.lengths)
            row = int(np.searchsorted(ends, unknown[0], side="right"))
            what = "no hard label" if part.lengths is None else "a position without a hard label"
            raise DataError(
                f"train: key {part.keys[row].as_py()!r} has {what}, and loss 'dkd' needs one "
                "everywhere; label it, or use loss 'kd'"
            )

    def _terms(
        self, epoch: int, student: Tensor, teacher: Tensor | SparseTeacher | None, labels: Tensor
    ) -> LossTerms:
        if teacher is None and self._params.targets == "self":
            teacher = certain(labels, student.float())
        term = soft_term(self._params, epoch)
        return distillation_terms(self._params, term, student.float(), teacher, labels)

    def _of_all_labelled(self, terms: LossTerms, part: TrainingBatch, epoch: int) -> LossTerms:
        """The terms with the hard one as large as the step's mean wants it.

        That is a mean over what has a hard label, of which a part may have more or fewer than its
        share of all.
        """
        if not part.partly:
            return terms
        factor = part.labelled_share / part.share if part.share else 0.0
        weight = 1.0 if terms.soft is None else 1 - soft_term(self._params, epoch).weight
        total = terms.total + weight * (factor - 1) * terms.hard
        return terms._replace(total=total, hard=factor * terms.hard)

    def _teacher(self, part: TrainingBatch) -> Tensor | SparseTeacher | None:
        if part.sparse is not None:
            ids = self._tensor(part.sparse.ids.astype("int64"))
            logits, tail = self._tensor(part.sparse.logits), self._tensor(part.sparse.tail_lse)
            return SparseTeacher(ids, logits / self._fitted, tail)
        if part.factored is not None:
            features = self._tensor(part.factored.features)
            top1 = self._tensor(part.factored.top1.astype("int64"))
            columns = {"features": features, "top1": top1}
            return in_torch.decode(part.factored.codec, columns, T=1.0) / self._fitted
        if part.teacher is None:
            return None
        return self._tensor(part.teacher).float() / self._fitted

    def _tensor(self, array: Any) -> Tensor:
        return self._fabric.to_device(torch.from_numpy(array))
