"""Trying a teacher on samples of the whole source, before anything is kept or replaced."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

from softlabel.pipeline.inference.plan import batches, limited
from softlabel.pipeline.inference.prior import sampled
from softlabel.pipeline.inference.runner import QUEUE_BATCHES, naming_the_key, shift_output
from softlabel.pipeline.inference.usable import Slots, none_usable, read_slots
from softlabel.pipeline.prefetch import prefetch
from softlabel.pipeline.progress import Progress
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import CheckFailed
from softlabel.schemas.labelset import Plan, Reject, ShardPlan
from softlabel.schemas.params.shared import OnBadSample
from softlabel.schemas.sample import RunTeacher

TRIED_ROWS = 1024
# Of each run of rows the reading costs as much as a few more rows do.
TRIED_PLACES = 64


@dataclass
class _Count:
    """Hard labels that were seen, and how many of them the teacher got right."""

    labelled: int = 0
    correct: int = 0


def try_teacher(
    plan: Plan,
    batch_size: int,
    source: Source,
    run_teacher: RunTeacher,
    on_bad: OnBadSample,
    allow_bad: bool,
    progress: Progress,
) -> None:
    """Compare the teacher with the hard labels of some 1,024 samples of the whole source, or of 64
    pictures' positions.

    The source may stand in the order of its classes. Wrong preprocessing or class order is the
    commonest fault and shows here. Where a bad teacher is allowed one batch is enough: to learn
    whether it runs, and gives what it is said to give. Raises DataError where no sample can be
    used, and CheckFailed where the top-1 is within two standard errors of chance (of few samples:
    below the middle between chance and perfect).
    """
    # Of a picture's positions, few pictures have as many.
    most = TRIED_ROWS if plan.identity.grid is None else TRIED_PLACES
    rows = 1 if allow_bad and on_bad == "stop" else most
    sample = sampled(limited(source.files, plan.limit), rows, source.views, TRIED_PLACES)
    count = _counted(sample, batch_size, source, run_teacher, on_bad, one_batch=allow_bad)
    if not count.labelled or allow_bad:
        return
    share = count.correct / count.labelled
    unit = "positions" if plan.identity.positions else "samples"
    said = f"the teacher's top-1 is right for {share:.1%} of {count.labelled} {unit}"
    progress.say(said)
    chance = 1 / len(plan.identity.classes)
    error = math.sqrt(chance * (1 - chance) / count.labelled)
    if share <= chance + min(2 * error, (1 - chance) / 2):
        raise CheckFailed(
            f"{said}, chance is {chance:.1%}; check its preprocessing and class order, or pass "
            "--allow-bad-teacher"
        )


def _counted(
    sample: ShardPlan,
    batch_size: int,
    source: Source,
    run_teacher: RunTeacher,
    on_bad: OnBadSample,
    *,
    one_batch: bool,
) -> _Count:
    count, rejects = _Count(), list[Reject]()
    used = False
    read = prefetch(_read(sample, batch_size, source, on_bad), QUEUE_BATCHES, "read")
    with contextlib.closing(read):
        for slots in read:
            rejects += slots.left_out()
            usable = slots.run(run_teacher)
            if usable is None:
                continue
            used = True
            samples, output = usable
            hard = samples.hard_labels()
            with naming_the_key(samples.keys, samples.lengths):
                top1 = shift_output(output).top1
            count.labelled += int((hard >= 0).sum())
            count.correct += int((hard == top1).sum())
            if one_batch:
                break
    if not used:
        raise none_usable(source, rejects)
    return count


def _read(
    sample: ShardPlan, batch_size: int, source: Source, on_bad: OnBadSample
) -> Iterator[Slots]:
    for segments in batches(sample, batch_size, source.views):
        yield read_slots(source, segments, on_bad)
