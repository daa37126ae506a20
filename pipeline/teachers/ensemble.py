"""Teachers that speak as one: a single one, or an ensemble whose mean is taken in one pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from softlabel.pipeline.classes import class_map
from softlabel.pipeline.mean import Mean, narrowed
from softlabel.pipeline.teachers.packed import Packer
from softlabel.pipeline.teachers.providers import Tuning
from softlabel.pipeline.teachers.session import TeacherSession, in_class_order
from softlabel.pipeline.teachers.teacher import (
    Teacher,
    carries_metadata,
    open_teacher,
    reopen_teacher,
    telling_nothing,
)
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Ensemble, ExecutionRecord, Identity, Member
from softlabel.schemas.params import InferParams, PlanParams
from softlabel.schemas.params.shared import TeacherDevice
from softlabel.schemas.sample import Array, TeacherOutput

if TYPE_CHECKING:
    from softlabel.pipeline.teachers.inner import InnerOutput


@dataclass(frozen=True, slots=True)
class Teachers:
    """Opened teachers of one framing and the same classes; mean: None for a single one.

    orders: for each teacher, its columns in the order of the first one's classes, see `Member`.
    """

    members: tuple[Teacher, ...]
    orders: tuple[tuple[int, ...] | None, ...]
    mean: Mean | None

    @property
    def first(self) -> Teacher:
        """The teacher in the order of whose classes all of them speak."""
        return self.members[0]

    @property
    def sha256(self) -> tuple[str, ...]:
        """Of all files of all teachers."""
        return tuple(sha for teacher in self.members for sha in teacher.sha256)

    @property
    def name(self) -> str:
        """Who speaks, for messages."""
        return named([teacher.path for teacher in self.members])

    def record(self) -> Ensemble | None:
        """What a label set's identity says of the ensemble; None for a single teacher."""
        if self.mean is None:
            return None
        return Ensemble(
            members=tuple(map(_member, self.members, self.orders)),
            weights=self.mean.weights,
            mean="logits" if self.mean.temperature is None else "probs",
            temperature=self.mean.temperature,
        )


def named(paths: Sequence[Path]) -> str:
    """Teachers by their files, for messages."""
    return f"teacher{'s' if len(paths) > 1 else ''} {', '.join(map(str, paths))}"


def open_teachers(params: InferParams | PlanParams, shape: tuple[int, int, int] | None) -> Teachers:
    """Open every teacher of `params` as `open_teacher` does.

    What `params` tell of files without metadata is of all those. Raises ParameterError, and
    DataError also where the teachers' classes or framings differ.
    """
    if len(params.teacher) == 1:
        return Teachers((open_teacher(params.teacher[0], params, shape),), (None,), None)
    own = [carries_metadata(path) for path in params.teacher]
    untold = params if all(own) else telling_nothing(params)
    members = [
        open_teacher(path, untold if complete else params, shape)
        for path, complete in zip(params.teacher, own, strict=True)
    ]
    first = members[0]
    for other in members[1:]:
        _check_alike(first, other)
    return Teachers(
        tuple(members),
        tuple(_order(first, member) for member in members),
        Mean.of_members(len(members), params.weights, params.mean_temperature),
    )


def reopen_teachers(paths: Sequence[Path], identity: Identity) -> Teachers:
    """The teachers that labelled a set, by what its identity says of them; `paths` in its order.

    Raises ParameterError, and DataError where the files are others than the recorded ones.
    """
    ensemble = identity.ensemble
    count = 1 if ensemble is None else len(ensemble.members)
    if len(paths) != count:
        raise ParameterError(
            f"these labels were made by {count} teacher{'s' if count > 1 else ''} and "
            f"{len(paths)} were given; pass --teacher for each, in the order of the labelling"
        )
    if ensemble is None:
        return Teachers((reopen_teacher(paths[0], identity),), (None,), None)
    own_files = {"teacher_sha256": ensemble.members[0].teacher_sha256}
    first = reopen_teacher(paths[0], identity.model_copy(update=own_files))
    members = [first]
    for path, member in zip(paths[1:], ensemble.members[1:], strict=True):
        alone = {name: getattr(member, name) for name in Member.model_fields}
        alone["classes"] = first.spec.classes
        members.append(reopen_teacher(path, identity.model_copy(update=alone)))
    orders = tuple(member.class_map for member in ensemble.members)
    return Teachers(tuple(members), orders, Mean(ensemble.weights, ensemble.temperature))


