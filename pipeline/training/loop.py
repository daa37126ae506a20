"""The training loop, on Lightning Fabric, from the first step to the last."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

from lightning_fabric import Fabric
from torch import nn

from softlabel.pipeline.prefetch import prefetch
from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.checkpoints import NO_CHECKPOINTS, Checkpoints
from softlabel.pipeline.training.listener import Listener
from softlabel.pipeline.training.probe import InformationProbe
from softlabel.pipeline.training.trainer import Trainer
from softlabel.pipeline.training.validation import Validation
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
    trainer = Trainer(params, fabric, model, steps_per_epoch, fitted_temperature, listener)
    state = trainer.state
    checkpoints.restore(state)
    yield from state.history
    while not trainer.done():
        trainer.go_on()
        whole = [(0, steps_per_epoch)]
        for number, (first, end) in enumerate(spans(state.epoch) if spans else whole):
            if first < end <= state.step:
                continue
            if spans:
                yield Pause(state.epoch, number, state.step == first)
                trainer.go_on()
            if first == end:
                continue
            for batch in prefetch(batches(state.epoch, state.step), BATCHES_AHEAD, "batches"):
                trainer.step(batch)
                checkpoints.after_step(state, state.epoch * steps_per_epoch + state.step)
        record = trainer.end_epoch(validation, probe)
        checkpoints.after_epoch(state)
        yield record
    trainer.judged.settle()
    return trainer.judged.best_epoch
