"""The training loop, on Lightning Fabric, from the first step to the last."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from softlabel.pipeline.evaluation.metrics import ClassifierMetrics
from softlabel.pipeline.prefetch import prefetch
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.training.distillation import distillation_terms, soft_term
from softlabel.pipeline.training.join import TrainingBatch
from softlabel.pipeline.training.losses import LossTerms
from softlabel.pipeline.training.sparse_losses import SparseTeacher
from softlabel.schemas.errors import DataError, EnvironmentFault
from softlabel.schemas.labelset import Segment
from softlabel.schemas.params import Device, TrainParams
from softlabel.schemas.reports import EpochRecord

BATCHES_AHEAD = 4
VALIDATION_ROWS = 1024


class Validation(NamedTuple):
    """Samples that are not trained on. order: the student's class of each of the source's."""

    source: Source
    order: tuple[int, ...] | None


EpochBatches = Callable[[int], Iterator[TrainingBatch]]


def train(
    params: TrainParams,
    fabric: Fabric,
    model: nn.Module,
    batches: EpochBatches,
    steps_per_epoch: int,
    validation: Validation | None,
    on_epoch: Callable[[EpochRecord], None],
    fitted_temperature: float = 1.0,
) -> None:
    """Train `model` in place, which maps uint8 `[N, H, W, C]` to logits `[N, classes]`.

    `batches(epoch)` gives the epoch's batches; `on_epoch` hears of every finished epoch.
    `fitted_temperature` divides the teacher's logits alone, before T divides both sides. Raises
    DataError where the loss is not finite.
    """
    optimizer = _optimizer(params, model)
    schedule = _schedule(params, optimizer, params.epochs * steps_per_epoch)
    wrapped, optimizer = fabric.setup(model, optimizer)
    for epoch in range(params.epochs):
        wrapped.train()
        means = _EpochMeans()
        rate = float(schedule.get_last_lr()[0])
        term = soft_term(params, epoch)
        for batch in prefetch(batches(epoch), BATCHES_AHEAD, "batches"):
            labels = fabric.to_device(torch.from_numpy(batch.labels))
            student = wrapped(fabric.to_device(torch.from_numpy(batch.pixels)))
            teacher = _teacher(fabric, batch, fitted_temperature)
            terms = distillation_terms(params, term, student.float(), teacher, labels)
            optimizer.zero_grad()
            fabric.backward(terms.total)
            optimizer.step()
            schedule.step()
            means.add(terms, student, labels)
        record = means.record(epoch, rate)
        on_epoch(record.model_copy(update=_validate(wrapped, fabric, validation)))


def make_fabric(device: Device, precision: str) -> Fabric:
    """Fabric on one device. Raises EnvironmentFault where CUDA is asked for and not had."""
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault(
            "device 'cuda' was asked for and torch sees no CUDA device; pass --device cpu, or "
            "install a CUDA build of torch on a machine with a GPU"
        )
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    with warnings.catch_warnings():
        # Fabric advises on 16-bit arithmetic on a CPU; the user chose it.
        warnings.simplefilter("ignore")
        return Fabric(accelerator="cuda" if cuda else "cpu", devices=1, precision=precision)  # type: ignore[arg-type]


def device_name(fabric: Fabric) -> str:
    """The device that `fabric` trains on, as people call it."""
    if fabric.device.type == "cuda":
        return torch.cuda.get_device_name(fabric.device)
    return f"cpu, {torch.get_num_threads()} threads"


def predict(
    model: nn.Module, fabric: Fabric, source: Source, batch_size: int
) -> Iterator[tuple[Tensor, TrainingBatch]]:
    """Logits `[N, classes]` on the CPU for every batch of `source`, in its order."""
    model.eval()
    for file in source.files:
        for first in range(0, file.rows, batch_size):
            rows = min(batch_size, file.rows - first)
            samples = source.read([Segment(source=file.name, first=first, rows=rows)])
            pixels = torch.from_numpy(samples.inputs.copy())
            with torch.no_grad():
                logits = model(fabric.to_device(pixels)).float().cpu()
            labels = samples.hard_labels().astype("int64")
            yield logits, TrainingBatch(samples.keys, samples.inputs, labels, None)


def _teacher(
    fabric: Fabric, batch: TrainingBatch, fitted_temperature: float
) -> Tensor | SparseTeacher | None:
    if batch.sparse is not None:
        ids, logits, tail = (
            fabric.to_device(torch.from_numpy(part))
            for part in (
                batch.sparse.ids.astype("int64"),
                batch.sparse.logits,
                batch.sparse.tail_lse,
            )
        )
        return SparseTeacher(ids, logits / fitted_temperature, tail)
    if batch.teacher is None:
        return None
    return fabric.to_device(torch.from_numpy(batch.teacher)).float() / fitted_temperature


def _optimizer(params: TrainParams, model: nn.Module) -> torch.optim.Optimizer:
    weights, rate, decay = model.parameters(), params.learning_rate, params.weight_decay
    if params.optimizer == "sgd":
        return torch.optim.SGD(weights, rate, momentum=0.9, weight_decay=decay, nesterov=True)
    return torch.optim.AdamW(weights, rate, weight_decay=decay)


def _schedule(
    params: TrainParams, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if params.schedule == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)


def _validate(model: nn.Module, fabric: Fabric, validation: Validation | None) -> dict[str, float]:
    if validation is None:
        return {}
    metrics = ClassifierMetrics(bins=1)
    for logits, batch in predict(model, fabric, validation.source, VALIDATION_ROWS):
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


@dataclass
class _EpochMeans:
    """Sums of the terms over an epoch, weighted by batch size; kept on the training device."""

    rows: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, terms: LossTerms, student: Tensor, labels: Tensor) -> None:
        rows = len(labels)
        self.rows += rows
        hits = (student.argmax(dim=1) == labels).sum() / rows
        named = {
            "loss": terms.total,
            "hard": terms.hard,
            "soft": terms.soft,
            "soft_kl": terms.soft_kl,
            "train_accuracy": hits,
        }
        for name, value in named.items():
            if value is not None:
                self.sums[name] = self.sums.get(name, 0) + value.detach() * rows

    def record(self, epoch: int, rate: float) -> EpochRecord:
        """The epoch's means; raises DataError where the loss is not finite."""
        means = {name: float(total) / self.rows for name, total in self.sums.items()}
        if not math.isfinite(means["loss"]):
            raise DataError(
                f"train: the loss is {means['loss']} in epoch {epoch}; lower --learning-rate"
            )
        return EpochRecord(
            epoch=epoch,
            learning_rate=rate,
            loss=means["loss"],
            hard=means["hard"],
            soft=means.get("soft"),
            soft_kl=means.get("soft_kl"),
            train_accuracy=means["train_accuracy"],
        )
