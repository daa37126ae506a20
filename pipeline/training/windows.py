"""The order of an epoch: which rows are read together, and how they are shuffled.

The source is cut into units of at most 8,192 rows. An epoch visits the units in a random order,
holds as many at a time as fit into `shuffle_rows`, a window, and shuffles those together. Orders
come from (seed, epoch, window) alone: no list is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.labelset.rejects import RejectedRows
from softlabel.schemas.labelset import Segment, SourceFile

UNIT_ROWS = 8192

# The row ranges of one source shard that are read together: one, where nothing is left out.
Unit = tuple[Segment, ...]


def cut(files: Iterable[SourceFile], rejected: RejectedRows, most: int) -> list[Unit]:
    """Units of at most so many rows, in the source's order, without the rows that are left out."""
    units = (
        Segment(source=file.name, first=first, rows=min(most, file.rows - first))
        for file in files
        for first in range(0, file.rows, most)
    )
    # One of which nothing is left goes.
    return [left for unit in units if (left := rejected.left([unit]))]


def windows(
    units: Sequence[Unit], seed: int, epoch: int, shuffle_rows: int
) -> Iterator[list[Unit]]:
    """The units in an epoch's order, at a time as many as have at most `shuffle_rows` rows."""
    window: list[Unit] = []
    rows = 0
    for index in _generator(seed, epoch, 0).permutation(len(units)):
        unit = units[index]
        if window and rows + unit_rows(unit) > shuffle_rows:
            yield window
            window, rows = [], 0
        window.append(unit)
        rows += unit_rows(unit)
    if window:
        yield window


def shuffled(seed: int, epoch: int, window: int, rows: int) -> npt.NDArray[np.int64]:
    """The order of the rows of window `window`, a permutation `[rows]`."""
    return _generator(seed, epoch, 1 + window).permutation(rows)


def unit_rows(unit: Unit) -> int:
    """Samples of a unit."""
    return sum(segment.rows for segment in unit)


def _generator(seed: int, epoch: int, window: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, window])
