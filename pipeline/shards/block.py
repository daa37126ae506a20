"""A block of label rows, as it is written to and comes back from a label set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.codecs.codec import Columns, Decoder
from softlabel.pipeline.codecs.numerics import Floats, softmax
from softlabel.pipeline.codecs.sparse import SparseTargets, sparse_of_logits, sparse_of_stored
from softlabel.pipeline.codecs.topk import TopK
from softlabel.pipeline.shards.tables import block_table

# Full logits decoded at a time, and rows however few their classes.
PIECE_VALUES = 2**20
PIECE_ROWS = 8192


@dataclass(frozen=True, slots=True)
class LabelBlock:
    """N label rows of C classes; P positions, which are the rows but where rows are sequences.

    keys `[N]`; labels int32 `[P]`, null where unknown; top1 `[P]`, the teacher's arg-max; shift
    float32 `[P]`, the row's largest logit; payload: the codec's columns `[P, ...]`, as stored;
    views uint16 `[N]`, or None where samples have one; lengths uint32 `[N]`, the positions of each
    row, or None where rows are no sequences; features float16 `[P, width]`, where stored.
    """

    keys: pa.StringArray
    labels: pa.Int32Array
    top1: npt.NDArray[np.unsignedinteger]
    shift: npt.NDArray[np.float32]
    payload: Columns
    codec: Decoder
    views: npt.NDArray[np.uint16] | None = None
    lengths: npt.NDArray[np.uint32] | None = None
    features: npt.NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def logits(self, T: float = 1.0) -> Floats:
        """Float32 `[P, C]` whose `softmax(. / T)` are the soft targets at T; T > 0.

        The other codecs give the same logits for every T; `topk` spreads its tail for this one.
        """
        _check_temperature(T)
        return self.codec.logits({**self.payload, "top1": self.top1}, T)

    def probs(self, T: float) -> Floats:
        """Soft targets `softmax(z / T)`, float32 `[P, C]`; T > 0."""
        return softmax(self.logits(T), T)

    def sparse(self, T: float = 1.0, k: int | None = None) -> SparseTargets:
        """The k largest logits of each position and the log-sum of the others at T > 0.

        k: of a `topk` set at most what it stored, which is the default; of the others needed.
        Raises ValueError where k or T is impossible.
        """
        _check_temperature(T)
        if isinstance(self.codec, TopK):
            return sparse_of_stored(self.codec, self.payload, T, k)
        if k is None:
            raise ValueError("these labels are not stored as topk: say how many classes to keep, k")
        return sparse_of_logits(self.logits(T), self.top1.dtype, T, k)

    def to_arrow(self) -> pa.Table:
        """The rows as a table with real list columns, values as stored; see `block_table`."""
        return block_table(self)

    def starts(self) -> npt.NDArray[np.int64]:
        """Where each row's positions begin, and the end of the last, int64 `[N + 1]`."""
        if self.lengths is None:
            return np.arange(len(self) + 1, dtype=np.int64)
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def slice(
        self, first: int, rows: int, starts: npt.NDArray[np.int64] | None = None
    ) -> LabelBlock:
        """Rows `first` to `first + rows` without copying.

        starts: what `starts()` says, for who slices one block of sequences many times.
        """
        start, stop = first, first + rows
        if self.lengths is not None:
            starts = self.starts() if starts is None else starts
            start, stop = int(starts[start]), int(starts[stop])
        # Not by `replace` or `_parts`: in a stream this is all that happens to a block.
        return LabelBlock(
            self.keys.slice(first, rows),
            self.labels.slice(start, stop - start),
            self.top1[start:stop],
            self.shift[start:stop],
            {name: values[start:stop] for name, values in self.payload.items()},
            self.codec,
            None if self.views is None else self.views[first : first + rows],
            None if self.lengths is None else self.lengths[first : first + rows],
            None if self.features is None else self.features[start:stop],
        )

    def take(self, numbers: npt.NDArray[np.integer]) -> LabelBlock:
        """The rows of these numbers, in this order."""
        rows: npt.NDArray[np.int64] = np.asarray(numbers, np.int64)
        positions = rows if self.lengths is None else spread(self.starts(), rows)
        return self._picked(rows, positions, None if self.lengths is None else self.lengths[rows])

    def take_positions(self, numbers: npt.NDArray[np.integer]) -> LabelBlock:
        """The positions of these numbers as rows of their own, each with its sequence's key."""
        positions: npt.NDArray[np.int64] = np.asarray(numbers, np.int64)
        rows = positions
        if self.lengths is not None:
            rows = np.searchsorted(self.starts(), positions, side="right") - 1
        return self._picked(rows, positions, None)

    def _picked(
        self,
        rows: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.uint32] | None,
    ) -> LabelBlock:
        return LabelBlock(
            self.keys.take(pa.array(rows)),
            self.labels.take(pa.array(positions)),
            self.top1[positions],
            self.shift[positions],
            {name: values[positions] for name, values in self.payload.items()},
            self.codec,
            None if self.views is None else self.views[rows],
            lengths,
            None if self.features is None else self.features[positions],
        )


def spread(starts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The positions of `rows`, one row after the other; row r begins at `starts[r]`."""
    lengths = starts[rows + 1] - starts[rows]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.asarray(np.arange(total) + np.repeat(starts[rows] - (ends - lengths), lengths))


def concat_blocks(blocks: Sequence[LabelBlock]) -> LabelBlock:
    """The rows of `blocks` of one label set, one after the other; a single block as it is."""
    first = blocks[0]
    if len(blocks) == 1:
        return first
    return LabelBlock(
        pa.concat_arrays([block.keys for block in blocks]),
        pa.concat_arrays([block.labels for block in blocks]),
        np.concatenate([block.top1 for block in blocks]),
        np.concatenate([block.shift for block in blocks]),
        {name: np.concatenate([block.payload[name] for block in blocks]) for name in first.payload},
        first.codec,
        _joined([block.views for block in blocks]),
        _joined([block.lengths for block in blocks]),
        _joined([block.features for block in blocks]),
    )


def piece_rows(classes: int) -> int:
    """How many rows are small enough to be decoded whole, one at least."""
    return max(1, min(PIECE_ROWS, PIECE_VALUES // classes))


def in_pieces(blocks: Iterable[LabelBlock], classes: int) -> Iterator[LabelBlock]:
    """The rows of `blocks` in blocks that are small enough to be decoded whole, a row at least."""
    limit = piece_rows(classes)
    for block in blocks:
        starts = block.starts()
        first = 0
        while first < len(block):
            stop = int(np.searchsorted(starts, starts[first] + limit, side="right")) - 1
            stop = max(first + 1, stop)
            yield block.slice(first, stop - first, starts)
            first = stop


def _joined(parts: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    if parts[0] is None:
        return None
    return np.concatenate(cast("Sequence[npt.NDArray[Any]]", parts))


def _check_temperature(T: float) -> None:
    if not 0 < T < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {T}")
