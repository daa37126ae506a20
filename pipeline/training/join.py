"""Samples joined with their stored labels by key, in an order that is a pure function.

The source is cut into units of at most 8,192 rows. An epoch visits the units in a random order,
holds as many at a time as fit into `shuffle_rows`, and shuffles those together. Orders come from
(seed, epoch, window) alone: no list is kept, and hard and soft training see the same batches.

A label set that is aligned with its source is read beside it, any other is asked for each key. Of
a sample's V views an epoch takes one: number `(epoch + XXH3-64(key)) mod V`, so that every view
has its turn and the samples do not change theirs all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.classes import class_map
from softlabel.pipeline.codecs.sparse import SparseTargets, concat_sparse
from softlabel.pipeline.labelset.keys import key_hashes
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import Array, SampleBlock

UNIT_ROWS = 8192


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """N samples: pixels uint8 `[N, H, W, C]`, labels int64 `[N]`; what the teacher said, if any.

    teacher: logits `[N, C]`; sparse: in their place what a `topk` set kept, where asked for.
    """

    keys: pa.StringArray
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    teacher: npt.NDArray[np.floating] | None
    sparse: SparseTargets | None = None


class JoinedSamples:
    """The samples of a source, with the labels of a label set where one is given.

    temperature: the one at which the labels will be used; `topk` logits depend on it. sparse: hand
    over what a `topk` set kept as it is, and do not spread its tail over all classes.

    Raises DataError where classes or source differ, a key has no label of its own, or a sample
    has no hard label.
    """

    def __init__(
        self,
        source: Source,
        labels: LabelSet | None,
        temperature: float = 1.0,
        *,
        sparse: bool = False,
    ) -> None:
        self._source = source
        self._labels = labels
        self._temperature = temperature
        self._sparse = sparse
        if labels is not None:
            _check_belongs(source, labels)
            labels.check_temperature(temperature)

    @property
    def rows(self) -> int:
        """Samples in one epoch."""
        return self._source.rows

    def epoch(
        self, seed: int, epoch: int, batch_size: int, shuffle_rows: int
    ) -> Iterator[TrainingBatch]:
        """Every sample once, in batches of `batch_size`; only the last may be smaller."""
        left: TrainingBatch | None = None
        for number, units in enumerate(_windows(self._units(), seed, epoch, shuffle_rows)):
            window = _concat([self._unit(unit, epoch) for unit in units])
            order = _generator(seed, epoch, 1 + number).permutation(len(window.labels))
            if left is not None:
                window = _concat([left, window])
                order = np.concatenate([np.arange(len(left.labels)), len(left.labels) + order])
            whole = len(order) - len(order) % batch_size
            for first in range(0, whole, batch_size):
                yield _take(window, order[first : first + batch_size])
            left = _take(window, order[whole:]) if whole < len(order) else None
        if left is not None:
            yield left

    def in_order(self, batch_size: int) -> Iterator[tuple[SampleBlock, LabelBlock]]:
        """Samples and labels in the source's order; a batch never crosses a source shard's end."""
        for file in self._source.files:
            for first in range(0, file.rows, batch_size):
                rows = min(batch_size, file.rows - first)
                unit = Segment(source=file.name, first=first, rows=rows)
                samples = self._source.read([unit])
                yield samples, self._labels_of(samples, unit, epoch=0)

    def _units(self) -> list[Segment]:
        return [
            Segment(source=file.name, first=first, rows=min(UNIT_ROWS, file.rows - first))
            for file in self._source.files
            for first in range(0, file.rows, UNIT_ROWS)
        ]

    def _unit(self, unit: Segment, epoch: int) -> TrainingBatch:
        samples = self._source.read([unit])
        if samples.labels.null_count:
            row = int(pc.index(samples.labels.is_null(), True).as_py())
            raise DataError(
                f"{self._source.path}: key {samples.keys[row].as_py()!r} has no hard label; "
                "training needs one for every sample"
            )
        teacher = sparse = None
        if self._labels is not None:
            block = self._labels_of(samples, unit, epoch)
            if self._sparse:
                sparse = block.sparse(self._temperature)
            else:
                teacher = block.logits(self._temperature)
        labels = samples.hard_labels().astype(np.int64)
        return TrainingBatch(samples.keys, samples.inputs, labels, teacher, sparse)

    def _labels_of(self, samples: SampleBlock, unit: Segment, epoch: int) -> LabelBlock:
        """The labels of exactly these samples: a label belongs to a key, not to a position."""
        assert self._labels is not None
        views = chosen_views(samples.keys, epoch, self._labels.views)
        if not self._labels.manifest.aligned:
            labels = self._labels.lookup(samples.keys, views)
            _check_hard_labels(samples, labels, self._labels)
            return labels
        labels = self._labels.read_source(unit)
        if self._labels.views > 1:
            labels = labels.take(np.arange(len(samples)) * self._labels.views + views)
        _check_joined(samples, labels, views, self._labels)
        _check_hard_labels(samples, labels, self._labels)
        return labels


def chosen_views(keys: pa.StringArray, epoch: int, views: int) -> npt.NDArray[np.int64]:
    """The view that an epoch takes of each key: `(epoch + XXH3-64(key)) mod views`, `[N]`."""
    if views == 1:
        return np.zeros(len(keys), np.int64)
    first = (key_hashes(keys) % np.uint64(views)).astype(np.int64)
    return (first + epoch % views) % views


def _check_joined(
    samples: SampleBlock,
    labels: LabelBlock,
    views: npt.NDArray[np.int64],
    labelset: LabelSet,
) -> None:
    """Raise DataError where a sample meets the label of another key or view."""
    same = pc.equal(samples.keys, labels.keys)
    if not pc.all(same).as_py():
        row = int(pc.index(same, False).as_py())
        raise DataError(
            f"{labelset.folder}: sample {samples.keys[row].as_py()!r} meets the label of "
            f"{labels.keys[row].as_py()!r}; the source changed since it was labelled, run "
            "'softlabel infer' again"
        )
    if labels.views is not None and not np.array_equal(labels.views, views):
        row = int(np.flatnonzero(labels.views != views)[0])
        raise DataError(
            f"{labelset.folder}: the views of sample {samples.keys[row].as_py()!r} do not stand "
            "in their order; run 'softlabel verify' on the folder"
        )


def _check_hard_labels(samples: SampleBlock, labels: LabelBlock, labelset: LabelSet) -> None:
    """Raise DataError where a sample's hard label is another than when it was labelled.

    Keys that are row numbers stay when the rows are put into another order: this shows it.
    """
    if labels.lengths is not None or samples.labels.equals(labels.labels):
        return
    differ = pc.not_equal(samples.labels.fill_null(-1), labels.labels.fill_null(-1))
    row = int(pc.index(differ, True).as_py())
    raise DataError(
        f"{labelset.folder}: sample {samples.keys[row].as_py()!r} has hard label "
        f"{samples.labels[row].as_py()}, and {labels.labels[row].as_py()} when it was labelled; "
        "the source changed since, run 'softlabel infer' again"
    )


def _check_belongs(source: Source, labels: LabelSet) -> None:
    names = (f"label set {labels.folder}", f"source {source.path}")
    if class_map(labels.classes, source.classes, names) is not None:
        raise DataError(
            f"{names[0]} and {names[1]} order their classes differently; label this source again"
        )
    if labels.manifest.limit is not None:
        raise DataError(
            f"{names[0]} is partial, of the first {labels.manifest.limit:,} samples of its source; "
            "run 'softlabel infer' without --limit"
        )
    recorded = {file.name: file for file in labels.manifest.identity.source}
    for file in source.files:
        if recorded.pop(file.name, None) != file:
            raise DataError(
                f"{names[0]} does not hold the labels of {source.place(file.name)} as it is now; "
                "run 'softlabel infer' over this source"
            )


def _windows(
    units: Sequence[Segment], seed: int, epoch: int, shuffle_rows: int
) -> Iterator[list[Segment]]:
    window: list[Segment] = []
    rows = 0
    for index in _generator(seed, epoch, 0).permutation(len(units)):
        unit = units[index]
        if window and rows + unit.rows > shuffle_rows:
            yield window
            window, rows = [], 0
        window.append(unit)
        rows += unit.rows
    if window:
        yield window


def _generator(seed: int, epoch: int, window: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, window])


def _concat(parts: Sequence[TrainingBatch]) -> TrainingBatch:
    if len(parts) == 1:
        return parts[0]
    teachers = [part.teacher for part in parts if part.teacher is not None]
    sparse = [part.sparse for part in parts if part.sparse is not None]
    return TrainingBatch(
        pa.concat_arrays([part.keys for part in parts]),
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(teachers) if teachers else None,
        concat_sparse(sparse) if sparse else None,
    )


def _take(batch: TrainingBatch, rows: Array) -> TrainingBatch:
    return TrainingBatch(
        batch.keys.take(pa.array(rows)),
        batch.pixels[rows],
        batch.labels[rows],
        None if batch.teacher is None else batch.teacher[rows],
        None if batch.sparse is None else batch.sparse.take(rows),
    )
