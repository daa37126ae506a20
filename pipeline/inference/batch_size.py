"""The batch size at which teachers are fastest, found by trying powers of two."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from softlabel.pipeline.inference.plan import batches
from softlabel.pipeline.inference.prior import sampled
from softlabel.pipeline.inference.runner import QUEUE_BATCHES
from softlabel.pipeline.inference.task import Task
from softlabel.pipeline.labelset.making import plain
from softlabel.pipeline.labelset.standing import read_plan
from softlabel.pipeline.progress import Progress
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.devices import free_memory, resident_memory
from softlabel.pipeline.teachers.ensemble import EnsembleSession
from softlabel.pipeline.teachers.inner import InnerOutput
from softlabel.pipeline.teachers.providers import Tuning
from softlabel.schemas.errors import EnvironmentFault
from softlabel.schemas.params import InferParams
from softlabel.schemas.params.shared import TeacherDevice
from softlabel.schemas.sample import POSITIONS, Array, RunTeacher

LARGEST = 1024
# A size counts as faster from this gain on; after three without one, larger ones bring nothing.
GAIN = 1.05
PATIENCE = 3
# What a batch costs the steps around the teacher, however small: 1.0 to 1.6 ms were measured.
BATCH_SECONDS = 1e-3
# Each size is timed for so many seconds, and at least so many runs; the quickest run counts.
SECONDS = 0.25
RUNS = 2
# Of the memory that is free, what the next size may take: the queues hold batches too.
SHARE = 0.5
# Of so many batches what the teacher said is held at once: between steps, and in them.
HELD_BATCHES = 3 * QUEUE_BATCHES
# Sequences among which the longest is sought, and how many of them are read at once.
SEEN_ROWS, READ_ROWS = 1024, 64


@dataclass
class _Best:
    size: int = 0
    rate: float = 0.0


def settled_session(
    params: InferParams, task: Task, inner: InnerOutput | None, progress: Progress
) -> EnsembleSession:
    """The task's teachers at the batch size of `params`, its record telling what 'auto' came to.

    That is what a run of the same teachers began with in the output folder, else what their graphs
    insist on, else the fastest.
    """
    tuning = Tuning(params.provider_options, params.engine_cache)
    size = params.batch_size
    if size == "auto":
        size = _standing_size(params, task) or "auto"
    return session_at(size, task, params.device, inner, tuning, progress)


def session_at(
    size: int | Literal["auto"],
    task: Task,
    device: TeacherDevice,
    inner: InnerOutput | None,
    tuning: Tuning,
    progress: Progress,
) -> EnsembleSession:
    """The task's teachers at this batch size; 'auto': what their graphs insist on, or the fastest.

    Sequences are tried at their longest, which most batches of some size have among them.
    """
    if size == "auto":
        size = _insisted_size(task) or "auto"
    if size != "auto":
        return EnsembleSession(task.teachers, device, size, inner, tuning)
    session = EnsembleSession(task.teachers, device, 1, inner, tuning)

    def at_size(size: int) -> RunTeacher:
        return session.resized(size).run

    samples, positions = task.blank, math.prod(task.source.grid or ())
    if task.source.numbers is not None and task.teachers.first.spec.positions:
        longest = _longest(task.source)
        positions = longest[POSITIONS].shape[1]
        samples = partial(np.repeat, longest)
        progress.say(f"batch sizes are tried on sequences of {positions} positions")
    rows = min(
        task.source.rows * task.source.views,
        rows_held(positions * len(task.teachers.first.spec.classes)),
    )
    fastest = fastest_batch_size(at_size, samples, rows, progress)
    # All views of a sample go together.
    return session.resized(max(fastest, task.source.views))


def fastest_batch_size(
    at_size: Callable[[int], RunTeacher],
    samples: Callable[[int], Array],
    rows: int,
    progress: Progress,
) -> int:
    """The smallest power of two, up to 1,024 and `rows`, that no other beats by more than 5 %.

    at_size: the teachers for batches of so many rows. samples: so many of their inputs. Larger
    sizes are tried for as long as they gain speed, fit half the memory that is free by what the
    last one took, and the device can run them. Raises EnvironmentFault where it cannot run one row.
    """
    best = _Best()
    losses, size, before = 0, 1, resident_memory()
    while size <= min(LARGEST, rows) and losses < PATIENCE:
        try:
            rate = _rate(at_size(size), samples(size))
        except EnvironmentFault:
            if size == 1:
                raise
            break
        if rate > GAIN * best.rate:
            best, losses = _Best(size, rate), 0
        else:
            losses += 1
        taken = resident_memory() - before
        if 2 * taken > SHARE * free_memory():
            break
        size *= 2
    progress.say(f"batch size {best.size}: {best.rate:,.0f} samples/s expected")
    return best.size


def rows_held(values: int) -> int:
    """How many rows a batch may have, one at least, for its logits to fit: `values` of each."""
    room = SHARE * free_memory() / (HELD_BATCHES * values * np.dtype(np.float32).itemsize)
    return max(1, int(min(room, LARGEST)))


def _longest(source: Source) -> Array:
    """The longest of some 1,024 sequences from the whole source, `[1]`."""
    longest: Array | None = None
    for segments in batches(sampled(source.files, SEEN_ROWS), READ_ROWS):
        inputs = source.read(segments).inputs
        if longest is None or inputs.dtype.itemsize > longest.dtype.itemsize:
            row = int(inputs[POSITIONS].sum(axis=1).argmax())
            longest = inputs[row : row + 1]
    assert longest is not None, "a source has samples"
    return longest


def _standing_size(params: InferParams, task: Task) -> int | None:
    standing = None if params.overwrite else read_plan(plain(params.output))
    if standing is None or standing.execution is None:
        return None
    same = standing.identity.teacher_sha256 == task.teachers.sha256
    return standing.execution.batch_size if same else None


def _insisted_size(task: Task) -> int | None:
    return next((one.fixed_batch for one in task.teachers.members if one.fixed_batch), None)


def _rate(run: RunTeacher, samples: Array) -> float:
    """Samples a second by the quickest of some runs after a first one, and what a batch costs."""
    run(samples)
    quickest, end, runs = float("inf"), time.perf_counter() + SECONDS, 0
    while runs < RUNS or time.perf_counter() < end:
        begin = time.perf_counter()
        run(samples)
        quickest = min(quickest, time.perf_counter() - begin)
        runs += 1
    return len(samples) / (quickest + BATCH_SECONDS)
