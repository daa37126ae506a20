"""A model run over a source in its order, and how right it is on samples it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from softlabel.pipeline.evaluation.metrics import ClassifierMetrics
from softlabel.pipeline.labelset.rejects import RejectedRows
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.sequence_model import tensors
from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.windows import cut
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Reject
from softlabel.schemas.sample import Array

VALIDATION_ROWS = 1024
# Logits of a sequence are as many as those of some hundred samples.
VALIDATION_SEQUENCES = 32
MOST_POSITIONS = 2**18


class Validation(NamedTuple):
    """Samples that are not trained on. order: the student's class of each of the source's."""

    source: Source
    order: tuple[int, ...] | None


def validate(model: nn.Module, fabric: Fabric, validation: Validation | None) -> dict[str, float]:
    """Accuracy and NLL in nats under the names that an epoch's record has for them.

    Raises DataError where no sample has a hard label or the logits are not finite.
    """
    if validation is None:
        return {}
    metrics = ClassifierMetrics(bins=1)
    pictures = validation.source.numbers is None
    rows = batch_rows(validation.source, VALIDATION_ROWS if pictures else VALIDATION_SEQUENCES)
    for logits, batch in predict(model, fabric, validation.source, rows):
        known = batch.labels >= 0
        try:
            hard = batch.labels[known]
            order = validation.order
            hard = hard if order is None else np.asarray(order)[hard]
            metrics.add(logits.numpy()[known], hard)
        except ValueError as error:
            raise DataError(f"train: validation: {error}; lower --learning-rate") from error
    if metrics.rows == 0:
        raise DataError(f"{validation.source.path}: has no hard labels to validate on")
    return {"validation_accuracy": metrics.accuracy, "validation_nll": metrics.nll}


def predict(
    model: nn.Module,
    fabric: Fabric,
    source: Source,
    batch_size: int,
    rejects: Iterable[Reject] = (),
) -> Iterator[tuple[Tensor, TrainingBatch]]:
    """Logits `[N, classes]` on the CPU for every batch of `source`, in its order.

    Of sequences those of all positions that are no padding, of pictures on a grid of all. Of views
    all, those of a sample in one batch, which may be the larger for it. rejects: samples that are
    not read.
    """
    model.eval()
    for unit in cut(source.files, RejectedRows(rejects), max(1, batch_size // source.views)):
        samples = source.read(unit)
        lengths = samples.lengths
        logits = says(model, fabric, samples.inputs)
        labels = samples.hard_labels().astype("int64")
        batch = TrainingBatch(samples.keys, samples.inputs, labels, None, lengths=lengths)
        yield logits, batch


def batch_rows(source: Source, most: int) -> int:
    """So many samples at once, or fewer where these are pictures of many positions."""
    if source.grid is None:
        return most
    return min(most, max(1, MOST_POSITIONS // math.prod(source.grid)))


def says(model: nn.Module, fabric: Fabric, inputs: Array) -> Tensor:
    """Logits on the CPU: `[N, classes]` of pictures, of positions `[P, classes]`."""
    numbers = inputs.dtype.names is not None
    given: Any = tensors(inputs) if numbers else torch.from_numpy(inputs.copy())
    with torch.no_grad(), fabric.autocast():
        logits: Tensor = model(fabric.to_device(given))
    return logits.float().cpu()
