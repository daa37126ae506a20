"""The training loop, on Lightning Fabric, from the first step to the last."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import nn

from softlabel.pipeline.prefetch import prefetch
from softlabel.pipeline.training.averaging import Judged
from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.checkpoints import NO_CHECKPOINTS, Checkpoints
from softlabel.pipeline.training.fabric import of_all_ranks
from softlabel.pipeline.training.lesson import Lesson, Outcome
from softlabel.pipeline.training.listener import Listener
from softlabel.pipeline.training.means import EpochMeans
from softlabel.pipeline.training.mixing import Mixture, draw_mixture
from softlabel.pipeline.training.optimizing import make_optimizer, make_schedule
from softlabel.pipeline.training.probe import InformationProbe, measure_information
from softlabel.pipeline.training.state import Stateful, TrainingState
from softlabel.pipeline.training.validation import Validation, validate
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports.training import EpochRecord

BATCHES_AHEAD = 4

# The batches of an epoch or a span of it, from the one with this number on.
EpochBatches = Callable[[int, int], Iterator[TrainingBatch]]


def train(
    params: TrainParams,
    fabric: Fabric,
    model: nn.Module,
    batches: EpochBatches,
    steps_per_epoch: int,
    validation: Validation | None,
    fitted_temperature: float = 1.0,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    listener: Listener | None = None,
    probe: InformationProbe | None = None,
) -> Generator[EpochRecord, None, int | None]:
    """The epochs of `train_in_spans`, none in spans; returns and raises as that does."""
    going = train_in_spans(
        params,
        fabric,
        model,
        batches,
        steps_per_epoch,
        validation,
        fitted_temperature,
        checkpoints,
        listener,
        probe,
    )
    while True:
        try:
            item = next(going)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if isinstance(item, EpochRecord):
            yield item


class Pause(NamedTuple):
    """Before a span of an epoch, both counted from 0; fresh: nothing of the span is done yet."""

    epoch: int
    span: int
    fresh: bool


def train_in_spans(
    params: TrainParams,
    fabric: Fabric,
    model: nn.Module,
    batches: EpochBatches,
    steps_per_epoch: int,
    validation: Validation | None,
    fitted_temperature: float = 1.0,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    listener: Listener | None = None,
    probe: InformationProbe | None = None,
    spans: Callable[[int], Sequence[tuple[int, int]]] | None = None,
) -> Generator[EpochRecord | Pause, None, int | None]:
    """Train `model` in place, which maps uint8 `[N, H, W, C]` to logits `[N, classes]` or `Hinted`.

    Yields every finished epoch, those before a checkpoint too, and stands still until the next one
    is asked for. `batches(epoch, first)` gives the epoch's batches from number `first` on;
    `listener` keeps what the student says of them for later epochs. `fitted_temperature` divides
    the teacher's logits alone, before T divides both sides. `probe` is what mutual information is
    estimated on. With several ranks each has its share of the batches, and the first validates.

    spans: steps `first` to `end` of an epoch; before each it stands still too, and yields a pause,
    and `batches` ends with the span.

    Returns the epoch whose weights the model has in the end; None for the last, or their average.
    Raises ParameterError, and DataError where the loss is not finite.
    """
    optimizer = make_optimizer(params, model)
    schedule = make_schedule(params, optimizer, steps_per_epoch)
    wrapped, stepper = fabric.setup(_compiled(params, model), optimizer)
    lesson = Lesson(params, fabric, wrapped, fitted_temperature)
    means, judged = EpochMeans(fabric), Judged(params, model)
    heard: dict[str, Stateful] = {} if listener is None else {"listener": listener}
    state = TrainingState(
        fabric,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        precision=fabric.strategy.precision,
        means=means,
        judged=judged,
        **heard,
    )
    checkpoints.restore(state)
    yield from state.history
    while state.epoch < params.epochs and not judged.enough(state.epoch):
        wrapped.train()
        if state.step == 0:
            means.begin(float(schedule.get_last_lr()[0]))
        whole = [(0, steps_per_epoch)]
        for number, (first, end) in enumerate(spans(state.epoch) if spans else whole):
            if first < end <= state.step:
                continue
            if spans:
                yield Pause(state.epoch, number, state.step == first)
                wrapped.train()
            if first == end:
                continue
            for batch in prefetch(batches(state.epoch, state.step), BATCHES_AHEAD, "batches"):
                stepper.zero_grad()
                batch = of_all_ranks(batch, fabric)
                for part, outcome in _gradients(params, fabric, wrapped, lesson, batch, state):
                    means.add(*outcome)
                    if listener is not None:
                        listener.hear(part, outcome.student.detach())
                if params.clip_norm is not None:
                    fabric.clip_gradients(wrapped, stepper, max_norm=params.clip_norm)
                stepper.step()
                schedule.step()
                judged.after_step()
                state.step += 1
                checkpoints.after_step(state, state.epoch * steps_per_epoch + state.step)
        record = means.record(state.epoch)
        figures = {}
        if fabric.is_global_zero:
            figures = validate(judged.model, fabric, validation)
            figures |= measure_information(judged.model, fabric, probe)
        record = record.model_copy(update=fabric.broadcast(figures))
        judged.after_epoch(record)
        if listener is not None:
            record = record.model_copy(update={"unseen": listener.end_epoch()})
        state.end_epoch(record)
        checkpoints.after_epoch(state)
        yield record
    judged.settle()
    return judged.best_epoch


def _compiled(params: TrainParams, model: nn.Module) -> nn.Module:
    return torch.compile(model) if params.compile else model  # type: ignore[return-value]


def _gradients(
    params: TrainParams,
    fabric: Fabric,
    wrapped: nn.Module,
    lesson: Lesson,
    batch: TrainingBatch,
    state: TrainingState,
) -> Iterator[tuple[TrainingBatch, Outcome]]:
    """Add up a batch's gradients, part by part; yields the parts that count, and what they gave."""
    mixture = draw_mixture(params, batch.pixels, state.epoch, state.step, fabric.global_rank)
    parts = _with_partners(batch, mixture, params.accumulate)
    for part, partner in parts:
        with fabric.no_backward_sync(wrapped, enabled=part is not parts[-1][0]):  # type: ignore[arg-type]
            if mixture is None or partner is None:
                outcome = lesson.plain(part, state.epoch)
            else:
                outcome = lesson.mixed(part, partner, mixture, state.epoch)
            # The gradients of the ranks are averaged: together they make the batch's mean.
            fabric.backward(outcome.terms.total * (part.share * fabric.world_size))
        if part.share:
            yield part, outcome


def _with_partners(
    batch: TrainingBatch, mixture: Mixture | None, number: int
) -> list[tuple[TrainingBatch, TrainingBatch | None]]:
    """The parts of a batch, and of those that they are mixed with."""
    if mixture is None:
        return [(part, None) for part in batch.parts(number)]
    partners = batch.take(mixture.partners)
    return list(zip(batch.parts(number), partners.parts(number), strict=True))
