"""The order of an epoch: which rows are read together, and how they are shuffled.

The source is cut into units of at most 8,192 rows, of pictures on a grid at most 4 million
positions. An epoch visits the units in a random order, holds as many at a time as fit into
`shuffle_rows`, a window, and shuffles those together. Orders come from (seed, epoch, window) alone:
no list is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.labelset.rejects import RejectedRows
from softlabel.schemas.labelset import Segment, SourceFile

UNIT_ROWS = 8192
UNIT_POSITIONS = 2**22

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


def shuffled(
    seed: int, epoch: int, window: int, units: Sequence[Unit]
) -> tuple[list[Unit], npt.NDArray[np.int64]]:
    """The units of window `window` as they are best read, and the order of the rows in them.

    They are read as they lie in their files. Rows are counted through them, and each comes once;
    the order is that of a shuffle of the units as the epoch has them.
    """
    rows = np.array([unit_rows(unit) for unit in units])
    reading = sorted(range(len(units)), key=lambda place: _place(units[place]))
    starts, moved = np.cumsum(rows) - rows, np.empty(len(units), np.int64)
    moved[reading] = np.cumsum(rows[reading]) - rows[reading]
    order = _generator(seed, epoch, 1 + window).permutation(int(rows.sum()))
    return [units[place] for place in reading], order + np.repeat(moved - starts, rows)[order]


def unit_rows(unit: Unit) -> int:
    """Samples of a unit."""
    return sum(segment.rows for segment in unit)


def _place(unit: Unit) -> tuple[str, int]:
    return unit[0].source, unit[0].first


def _generator(seed: int, epoch: int, window: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, window])
