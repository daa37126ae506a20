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
    """The epochs of `train_in_spans`, none in spans; arguments as for `Trainer`."""
    trainer = Trainer(
        params, fabric, model, steps_per_epoch, validation, fitted_temperature, listener, probe
    )
    going = train_in_spans(trainer, batches, checkpoints)
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
    trainer: Trainer,
    batches: EpochBatches,
    checkpoints: Checkpoints,
    spans: Callable[[int], Sequence[tuple[int, int]]] | None = None,
) -> Generator[EpochRecord | Pause, None, int | None]:
    """Train from the checkpoint that stands, or from the first step, to the last epoch.

    Yields every finished epoch, those before a checkpoint too, and stands still until the next one
    is asked for. `batches(epoch, first)` gives the epoch's batches from number `first` on. With
    several ranks each has its share of the batches, and the first validates.

    spans: steps `first` to `end` of an epoch; before each it stands still too, and yields a pause,
    and `batches` ends with the span.

    Returns the epoch whose weights the model has in the end; None for the last, or their average.
    Raises ParameterError, and DataError where the loss is not finite.
    """
    state = trainer.state
    checkpoints.restore(state)
    yield from state.history
    while not trainer.done():
        trainer.go_on()
        whole = [(0, trainer.steps_per_epoch)]
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
                done = state.epoch * trainer.steps_per_epoch + state.step
                checkpoints.after_step(state, done)
        record = trainer.end_epoch()
        checkpoints.after_epoch(state)
        yield record
    trainer.judged.settle()
    return trainer.judged.best_epoch
