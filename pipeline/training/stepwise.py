"""Members that hear each other every few steps, where epochs would be too long.

After the burn-in an epoch is cut into spans. Before each one every member says, with its weights of
then, what it thinks of the samples that the others are about to meet in it, so that no prediction
grows older than a span (Anil et al. 2018, section 2.1: teachers may be stale). What is said of a
span is a label set of its own.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import numpy as np

from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.crew import Crew
from softlabel.pipeline.training.distillation import soft_term
from softlabel.pipeline.training.exchange import Exchange, taught
from softlabel.pipeline.training.inputs import TrainingInputs
from softlabel.pipeline.training.listener import writing
from softlabel.pipeline.training.loop import Pause, train_in_spans
from softlabel.pipeline.training.members import Member, exchange_of, samples_of, start
from softlabel.pipeline.training.memory import LabelMemory
from softlabel.pipeline.training.state import Generators
from softlabel.pipeline.training.trainer import Trainer
from softlabel.pipeline.training.validation import says
from softlabel.schemas.reports.training import EpochRecord

Span = tuple[int, int]


class Spans:
    """Where each member's epochs are cut; places in a training are pauses before a span."""

    def __init__(self, members: Sequence[Member]) -> None:
        exchange = exchange_of(members[0].params)
        assert exchange is not None, "members that hear each other exchange predictions"
        self._exchange: Exchange = exchange
        self._most = max(member.steps for member in members)

    def taught(self, epoch: int) -> bool:
        """Whether anybody teaches in that epoch."""
        return epoch >= self._exchange.burn_in

    def of(self, member: Member, epoch: int) -> list[Span]:
        """The steps of each span of a member's epoch."""
        return self._exchange.spans(epoch, member.steps, self._most)

    def standing(self, member: Member) -> Pause:
        """Where the member's checkpoint goes on."""
        epoch, step = member.checkpoints.epoch or 0, member.checkpoints.step
        for number, (first, end) in enumerate(self.of(member, epoch)):
            if not first < end <= step:
                return Pause(epoch, number, step == first)
        return Pause(epoch + 1, 0, True)

    def between(self, member: Member, first: Pause, end: Pause) -> Iterator[Span]:
        """Epoch and number of each span with a teacher from `first` on and before `end`."""
        for epoch in range(first.epoch, end.epoch + 1):
            for number in range(len(self.of(member, epoch))):
                if first[:2] <= (epoch, number) < end[:2] and self.taught(epoch):
                    yield epoch, number


def begin_stepwise(members: Sequence[Member], crew: Crew) -> bool:
    """Let each go on from its checkpoint; False, and all start afresh, where that cannot be.

    It cannot where what a member needs to hear first is gone and will not be said again.
    """
    spans = Spans(members)
    places = crew.of_all([spans.standing(member) for member in members])
    whole = all(
        _heard(other.memory, spans, other, place, elsewhere)
        for member, place in zip(members, places, strict=True)
        for other, elsewhere in zip(members, places, strict=True)
        if other is not member
    )
    start(members, crew, whole=whole)
    return whole


def train_stepwise(
    members: Sequence[Member], inputs: TrainingInputs, crew: Crew
) -> Iterator[tuple[Member, EpochRecord]]:
    """Train this process's members, a span of each after the other; yields each epoch's record.

    Raises ParameterError, DataError, EnvironmentFault.
    """
    spans = Spans(members)
    turns = [_Turn(member, members, inputs, spans) for member in members if member.own]
    for epoch in range(members[0].params.epochs):
        for number in range(len(spans.of(members[0], epoch))):
            for turn in turns:
                turn.speak(epoch, number)
            # By the time that all have told where they stand, all have spoken.
            places = crew.of_all([spans.standing(member) for member in members])
            again = places if members[0].checkpoints.enabled else []
            for turn in turns:
                turn.forget(min([(epoch, number), *(place[:2] for place in again)]))
                turn.train(epoch, number)
        for turn in turns:
            yield turn.member, turn.end_epoch()


