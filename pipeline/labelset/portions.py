"""Cutting the rows of a label set into the shards of another.

Rows are counted over the whole set, in stored order. A portion is a range of them; the portions of
one cut follow each other and together are the whole set, so that what was measured over a shard of
the one belongs to exactly one shard of the other.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.shards.block import LabelBlock, in_pieces
from softlabel.pipeline.shards.layouts import ShardReader, open_shard
from softlabel.pipeline.shards.packing import folder_packing
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Manifest, ManifestShard, Segment, ShardPlan


@dataclass(frozen=True, slots=True)
class Portion:
    """One shard to write, and the rows `first` to `stop` of the set that its rows come from."""

    shard: ShardPlan
    first: int
    stop: int


class RowReader:
    """Reads row ranges of a whole label set, one shard open at a time."""

    def __init__(self, labels: LabelSet) -> None:
        self._labels = labels
        self._packing = folder_packing(labels.folder, labels.manifest)
        rows = [shard.rows for shard in labels.manifest.shards]
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._open: tuple[str, ShardReader] | None = None

    def read(self, first: int, stop: int) -> Iterator[LabelBlock]:
        """Rows `first` to `stop`, in blocks that are small enough to be decoded whole.

        Raises DataError where a shard is damaged.
        """
        while first < stop:
            number = int(np.searchsorted(self._starts, first, side="right")) - 1
            end = min(stop, int(self._starts[number + 1]))
            offset = first - int(self._starts[number])
            reader = self.shard(self._labels.manifest.shards[number])
            yield from in_pieces(reader.read(offset, end - first), len(self._labels.classes))
            first = end

    def shard(self, shard: ManifestShard) -> ShardReader:
        """The reader of one shard. Raises DataError where it has other rows than it should."""
        if self._open is None or self._open[0] != shard.name:
            reader = open_shard(self._labels.folder, shard.name, self._packing, shard.sha256)
            if reader.rows != shard.rows:
                raise DataError(
                    f"{self._labels.folder}: {shard.name} has {reader.rows} rows, not "
                    f"{shard.rows}; run 'softlabel verify --repair' on it"
                )
            self._open = (shard.name, reader)
        return self._open[1]


def whole_portions(manifest: Manifest, shard_rows: int | None) -> tuple[Portion, ...]:
    """All rows of a set, in its own shards, or in shards of `shard_rows` samples.

    Segments are cut along; the views of a sample stay together.
    """
    bounds = np.cumsum([0, *(shard.rows for shard in manifest.shards)]).tolist()
    if shard_rows is not None:
        bounds = row_bounds(manifest, manifest.rows, shard_rows)
    segments = deque(part for shard in manifest.shards for part in shard.segments)
    views = manifest.identity.views
    portions = []
    for index, (first, stop) in enumerate(itertools.pairwise(bounds)):
        parts = _take(segments, (stop - first) // views)
        shard = ShardPlan(name=shard_name(index), rows=stop - first, segments=parts)
        portions.append(Portion(shard, first, stop))
    return tuple(portions)


def row_bounds(manifest: Manifest, rows: int, shard_rows: int) -> list[int]:
    """Where shards of `shard_rows` samples begin among `rows` label rows, and their end."""
    return [*range(0, rows, shard_rows * manifest.identity.views), rows]


def shard_name(index: int) -> str:
    """The name of the shard number `index`."""
    return f"part-{index:05d}"


def _take(segments: deque[Segment], samples: int) -> tuple[Segment, ...]:
    """Take `samples` rows off the front of `segments`; parts that touch are joined."""
    taken: list[Segment] = []
    while segments and samples:
        part = segments.popleft()
        rows = min(samples, part.rows)
        samples -= rows
        last = taken[-1] if taken else None
        if last is not None and (last.source, last.first + last.rows) == (part.source, part.first):
            taken[-1] = last.model_copy(update={"rows": last.rows + rows})
        else:
            taken.append(Segment(source=part.source, first=part.first, rows=rows))
        if rows < part.rows:
            rest = {"first": part.first + rows, "rows": part.rows - rows}
            segments.appendleft(part.model_copy(update=rest))
    return tuple(taken)
