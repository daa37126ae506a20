"""Hints: an inner layer of the student taught by stored features of the teacher (FitNets).

The regressor that brings the student's features to the teacher's width learns with the student and
is no part of what is published.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.shards.packing import folder_packing
from softlabel.pipeline.teachers.models import PictureModel
from softlabel.pipeline.teachers.sequence_model import Inputs, SequenceModel
from softlabel.pipeline.training.losses import LossTerms
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.params import TrainParams
from softlabel.schemas.sample import POSITIONS


class Hinted(NamedTuple):
    """Student logits `[N, C]`, and its features `[N, d]` as wide as the teacher's.

    Of sequences N are the positions that are no padding, one sample's after the other.
    """

    logits: Tensor
    features: Tensor


class HintedModel(nn.Module):
    """A student that also tells what its layer says, regressed to `width` features.

    layer: path of the layer in `student.model`, as `named_modules` spells it. example: samples as
    the student takes them. While it trains, `forward` gives `Hinted`, else logits alone. Raises
    ParameterError where there is no such layer or it gives no features.
    """

    def __init__(
        self,
        student: PictureModel | SequenceModel,
        layer: str,
        width: int,
        example: Tensor | Inputs,
    ) -> None:
        super().__init__()
        self.student = student
        self._name = layer
        self._heard: object = None
        _layer(student.model, layer).register_forward_hook(self._hear)
        self.regressor = nn.Linear(self._own_width(example), width)

    def forward(self, inputs: Tensor | Inputs) -> Hinted | Tensor:
        """Logits of pictures or sequences, with the regressed features while training."""
        logits: Tensor = self.student(inputs)
        heard, self._heard = self._heard, None
        if not self.training:
            return logits
        return Hinted(logits, self.regressor(self._features(heard, inputs)))

    def _hear(self, layer: nn.Module, inputs: object, output: object) -> None:
        self._heard = output

    def _own_width(self, example: Tensor | Inputs) -> int:
        training = self.student.training
        self.student.eval()
        with torch.no_grad():
            self.student(example)
        self.student.train(training)
        heard, self._heard = self._heard, None
        return self._features(heard, example).shape[1]

    def _features(self, heard: object, inputs: Tensor | Inputs) -> Tensor:
        """What the layer said, a row a picture or a position."""
        if isinstance(inputs, Tensor):
            if isinstance(heard, Tensor) and heard.dim() in (2, 3, 4):
                return pooled(heard)
            wanted = "[N, D], [N, L, D] or [N, D, H, W]"
        else:
            there = inputs[POSITIONS]
            if isinstance(heard, Tensor) and heard.dim() == 3 and heard.shape[:2] == there.shape:
                return heard[there]
            wanted = "[N, L, D] of sequences [N, L]"
        raise ParameterError(
            f"train.hint_layer: {self._name!r} gives no features {wanted}; choose another layer"
        )


def feature_width(labels: LabelSet) -> int:
    """Features that a set stores of each row. Raises DataError where it stores none."""
    codec = folder_packing(labels.folder, labels.manifest).codec
    if isinstance(codec, Factored):
        return int(codec.head.weight.shape[1])
    width = labels.manifest.identity.features
    if width is None:
        raise DataError(
            f"{labels.folder}: stores no features, which hint_layer learns from; infer again with "
            "--features auto, or with --codec factored"
        )
    return width


def with_hint(
    params: TrainParams, epoch: int, terms: LossTerms, own: Tensor, theirs: Tensor
) -> LossTerms:
    """The terms with that of the hint, student's and teacher's features `[N, d]`.

    In the first `hint_epochs` the hint alone is minimised, which reaches the layers up to the
    hinted one (Romero et al. 2015, algorithm 1); after these it has `hint_weight`.
    """
    hint = hint_loss(own, theirs)
    alone = epoch < params.hint_epochs
    total = hint if alone else terms.total + params.hint_weight * hint
    return terms._replace(total=total, hint=hint)


def pooled(features: Tensor) -> Tensor:
    """Features `[N, D]` of `[N, D]`, of tokens `[N, L, D]` or of maps `[N, D, H, W]`, by means."""
    if features.dim() == 4:
        return features.mean(dim=(2, 3))
    return features.mean(dim=1) if features.dim() == 3 else features


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`mean over d of (u - r(v))^2 / 2`, a batch mean (Romero et al. 2015, eq. 3, a sum over d).

    student: regressed features r(v), teacher: stored features u, both `[N, d]`.
    """
    return ((teacher - student) ** 2).mean() / 2


def _layer(student: nn.Module, path: str) -> nn.Module:
    layers: dict[str, nn.Module] = dict(student.named_modules())
    if path in layers and path:
        return layers[path]
    named = ", ".join(name for name in layers if name)
    raise ParameterError(f"train.hint_layer: the student has no layer {path!r}; it has {named}")
