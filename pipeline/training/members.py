"""The students of a run: one alone, or several that teach each other.

A process trains an epoch of each of its own in turn; torchrun's ranks share the members out.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from softlabel.pipeline.teachers.models import PictureModel
from softlabel.pipeline.teachers.sequence_model import SequenceModel
from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.checkpoints import Checkpoints
from softlabel.pipeline.training.crew import Crew
from softlabel.pipeline.training.distillation import soft_term
from softlabel.pipeline.training.exchange import Exchange, taught
from softlabel.pipeline.training.inputs import TrainingInputs
from softlabel.pipeline.training.listener import Listener
from softlabel.pipeline.training.loop import train
from softlabel.pipeline.training.memory import LabelMemory
from softlabel.pipeline.training.shares import Share
from softlabel.pipeline.training.state import Generators
from softlabel.pipeline.training.validation import predict
from softlabel.schemas.labelset import sha256_of
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports.training import EpochRecord

REST_ROWS = 1024


@dataclass(slots=True, eq=False)
class Member:
    """A student, its own parameters and folder, and all that its training needs.

    trained: the model, or it within what learns beside it. memory: what the student says is kept
    there, None where nobody asks. random: torch's generators after the model was built; no other
    member's draws move them. share: the part of the samples that it trains on, None for all.
    samples: how many these are. own: whether this process trains it; of the others' it reads
    what they say. best_epoch: in the end, the one whose weights the model has; None
    for the last.
    """

    params: TrainParams
    folder: Path
    fabric: Fabric
    model: PictureModel | SequenceModel
    trained: nn.Module
    checkpoints: Checkpoints
    memory: LabelMemory | None
    random: Mapping[str, Any]
    share: Share | None
    samples: int
    own: bool = True
    best_epoch: int | None = None

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.samples / self.params.batch_size)


def exchange_of(params: TrainParams) -> Exchange | None:
    """When the run's predictions are published; None where no student hears another or itself."""
    match params.targets:
        case "self":
            return Exchange()
        case "peers":
            return Exchange(params.burn_in, params.exchange_epochs, params.exchange_steps)
    return None


def course_sha256(checkpoints: Checkpoints) -> str:
    """SHA-256 of all that decides the course of a training."""
    return sha256_of(json.dumps(dict(checkpoints.course), sort_keys=True).encode())


def begin_together(members: Sequence[Member], crew: Crew) -> bool:
    """Let each go on from its checkpoint; False, and all start afresh, where that cannot be.

    It cannot where what a member needs to hear first is gone and will not be said again.
    """
    exchange = exchange_of(members[0].params)
    if exchange is None:
        return True
    starts = _starts(members, crew)
    whole = all(_said_or_to_come(members, starts, exchange, start) for start in starts)
    start(members, crew, whole=whole)
    return whole


def start(members: Sequence[Member], crew: Crew, *, whole: bool) -> None:
    """Go on, or forget all that was said and trained where that is not whole."""
    afresh = not whole or all(member.checkpoints.epoch is None for member in members)
    # Nobody takes away what another still looks for.
    crew.meet()
    for member in members:
        if not whole:
            member.checkpoints.discard()
        if afresh and member.own and member.memory is not None:
            member.memory.clear()


def train_in_turn(
    members: Sequence[Member], inputs: TrainingInputs, crew: Crew
) -> Iterator[tuple[Member, EpochRecord]]:
    """Train this process's members, an epoch of each after the other; yields each with its member.

    Raises ParameterError, DataError, EnvironmentFault.
    """
    exchange = exchange_of(members[0].params)
    generators = Generators()
    own = [member for member in members if member.own]
    going = [(member, _training(member, members, inputs, exchange)) for member in own]
    for epoch in itertools.count(1):
        for member, training in list(going):
            generators.load_state_dict(member.random)
            try:
                record = next(training)
            except StopIteration as end:
                member.best_epoch = end.value
                going.remove((member, training))
            else:
                member.random = generators.state_dict()
                yield member, record
        if not going:
            return
        if exchange is not None:
            # By the time that all have told, all have published.
            _forget(own, _starts(members, crew), exchange, epoch)


