"""Rows as they are stored: taken by number, put together, and held for as long as a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.sources.shard import Pictures, joined, taken

# Of names of the codec's columns, which others may have too.
PAYLOAD = "payload."

Numbers = npt.NDArray[np.int64]
Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Samples not decoded yet, with their labels, of the same keys, where a label set is given.

    labels: hard ones, int64 `[N]`, or of sequences lists as in `SampleBlock`.
    """

    keys: pa.StringArray
    pictures: Pictures
    labels: Numbers | pa.LargeListArray
    block: LabelBlock | None

    def take(self, rows: Numbers) -> StoredRows:
        """The samples of these rows, in this order."""
        block = None if self.block is None else self.block.take(rows)
        keys = self.keys.take(pa.array(rows)) if block is None else block.keys
        return StoredRows(keys, taken(self.pictures, rows), _taken(self.labels, rows), block)


def concat(parts: Sequence[StoredRows]) -> StoredRows:
    """The samples of `parts`, one after the other; a single one as it is."""
    if len(parts) == 1:
        return parts[0]
    blocks = [part.block for part in parts if part.block is not None]
    return StoredRows(
        pa.concat_arrays([part.keys for part in parts]),
        joined([part.pictures for part in parts]),
        _joined([part.labels for part in parts]),
        concat_blocks(blocks) if blocks else None,
    )


class Window:
    """Rows put together where those of the window before were: fresh memory costs more than copies.

    What `held` gave changes with the next window; what was taken from it stays.
    """

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}
        self._bare: list[StoredRows] = []
        self._expected = 0

    def begin(self, rows: int) -> None:
        """Forget what is held; about so many rows will come."""
        self._bare = []
        self._expected = rows
        for column in self._columns.values():
            column.used = 0

    def add(self, part: StoredRows) -> None:
        """Copy these rows behind those that are held."""
        arrays = _arrays(part)
        for name, values in arrays.items():
            column = self._columns.setdefault(name, _Column(values))
            column.add(values, self._expected)
        # Views would keep the whole part in memory.
        self._bare.append(_with_arrays(part, {name: a[:0].copy() for name, a in arrays.items()}))

    def held(self) -> StoredRows:
        """All that was added, one after the other."""
        arrays = {name: column.values for name, column in self._columns.items()}
        return _with_arrays(concat(self._bare), arrays)


class _Column:
    """Values `[N, ...]` behind one another, like those of `first`. used: N."""

    def __init__(self, first: Values) -> None:
        self.used = 0
        self._memory = np.empty((0, *first.shape[1:]), first.dtype)

    @property
    def values(self) -> Values:
        return self._memory[: self.used]

    def add(self, values: Values, expected: int) -> None:
        end = self.used + len(values)
        if end > len(self._memory):
            # Of sequences there are more positions than rows.
            rows = expected if end <= expected else end + end // 2
            grown = np.empty((rows, *self._memory.shape[1:]), self._memory.dtype)
            grown[: self.used] = self.values
            self._memory = grown
        self._memory[self.used : end] = values
        self.used = end


def _arrays(part: StoredRows) -> dict[str, Values]:
    """All NumPy arrays of these rows, by name."""
    found: dict[str, Values | None] = {}
    if isinstance(part.pictures, np.ndarray):
        found["pictures"] = part.pictures
    if isinstance(part.labels, np.ndarray):
        found["labels"] = part.labels
    if (block := part.block) is not None:
        found |= {"top1": block.top1, "shift": block.shift, "views": block.views}
        found |= {"lengths": block.lengths, "features": block.features}
        found |= {PAYLOAD + name: values for name, values in block.payload.items()}
    return {name: values for name, values in found.items() if values is not None}


def _with_arrays(part: StoredRows, arrays: Mapping[str, Values]) -> StoredRows:
    """The same rows with other arrays, of the names that `_arrays` gives them."""
    block = part.block
    if block is not None:
        block = LabelBlock(
            keys=block.keys,
            labels=block.labels,
            top1=arrays["top1"],
            shift=arrays["shift"],
            payload={name: arrays[PAYLOAD + name] for name in block.payload},
            codec=block.codec,
            views=arrays.get("views"),
            lengths=arrays.get("lengths"),
            features=arrays.get("features"),
        )
    pictures = arrays.get("pictures", part.pictures)
    return StoredRows(part.keys, pictures, arrays.get("labels", part.labels), block)


def _taken(labels: Numbers | pa.LargeListArray, rows: Numbers) -> Numbers | pa.LargeListArray:
    return labels[rows] if isinstance(labels, np.ndarray) else labels.take(pa.array(rows))


def _joined(parts: Sequence[Numbers | pa.LargeListArray]) -> Numbers | pa.LargeListArray:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return pa.concat_arrays(parts)
