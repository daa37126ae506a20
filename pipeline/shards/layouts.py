"""Label shards of any layout: one writer and one reader, chosen by the set's packing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from softlabel.pipeline.publish import publishing
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.packing import Packing
from softlabel.pipeline.shards.parquet import ParquetReader, ParquetWriter
from softlabel.pipeline.shards.tar import TarReader, TarWriter
from softlabel.schemas.labelset import shard_file


class ShardWriter(Protocol):
    """Appends blocks of label rows to one shard. rows: those appended so far."""

    rows: int

    def append(self, block: LabelBlock) -> None:
        """Add the rows of `block`."""

    def finish(self) -> tuple[int, str]:
        """Write what is left; return the shard's size in bytes and its SHA-256."""

    def abandon(self) -> None:
        """Let go of a shard that will not be published."""


class ShardReader(Protocol):
    """Reads row ranges of one shard. Raises DataError where the shard is damaged."""

    @property
    def rows(self) -> int:
        """Rows in the shard."""

    def read(self, first: int, rows: int) -> Iterator[LabelBlock]:
        """Rows `first` to `first + rows`, in blocks of the reader's own size."""

    def keys(self) -> pa.ChunkedArray:
        """The keys of all rows, in order."""


def shard_path(folder: Path, name: str, packing: Packing) -> Path:
    """Where the shard `name` of a set in `folder` lies."""
    return folder / shard_file(name, packing.layout)


def open_shard(folder: Path, name: str, packing: Packing, sha256: str | None = None) -> ShardReader:
    """A reader of the shard `name`.

    sha256: of its receipt. A tar has no checksums of its own and is read through before its first
    row is served; Parquet pages carry theirs. Raises DataError where it is no shard of this set.
    """
    path = shard_path(folder, name, packing)
    if packing.layout in ("packed", "lists"):
        return ParquetReader(path, packing)
    return TarReader(path, packing, sha256)


@contextlib.contextmanager
def writing_shard(folder: Path, name: str, packing: Packing) -> Iterator[ShardWriter]:
    """A writer whose file is published when the block ends without an exception.

    The block must call `finish`.
    """
    with publishing(shard_path(folder, name, packing)) as file:
        writer: ShardWriter
        if packing.layout in ("packed", "lists"):
            writer = ParquetWriter(file, packing)
        else:
            writer = TarWriter(file, packing)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
