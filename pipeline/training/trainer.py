"""A model with its optimiser: what a step changes, and what an epoch comes to."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch import nn

from softlabel.pipeline.training.averaging import Judged
from softlabel.pipeline.training.batch import TrainingBatch
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


class Trainer:
    """Takes steps with `model`, in place, and keeps what they came to.

    model: maps uint8 `[N, H, W, C]` to logits `[N, classes]` or `Hinted`. fitted_temperature:
    divides the teacher's logits alone, before T divides both sides. listener: keeps what the
    student says of a batch for later epochs. probe: what mutual information is estimated on.
    state: all that the next step depends on, for checkpoints. judged: the weights that are
    validated. Raises ParameterError.
    """

    def __init__(
        self,
        params: TrainParams,
        fabric: Fabric,
        model: nn.Module,
        steps_per_epoch: int,
        validation: Validation | None,
        fitted_temperature: float = 1.0,
        listener: Listener | None = None,
        probe: InformationProbe | None = None,
    ) -> None:
        self._params, self._fabric, self._listener = params, fabric, listener
        self._validation, self._probe = validation, probe
        self.steps_per_epoch = steps_per_epoch
        optimizer = make_optimizer(params, model)
        self._schedule = make_schedule(params, optimizer, steps_per_epoch)
        self._model, self._stepper = fabric.setup(_compiled(params, model), optimizer)
        self._lesson = Lesson(params, fabric, self._model, fitted_temperature)
        self._means, self.judged = EpochMeans(fabric), Judged(params, model)
        heard: dict[str, Stateful] = {} if listener is None else {"listener": listener}
        self.state = TrainingState(
            fabric,
            model=model,
            optimizer=optimizer,
            schedule=self._schedule,
            precision=fabric.strategy.precision,
            means=self._means,
            judged=self.judged,
            **heard,
        )

    def done(self) -> bool:
        """Whether no epoch is left, or patience has ended."""
        epoch = self.state.epoch
        return epoch >= self._params.epochs or self.judged.enough(epoch)

    def go_on(self) -> None:
        """Make ready for the next step, the first of an epoch or another."""
        self._model.train()
        if self.state.step == 0:
            self._means.begin(float(self._schedule.get_last_lr()[0]))

    def step(self, batch: TrainingBatch) -> None:
        """Learn from this rank's part of a batch."""
        self._stepper.zero_grad()
        for part, outcome in self._gradients(of_all_ranks(batch, self._fabric)):
            self._means.add(*outcome)
            if self._listener is not None:
                self._listener.hear(part, outcome.student.detach())
        if self._params.clip_norm is not None:
            self._fabric.clip_gradients(self._model, self._stepper, max_norm=self._params.clip_norm)
        self._stepper.step()
        self._schedule.step()
        self.judged.after_step()
        self.state.step += 1

    def end_epoch(self) -> EpochRecord:
        """What the epoch came to, with the first rank's measurements, the same on every rank."""
        record = self._means.record(self.state.epoch)
        figures = {}
        if self._fabric.is_global_zero:
            figures = validate(self.judged.model, self._fabric, self._validation)
            figures |= measure_information(self.judged.model, self._fabric, self._probe)
        record = record.model_copy(update=self._fabric.broadcast(figures))
        self.judged.after_epoch(record)
        if self._listener is not None:
            record = record.model_copy(update={"unseen": self._listener.end_epoch()})
        self.state.end_epoch(record)
        return record

    def _gradients(self, batch: TrainingBatch) -> Iterator[tuple[TrainingBatch, Outcome]]:
        """Add up a batch's gradients, part by part; yields the parts that count, with outcomes."""
        fabric, lesson, epoch = self._fabric, self._lesson, self.state.epoch
        rank = fabric.global_rank
        mixture = draw_mixture(self._params, batch.pixels, epoch, self.state.step, rank)
        parts = _with_partners(batch, mixture, self._params.accumulate)
        for part, partner in parts:
            more = part is not parts[-1][0]
            with fabric.no_backward_sync(self._model, enabled=more):
                if mixture is None or partner is None:
                    outcome = lesson.plain(part, epoch)
                else:
                    outcome = lesson.mixed(part, partner, mixture, epoch)
                # The gradients of the ranks are averaged: together they make the batch's mean.
                fabric.backward(outcome.terms.total * (part.share * fabric.world_size))
            if part.share:
                yield part, outcome


def _compiled(params: TrainParams, model: nn.Module) -> nn.Module:
    return torch.compile(model) if params.compile else model  # type: ignore[return-value]


def _with_partners(
    batch: TrainingBatch, mixture: Mixture | None, number: int
) -> list[tuple[TrainingBatch, TrainingBatch | None]]:
    """The parts of a batch, and of those that they are mixed with."""
    if mixture is None:
        return [(part, None) for part in batch.parts(number)]
    partners = batch.take(mixture.partners)
    return list(zip(batch.parts(number), partners.parts(number), strict=True))