class EnsembleSession:
    """Runs all teachers on the same batch, as `TeacherSession` does one.

    inner: of a single teacher.
    """

    def __init__(
        self,
        teachers: Teachers,
        device: TeacherDevice,
        batch_size: int,
        inner: InnerOutput | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self._teachers = teachers
        self._sessions = [
            TeacherSession(teacher, device, batch_size, inner, tuning)
            for teacher in teachers.members
        ]

    @property
    def record(self) -> ExecutionRecord:
        """Where and how they run, which is the same for all but their precision."""
        records = [session.record for session in self._sessions]
        precisions = dict.fromkeys(record.precision for record in records)
        changes: dict[str, str | None] = {"precision": ", ".join(precisions)}
        if self._teachers.mean is not None:
            # The mean is taken by the host, and so it packs.
            changes["packing"] = None
        return records[0].model_copy(update=changes)

    def resized(self, batch_size: int) -> EnsembleSession:
        """The same teachers, loaded once, for batches of another size."""
        other = copy.copy(self)
        other._sessions = [session.resized(batch_size) for session in self._sessions]
        return other

    def packer(self, order: tuple[int, ...] | None) -> Packer | None:
        """As `TeacherSession.packer`; None for an ensemble, whose mean the host takes."""
        return self._sessions[0].packer(order) if self._teachers.mean is None else None

    def features_width(self, samples: Array) -> int:
        """How many features a sample has, see `TeacherSession.features_width`."""
        return self._sessions[0].features_width(samples)

    def run(self, samples: Array) -> TeacherOutput:
        """What they say of N <= batch samples, see `TeacherSession.run`."""
        mean = self._teachers.mean
        if mean is None:
            return self._sessions[0].run(samples)
        said = [
            in_class_order(session.run, order)(samples).logits.astype(np.float64)
            for session, order in zip(self._sessions, self._teachers.orders, strict=True)
        ]
        with np.errstate(invalid="ignore"):  # what is no number is refused by its key
            return TeacherOutput(narrowed(mean.logits(said)))


def _member(teacher: Teacher, order: tuple[int, ...] | None) -> Member:
    return Member(
        teacher_sha256=teacher.sha256,
        preprocess=teacher.spec.preprocess,
        inputs=teacher.spec.inputs,
        class_map=order,
        output=teacher.spec.output,
        output_kind=teacher.spec.output_kind,
        probability_floor=teacher.spec.probability_floor,
    )


def _order(first: Teacher, member: Teacher) -> tuple[int, ...] | None:
    names = (f"teacher {member.path}", f"teacher {first.path}")
    return class_map(member.spec.classes, first.spec.classes, names)


def _check_alike(first: Teacher, other: Teacher) -> None:
    pictures = [teacher.spec.preprocess for teacher in (first, other)]
    if pictures[0] is None or pictures[1] is None:
        if first.spec.inputs != other.spec.inputs or first.spec.positions != other.spec.positions:
            raise DataError(
                f"teachers {first.path} and {other.path} take other inputs, or one of them speaks "
                "of positions; label with each by itself and take 'softlabel merge'"
            )
        return
    if first.spec.grid != other.spec.grid:
        raise DataError(
            f"teachers {first.path} and {other.path} speak of other positions ({first.spec.grid} "
            f"and {other.spec.grid}, height and width); bring their outputs to one size"
        )
    one, two = pictures[0].framing, pictures[1].framing
    different = [
        name for name in type(one).model_fields if getattr(one, name) != getattr(two, name)
    ]
    if different:
        differences = ", ".join(
            f"{name} {getattr(one, name)} and {getattr(two, name)}" for name in different
        )
        raise DataError(
            f"teachers {first.path} and {other.path} see pictures of another framing "
            f"({differences}); label with each by itself and take 'softlabel merge'"
        )