class _Turn:
    """One member's training, which stands still before every span."""

    def __init__(
        self, member: Member, members: Sequence[Member], inputs: TrainingInputs, spans: Spans
    ) -> None:
        self.member = member
        self._others = [other for other in members if other is not member]
        self._inputs = inputs
        self._spans = spans
        self._going = self._training()
        self._at = self._next()

    def speak(self, epoch: int, number: int) -> None:
        """Say what the others are to hear in that span, unless it was said before."""
        memory, model = self.member.memory, self.member.model
        assert memory is not None, "peers have memories"
        untold = self._at == Pause(epoch, number, True) and not memory.holds(epoch, number)
        if not untold or not self._spans.taught(epoch):
            return
        model.eval()
        with writing(memory.folder):
            filling = memory.begin_span(epoch, number)
            for batch in _once(self._of_others(epoch, number)):
                logits = says(model, self.member.fabric, batch.pixels)
                filling.add(batch.keys, batch.labels, logits.numpy())
            filling.publish()

    def forget(self, before: Span) -> None:
        """Delete what nobody needs any more, be it to go on now or after a kill."""
        if self.member.memory is not None:
            self.member.memory.forget(*before)

    def train(self, epoch: int, number: int) -> None:
        """Train on that span, if it stands before it or within."""
        if isinstance(self._at, Pause) and self._at[:2] == (epoch, number):
            self._at = self._next()

    def end_epoch(self) -> EpochRecord:
        """The epoch that is done; goes on to the next."""
        record = self._at
        assert isinstance(record, EpochRecord), "all its spans are done"
        self._at = self._next()
        return record

    def _next(self) -> EpochRecord | Pause | None:
        generators = Generators()
        generators.load_state_dict(self.member.random)
        try:
            at = next(self._going)
        except StopIteration as end:
            self.member.best_epoch = end.value
            return None
        self.member.random = generators.state_dict()
        return at

    def _of_others(self, epoch: int, number: int) -> Iterator[TrainingBatch]:
        for other in self._others:
            first, end = self._spans.of(other, epoch)[number]
            if first < end:
                yield from samples_of(other, self._inputs, epoch, first, end - first)

    def _training(self) -> Generator[EpochRecord | Pause, None, int | None]:
        member, inputs = self.member, self._inputs
        trainer = Trainer(
            member.params,
            member.fabric,
            member.trained,
            member.steps,
            inputs.validation,
            inputs.fitted_temperature,
            probe=inputs.probe,
        )
        return (
            yield from train_in_spans(
                trainer,
                self._batches,
                member.checkpoints,
                lambda epoch: self._spans.of(member, epoch),
            )
        )

    def _batches(self, epoch: int, first: int) -> Iterator[TrainingBatch]:
        spans = self._spans.of(self.member, epoch)
        number = next(n for n, span in enumerate(spans) if span[0] <= first < span[1])
        samples = samples_of(self.member, self._inputs, epoch, first, spans[number][1] - first)
        if not self._spans.taught(epoch):
            return samples
        sets = [other.memory.labels(epoch, number) for other in self._others if other.memory]
        T = soft_term(self.member.params, epoch).temperature
        return (taught(batch, sets, T) for batch in samples)


def _heard(
    memory: LabelMemory | None, spans: Spans, other: Member, place: Pause, elsewhere: Pause
) -> bool:
    """Whether who goes on at `place` hears of the other, at `elsewhere`, all that it needs."""
    end = elsewhere if elsewhere.fresh else elsewhere._replace(span=elsewhere.span + 1)
    return all(
        memory is not None and memory.holds(*moment) for moment in spans.between(other, place, end)
    )


def _once(batches: Iterator[TrainingBatch]) -> Iterator[TrainingBatch]:
    """The batches without samples that came before."""
    seen: set[str] = set()
    for batch in batches:
        keys = batch.keys.to_pylist()
        rows = np.array([row for row, key in enumerate(keys) if key not in seen], np.int64)
        seen.update(keys)
        if len(rows):
            yield batch.take(rows)
