"""Rows of a label set, gathered block by block in memory that is taken once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.shards.block import LabelBlock

Values = npt.NDArray[Any]


class GatheredRows:
    """Blocks of one label set, each copied behind the last while it still lies in the cache.

    room: how many positions are expected at most; memory for more is taken when they come.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._columns: dict[str, Values] = {}
        self.clear()

    def clear(self) -> None:
        """Forget the rows; their memory is kept for others."""
        self._keys: list[pa.StringArray] = []
        self._labels: list[pa.Int32Array] = []
        self.rows = 0
        self._positions = 0

    def add(self, block: LabelBlock) -> None:
        """Copy the rows of a block."""
        for name, values in _by_position(block).items():
            self._copy(name, values, self._positions)
        for name, values in _by_row(block).items():
            self._copy(name, values, self.rows)
        self._keys.append(block.keys)
        self._labels.append(block.labels)
        self._codec = block.codec
        self._payload = tuple(block.payload)
        self.rows += len(block)
        self._positions += len(block.top1)

    def block(self) -> LabelBlock:
        """All rows that were added since `clear`, at least one; valid until the next are."""
        columns = self._columns
        positions = {name: columns[name][: self._positions] for name in columns}
        rows = {name: columns[name][: self.rows] for name in columns}
        return LabelBlock(
            pa.concat_arrays(self._keys),
            pa.concat_arrays(self._labels),
            positions["top1"],
            positions["shift"],
            {name: positions[name] for name in self._payload},
            self._codec,
            views=rows.get("views"),
            lengths=rows.get("lengths"),
            features=positions.get("features"),
        )

    def _copy(self, name: str, values: Values, first: int) -> None:
        end = first + len(values)
        column = self._columns.get(name)
        if column is None or len(column) < end:
            grown = np.empty((max(self._room, 2 * end), *values.shape[1:]), values.dtype)
            if column is not None:
                grown[:first] = column[:first]
            self._columns[name] = column = grown
        column[first:end] = values


def _by_position(block: LabelBlock) -> dict[str, Values]:
    columns: dict[str, Values] = {"top1": block.top1, "shift": block.shift, **block.payload}
    if block.features is not None:
        columns["features"] = block.features
    return columns


def _by_row(block: LabelBlock) -> dict[str, Values]:
    columns = {"views": block.views, "lengths": block.lengths}
    return {name: values for name, values in columns.items() if values is not None}
