"""The training loop, on Lightning Fabric, from the first step to the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from softlabel.pipeline.prefetch import prefetch
from softlabel.pipeline.training.checkpoints import Checkpoints
from softlabel.pipeline.training.distillation import distillation_terms, soft_term
from softlabel.pipeline.training.join import TrainingBatch
from softlabel.pipeline.training.means import EpochMeans
from softlabel.pipeline.training.optimizing import make_optimizer, make_schedule
from softlabel.pipeline.training.sparse_losses import SparseTeacher
from softlabel.pipeline.training.state import TrainingState
from softlabel.pipeline.training.validation import Validation, validate
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports import EpochRecord

BATCHES_AHEAD = 4

# The batches of an epoch, from the one with this number on.
EpochBatches = Callable[[int, int], Iterator[TrainingBatch]]


def train(
    params: TrainParams,
    fabric: Fabric,
    model: nn.Module,
    batches: EpochBatches,
    steps_per_epoch: int,
    validation: Validation | None,
    on_epoch: Callable[[EpochRecord], None],
    fitted_temperature: float = 1.0,
    checkpoints: Checkpoints | None = None,
    on_batch: Callable[[TrainingBatch, Tensor], None] | None = None,
) -> None:
    """Train `model` in place, which maps uint8 `[N, H, W, C]` to logits `[N, classes]`.

    `batches(epoch, first)` gives the epoch's batches from number `first` on; `on_epoch` hears of
    every finished epoch, of those before a checkpoint too, and `on_batch` of every batch trained
    on, with the student's logits. `fitted_temperature` divides the teacher's logits alone, before
    T divides both sides. Raises DataError where the loss is not finite.
    """
    optimizer = make_optimizer(params, model)
    schedule = make_schedule(params, optimizer, params.epochs * steps_per_epoch)
    means = EpochMeans()
    state = TrainingState(
        {
            "model": model,
            "optimizer": optimizer,
            "schedule": schedule,
            "precision": fabric.strategy.precision,
            "means": means,
        }
    )
    wrapped, stepper = fabric.setup(model, optimizer)
    if checkpoints is not None:
        checkpoints.restore(state)
    for record in state.history:
        on_epoch(record)
    while state.epoch < params.epochs:
        wrapped.train()
        term = soft_term(params, state.epoch)
        if state.step == 0:
            means.begin(float(schedule.get_last_lr()[0]))
        for batch in prefetch(batches(state.epoch, state.step), BATCHES_AHEAD, "batches"):
            labels = fabric.to_device(torch.from_numpy(batch.labels))
            student = wrapped(fabric.to_device(torch.from_numpy(batch.pixels)))
            teacher = _teacher(fabric, batch, fitted_temperature)
            terms = distillation_terms(params, term, student.float(), teacher, labels)
            stepper.zero_grad()
            fabric.backward(terms.total)
            stepper.step()
            schedule.step()
            means.add(terms, student, labels)
            if on_batch is not None:
                on_batch(batch, student.detach())
            state.step += 1
            if checkpoints is not None:
                checkpoints.after_step(state, state.epoch * steps_per_epoch + state.step)
        record = means.record(state.epoch)
        record = record.model_copy(update=validate(wrapped, fabric, validation))
        state.end_epoch(record)
        if checkpoints is not None:
            checkpoints.after_epoch(state)
        on_epoch(record)


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
