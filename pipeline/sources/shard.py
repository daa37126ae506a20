"""A shard of a source: a file, or files that belong together, read by row ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.sources.mapped import MappedRows, joined_mapped
from softlabel.pipeline.sources.sequences import SequenceRows, Sequences, joined_rows
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import NumberInput

# As they are stored: uint8 [N, height, width, channels], left where they are if they lie so in a
# mapped file, or the bytes of N encoded ones, None where a row has none; of tables a structured
# array [N], or sequences that are not padded yet.
Pictures = Array | MappedRows | Sequence[bytes | None] | SequenceRows


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Rows of one source shard: keys `[N]`, labels `[N]` as in `SampleBlock`."""

    keys: pa.StringArray
    pictures: Pictures
    labels: pa.Int32Array

    def take(self, rows: npt.NDArray[np.int64]) -> ShardRows:
        """The rows of these numbers, in this order."""
        numbers = pa.array(rows)
        return ShardRows(
            self.keys.take(numbers), taken(self.pictures, rows), self.labels.take(numbers)
        )


@dataclass(frozen=True, slots=True)
class Number:
    """A column of numbers. shape: of one sample, -1 where its lists may have any length."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class SourceShard(Protocol):
    """One shard of a source: a file, or files that belong together.

    name: unique in its source, as the plan and the receipts spell it. bytes: of its files.
    stated: SHA-256 of its rows where the shard itself states it.
    """

    name: str
    rows: int
    bytes: int
    stated: str | None

    def read(self, first: int, rows: int) -> Iterator[ShardRows]:
        """Rows `first` to `first + rows`, in pieces of the shard's own size; see `Source.read`."""

    def keys(self) -> pa.StringArray:
        """The keys of all rows, in order; pictures stay unread."""

    def sha256(self) -> str:
        """SHA-256 of the shard's bytes as they are now."""

    def reopen(self) -> SourceShard:
        """The same shard for another thread."""

    def close(self) -> None:
        """Let go of what is open and held; the next read opens it again."""


class NumberShard(SourceShard, Protocol):
    """A shard of a table without pictures."""

    def taking(self, wanted: Sequence[NumberInput] | Sequences) -> NumberShard:
        """The same shard, whose rows are these columns: a structured array `[N]`, or sequences."""


def taken(pictures: Pictures, rows: npt.NDArray[np.int64]) -> Pictures:
    """The pictures of these numbers, in this order."""
    if isinstance(pictures, np.ndarray):
        return pictures[rows]
    if isinstance(pictures, MappedRows | SequenceRows):
        return pictures.take(rows)
    return [pictures[row] for row in rows.tolist()]


def joined(parts: Sequence[Pictures]) -> Pictures:
    """The pictures of `parts`, all stored alike, one after the other."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(cast("Sequence[Array]", parts)) if len(parts) > 1 else parts[0]
    if isinstance(parts[0], MappedRows):
        return joined_mapped(cast("Sequence[MappedRows]", parts))
    if isinstance(parts[0], SequenceRows):
        return joined_rows(cast("Sequence[SequenceRows]", parts))
    return [picture for part in cast("Sequence[Sequence[bytes]]", parts) for picture in part]