def end_together(members: Sequence[Member]) -> None:
    """All results stand: nothing is left to continue, and the last predictions are kept."""
    for member in members:
        if member.own:
            member.checkpoints.remove()
            if member.memory is not None:
                member.memory.keep_last()


def _training(
    member: Member,
    members: Sequence[Member],
    inputs: TrainingInputs,
    exchange: Exchange | None,
) -> Generator[EpochRecord, None, int | None]:
    params = member.params
    itself = params.targets == "self"
    listener = None
    if member.memory is not None and exchange is not None:
        listener = Listener(member.memory, exchange, lambda: _rest(member, inputs))
    teachers = [one.memory for one in members if one.memory and (itself or one is not member)]

    def batches(epoch: int, first: int) -> Iterator[TrainingBatch]:
        samples = samples_of(member, inputs, epoch, first)
        said = None if exchange is None else exchange.taught_by(epoch)
        if said is None:
            return samples
        sets = [memory.labels(said) for memory in teachers]
        T = soft_term(params, epoch).temperature
        return (taught(batch, sets, T) for batch in samples)

    return train(
        params,
        member.fabric,
        member.trained,
        batches,
        member.steps,
        inputs.validation,
        inputs.fitted_temperature,
        member.checkpoints,
        listener=listener,
        probe=inputs.probe,
    )


def samples_of(
    member: Member, inputs: TrainingInputs, epoch: int, first: int, batches: int | None = None
) -> Iterator[TrainingBatch]:
    """So many batches of a member's epoch, or all, from number `first` on, without what is said."""
    params, share = member.params, member.share
    order = (params.seed, epoch, params.batch_size, params.shuffle_rows)
    if share is None:
        ranks = (member.fabric.global_rank, member.fabric.world_size)
        return inputs.samples.epoch(*order, first, ranks, batches)
    own = share.batches(inputs.samples.epoch(*order), params.batch_size)
    return itertools.islice(own, first, None if batches is None else first + batches)


def _rest(member: Member, inputs: TrainingInputs) -> Iterator[tuple[TrainingBatch, Tensor]]:
    """What a member with a part of its own says of the other members' samples."""
    if member.share is None:
        return
    for logits, batch in predict(member.model, member.fabric, inputs.source.reopen(), REST_ROWS):
        others = np.flatnonzero(~member.share.holds(batch.keys))
        if len(others):
            keys = batch.keys.take(pa.array(others))
            yield (
                TrainingBatch(keys, batch.pixels[others], batch.labels[others], None),
                logits[torch.from_numpy(others)],
            )


def _said_or_to_come(
    members: Sequence[Member], starts: Sequence[int], exchange: Exchange, epoch: int
) -> bool:
    """Whether whoever goes on in `epoch` will hear all others. starts: where each goes on."""
    said = exchange.taught_by(max(epoch, exchange.burn_in))
    assert said is not None, "after the burn-in somebody teaches"
    return all(
        start <= said or (member.memory is not None and member.memory.holds(said))
        for member, start in zip(members, starts, strict=True)
    )


def _starts(members: Sequence[Member], crew: Crew) -> list[int]:
    """The epoch in which each member's checkpoint goes on, as the process that trains it has it."""
    return crew.of_all([member.checkpoints.epoch or 0 for member in members])


def _forget(
    members: Sequence[Member], starts: Sequence[int], exchange: Exchange, next_epoch: int
) -> None:
    """Delete what nobody needs, be it to go on now or after a kill, from where each `starts`."""
    oldest = min(next_epoch, *starts) if members[0].checkpoints.enabled else next_epoch
    needed = exchange.taught_by(oldest)
    for member in members:
        if member.memory is not None and needed is not None:
            member.memory.forget(before=needed)
