"""The losses of train-student as a module for anybody's training loop."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationError, create_model
from torch import Tensor, nn

from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.training.distillation import SoftTerm, distillation_terms
from softlabel.pipeline.training.losses import LossTerms
from softlabel.pipeline.training.sparse_losses import SparseTeacher
from softlabel.pipeline.training.targets import PackedTargets, Targets, factored_logits
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.model import Record
from softlabel.schemas.params import TrainParams

SETTINGS = (
    "loss",
    "soft_weight",
    "temperature",
    "label_smoothing",
    "standardise",
    "target_weight",
    "other_weight",
)
# Their types and ranges are declared where train-student has them.
_Settings: Any = create_model(
    "DistillationLoss",
    __base__=Record,
    **{
        name: (field.annotation, field)
        for name, field in TrainParams.model_fields.items()
        if name in SETTINGS
    },
)  # type: ignore[call-overload]
# As far as a product of two float32 numbers may differ.
SAME_TEMPERATURE = 1e-5

Loss = Literal["hard", "kd", "dkd", "dist", "mse", "reverse-kl", "js"]


class DistillationLoss(nn.Module):
    """`(1-a) H(y', s) + a T^2 H(t_T, s_T)`, or with another soft loss of `train-student`.

    soft_weight, temperature: a and T; both may be set anew between steps. label_smoothing: of the
    hard term alone. loss, standardise, target_weight, other_weight: as in train-student.
    fitted_temperature: what `calibrate` fitted; it divides the teacher's logits alone. labels: the
    label set of the targets, needed where it is `factored`: its head is multiplied on the
    student's device.

    Raises ParameterError for settings out of range or that the label set cannot serve.
    """

    def __init__(
        self,
        soft_weight: float = 0.9,
        temperature: float = 4.0,
        label_smoothing: float = 0.0,
        *,
        loss: Loss = "kd",
        standardise: bool = False,
        target_weight: float = 1.0,
        other_weight: float = 8.0,
        fitted_temperature: float = 1.0,
        labels: LabelSet | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.soft_weight = soft_weight
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.standardise = standardise
        self.target_weight = target_weight
        self.other_weight = other_weight
        self.fitted_temperature = fitted_temperature
        self._codec = None if labels is None else labels.codec
        self._check()
        if labels is not None:
            labels.check_temperature(fitted_temperature * temperature)

    def forward(self, student: Tensor, targets: Targets | None, hard_labels: Tensor) -> Tensor:
        """The loss to minimise, `[]`; see `terms`."""
        return self.terms(student, targets, hard_labels).total

    def terms(self, student: Tensor, targets: Targets | None, hard_labels: Tensor) -> LossTerms:
        """The loss of a batch and its raw terms, all batch means.

        student: logits `[N, C]`. targets: what `DistillationDataset` gave with the samples, or
        any logits of the teacher, `[N, C]`. hard_labels: int64 `[N]`, -100 where unknown. Raises
        ParameterError where these do not fit together.
        """
        _check_shapes(student, targets, hard_labels)
        if self.loss == "dkd" and bool((hard_labels < 0).any()):
            raise ParameterError(
                "DistillationLoss: loss 'dkd' needs every hard label, and some are unknown (-100); "
                "leave those out, or take loss 'kd'"
            )
        teacher = None if self.loss == "hard" else self._teacher(student, targets)
        term = SoftTerm(self.temperature, self.soft_weight)
        return distillation_terms(self, term, student.float(), teacher, hard_labels)

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in SETTINGS)

    def _teacher(self, student: Tensor, targets: Targets | None) -> Tensor | SparseTeacher:
        if targets is None:
            raise ParameterError(
                f"DistillationLoss: loss {self.loss!r} needs soft targets and got None; give the "
                "dataset a label set, or choose loss='hard'"
            )
        targets = targets.to(student.device)
        if isinstance(targets, Tensor):
            return targets.float() / self.fitted_temperature
        if targets.temperature is not None:
            return self._kept(targets, targets.temperature)
        if not isinstance(self._codec, Factored):
            raise ParameterError(
                "DistillationLoss: the targets are features of a factored label set; pass that as "
                "labels=, for its head"
            )
        return factored_logits(self._codec, targets) / self.fitted_temperature

    def _kept(self, targets: PackedTargets, temperature: float) -> SparseTeacher:
        if self.loss != "kd" or self.standardise:
            wanted = "standardise" if self.standardise else f"loss {self.loss!r}"
            raise ParameterError(
                f"DistillationLoss: {wanted} needs the logits of all classes, and the targets are "
                "those that a topk label set kept; give the dataset tail='spread', or use loss 'kd'"
            )
        used = self.fitted_temperature * self.temperature
        if abs(used - temperature) > SAME_TEMPERATURE * used:
            raise ParameterError(
                f"DistillationLoss: the targets' tail is that of temperature {temperature:g}, and "
                f"the loss uses {used:g}; give the dataset temperature={used:g}"
            )
        columns = targets.columns
        logits = columns["logits"] / self.fitted_temperature
        return SparseTeacher(columns["ids"], logits, columns["tail_lse"])

    def _check(self) -> None:
        try:
            _Settings(**{name: getattr(self, name) for name in SETTINGS})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise ParameterError(
                f"DistillationLoss: {problem['loc'][0]}: {problem['msg']}; got {problem['input']!r}"
            ) from error
        if not self.fitted_temperature > 0:
            raise ParameterError(
                f"DistillationLoss: fitted_temperature must be above 0, got "
                f"{self.fitted_temperature!r}"
            )


def _check_shapes(student: Tensor, targets: Targets | None, hard_labels: Tensor) -> None:
    rows = tuple(student.shape[:1])
    if student.ndim != 2 or tuple(hard_labels.shape) != rows:
        raise ParameterError(
            f"DistillationLoss: takes student logits [N, C] and hard labels [N], got "
            f"{list(student.shape)} and {list(hard_labels.shape)}; a DataLoader over a "
            "DistillationDataset takes batch_size=None"
        )
    if isinstance(targets, Tensor) and targets.shape != student.shape:
        raise ParameterError(
            f"DistillationLoss: targets are {list(targets.shape)}, the student's logits "
            f"{list(student.shape)}; student and teacher need the same classes in the same order"
        )
