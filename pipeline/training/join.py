"""Samples joined with their stored labels by key, in an order that is a pure function.

Hard and soft training see the same batches. Pictures and labels wait as they are stored, a window
at a time, and are decoded a batch at a time.

A label set that is aligned with its source is read beside it, any other is asked for each key.
Samples that it leaves out are not read, and stand in no epoch. Of a sample's V views an epoch
takes one, the picture and its label: number `(epoch + XXH3-64(key)) mod V`, so that every view has
its turn and the samples do not change theirs all at once.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.codecs.factored import Factored, FactoredRows
from softlabel.pipeline.labelset.keys import key_hashes
from softlabel.pipeline.labelset.rejects import RejectedRows
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.training.agreement import (
    as_labelled,
    check_belongs,
    check_hard_labels,
    check_joined,
)
from softlabel.pipeline.training.batch import JoinedBatch, TrainingBatch
from softlabel.pipeline.training.ensemble import Labels
from softlabel.pipeline.training.held import StoredRows, Window, concat
from softlabel.pipeline.training.losses import IGNORED
from softlabel.pipeline.training.spans import Span, batch_shares
from softlabel.pipeline.training.windows import (
    UNIT_POSITIONS,
    UNIT_ROWS,
    Unit,
    cut,
    shuffled,
    unit_rows,
    windows,
)
from softlabel.schemas.errors import DataError
from softlabel.schemas.sample import SampleBlock

Numbers = npt.NDArray[np.int64]


class JoinedSamples:
    """The samples of a source, with the labels of a label set where one is given.

    temperature: the one at which the labels will be used; `topk` logits depend on it. sparse: hand
    over what a `topk` set kept as it is, and do not spread its tail over all classes. factored:
    hand over what a `factored` set stores as it is, and leave the head to who trains. features:
    hand over the stored features, which the set must have. without: a label set of the source that
    is not joined, and whose left-out samples are left out here too.

    Where the labels are of views, the source gives these. Raises DataError where classes or source
    differ, a key that the set does not leave out has no label of its own, or a sample has no hard
    label and no soft one either; what `replayed` raises where the views cannot be made.
    """

    def __init__(
        self,
        source: Source,
        labels: Labels | None,
        temperature: float = 1.0,
        *,
        sparse: bool = False,
        factored: bool = False,
        features: bool = False,
        without: Labels | None = None,
    ) -> None:
        self._source = source if labels is None else as_labelled(source, labels)
        self._labels = labels
        self._temperature = temperature
        self._sparse = sparse
        self._factored = factored
        self._features = features
        if labels is not None:
            labels.check_temperature(temperature)
        if without is not None:
            check_belongs(source, without)
        self._partly = labels is not None and _partly_labelled(labels)
        told = without if labels is None else labels
        self._rejected = RejectedRows(() if told is None else told.rejects)
        # What is read together is bounded by positions too, where a picture has many.
        each = 1 if source.grid is None else math.prod(source.grid)
        self._unit_rows = max(1, min(UNIT_ROWS, UNIT_POSITIONS // each))
        self._samples = sum(unit_rows(unit) for unit in self._units(self._unit_rows))
        if not self._samples:
            raise DataError(f"{source.path}: no sample of it has labels, all were left out")

    @property
    def source(self) -> Source:
        """The source as the labels are of it: with their views, where they are of views."""
        return self._source

    @property
    def rows(self) -> int:
        """Samples in one epoch."""
        return self._samples

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        shuffle_rows: int,
        first_batch: int = 0,
        part: tuple[int, int] = (0, 1),
        batches: int | None = None,
    ) -> Iterator[TrainingBatch]:
        """Every sample once, in batches of `batch_size`; only the last may be smaller.

        first_batch: leave out the batches before that one. part: `(i, n)` for rank i of n, which
        gets its share of each batch. batches: give so many, default all: no others are read.
        """
        shared = list(batch_shares(self.rows, batch_size, first_batch, part))[:batches]
        joined = self.batches(seed, epoch, shuffle_rows, [span for span, _ in shared])
        for batch, (_, share) in zip(joined, shared, strict=True):
            teacher = sparse = factored = features = None
            if batch.block is not None and self._sparse:
                sparse = batch.block.sparse(self._temperature)
            elif batch.block is not None and self._factored:
                factored = _factored_rows(batch.block)
            elif batch.block is not None:
                teacher = batch.block.logits(self._temperature)
            if batch.block is not None and self._features:
                features = _stored_features(batch.block)
            yield TrainingBatch(
                batch.keys,
                batch.pixels,
                batch.labels,
                teacher,
                sparse,
                features,
                share,
                batch.lengths,
                factored=factored,
                partly=batch.lengths is not None or self._partly,
            )

    def batches(
        self, seed: int, epoch: int, shuffle_rows: int, spans: Iterable[Span]
    ) -> Iterator[JoinedBatch]:
        """The samples at these positions of the epoch's order, a batch a span.

        spans: ascending, none overlapping another. Only what lies in them is decoded, and windows
        in which none lies are not read.
        """
        ordered = list(spans)
        parts: list[StoredRows] = []
        window = Window()
        first = begun = 0
        every = self._units(self._unit_rows)
        for number, units in enumerate(windows(every, seed, epoch, shuffle_rows)):
            end = first + sum(map(unit_rows, units))
            # Those that begin before the window's end; the last may go on in the next.
            here = ordered[begun : bisect_left(ordered, (end,))]
            if here:
                units, order = shuffled(seed, epoch, number, units)
                chosen = [order[max(0, span.first - first) : span.end - first] for span in here]
                places = self._read(units, epoch, chosen, window)
                held = window.held()
                for span, rows in zip(here, places, strict=True):
                    parts.append(held.take(rows))
                    if span.end <= end:
                        yield self._batch(concat(parts))
                        parts, begun = [], begun + 1
            first = end

    def in_order(self, batch_size: int) -> Iterator[tuple[SampleBlock, LabelBlock]]:
        """Samples and labels in the source's order; a batch never crosses a source shard's end.

        Of views it gives all, those of a sample in one batch, which may be the larger for it.
        """
        for unit in self._units(max(1, batch_size // self._source.views)):
            samples = self._source.read(unit)
            every = np.arange(len(samples))
            views = every % self._source.views
            yield samples, self._labels_of(samples.keys, samples.labels, unit, views, every)

    def _units(self, most: int) -> list[Unit]:
        return cut(self._source.files, self._rejected, most)

    def _read(
        self, units: Sequence[Unit], epoch: int, chosen: Sequence[Numbers], window: Window
    ) -> list[Numbers]:
        """Hold the chosen rows of `units`, counted through them; where each choice now lies.

        No row is chosen twice.
        """
        wanted = np.zeros(sum(map(unit_rows, units)), np.bool_)
        for rows in chosen:
            wanted[rows] = True
        window.begin(int(wanted.sum()))
        first = 0
        for unit in units:
            end = first + unit_rows(unit)
            rows = np.flatnonzero(wanted[first:end])
            if len(rows):
                window.add(self._unit(unit, epoch, rows))
            first = end
        places = np.cumsum(wanted) - 1
        return [places[rows] for rows in chosen]

    def _unit(self, unit: Unit, epoch: int, rows: Numbers) -> StoredRows:
        stored = self._source.read_stored(unit, rows)
        block = None
        if self._labels is None:
            _refuse_unlabelled(self._source, stored)
        else:
            views = chosen_views(stored.keys, epoch, self._labels.views)
            lines = rows * self._labels.views + views
            block = self._labels_of(stored.keys, stored.labels, unit, views, lines)
        hard = stored.labels
        if not pa.types.is_large_list(hard.type):
            hard = hard.fill_null(IGNORED).to_numpy().astype(np.int64)
        return StoredRows(stored.keys, stored.pictures, hard, block)

    def _batch(self, rows: StoredRows) -> JoinedBatch:
        views = None if rows.block is None else rows.block.views
        pixels = self._source.pictures(rows.keys, rows.pictures, views)
        if isinstance(rows.labels, np.ndarray):
            return JoinedBatch(rows.keys, pixels, rows.labels, rows.block)
        samples = SampleBlock(rows.keys, pixels, rows.labels)
        labels = samples.hard_labels().astype(np.int64)
        labels[labels < 0] = IGNORED
        return JoinedBatch(rows.keys, pixels, labels, rows.block, samples.lengths)

    def _labels_of(
        self,
        keys: pa.StringArray,
        hard: pa.Int32Array,
        unit: Unit,
        views: npt.NDArray[np.int64],
        lines: Numbers,
    ) -> LabelBlock:
        """The labels of exactly these keys: a label belongs to a key, not to a position.

        lines: which of the unit's label rows they are.
        """
        assert self._labels is not None
        if not self._labels.manifest.aligned:
            labels = self._labels.lookup(keys, views)
        else:
            labels = concat_blocks([self._labels.read_source(segment) for segment in unit])
            if len(lines) < len(labels):
                labels = labels.take(lines)
            check_joined(keys, labels, views, self._labels)
        check_hard_labels(keys, hard, labels, self._labels)
        return labels


def _factored_rows(block: LabelBlock) -> FactoredRows:
    assert isinstance(block.codec, Factored)
    return FactoredRows(block.codec, block.payload["features"], block.top1)


def _stored_features(block: LabelBlock) -> npt.NDArray[np.float16] | None:
    return block.payload["features"] if isinstance(block.codec, Factored) else block.features


def _partly_labelled(labels: Labels) -> bool:
    """Whether some samples or positions of the set have no hard label."""
    manifest = labels.manifest
    return manifest.statistics.labelled < sum(shard.rows for shard in manifest.shards)


def _refuse_unlabelled(source: Source, stored: ShardRows) -> None:
    """Raise DataError where a sample has no hard label, or no position of these sequences has."""
    if not pa.types.is_large_list(stored.labels.type):
        if stored.labels.null_count:
            row = int(pc.index(stored.labels.is_null(), True).as_py())
            raise DataError(
                f"{source.path}: key {stored.keys[row].as_py()!r} has no hard label; training "
                "needs one for every sample, or stored soft labels"
            )
        return
    labels = stored.labels.flatten()
    if labels.null_count == len(labels):
        raise DataError(
            f"{source.path}: no position of key {stored.keys[0].as_py()!r} and those after it has "
            "a hard label; training needs some, or a label set"
        )


def chosen_views(keys: pa.StringArray, epoch: int, views: int) -> npt.NDArray[np.int64]:
    """The view that an epoch takes of each key: `(epoch + XXH3-64(key)) mod views`, `[N]`."""
    if views == 1:
        return np.zeros(len(keys), np.int64)
    first = (key_hashes(keys) % np.uint64(views)).astype(np.int64)
    return (first + epoch % views) % views
