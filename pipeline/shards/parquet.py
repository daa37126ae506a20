"""Label shards as Parquet files: a writer that cuts row groups by bytes, and a reader of them.

The file's metadata `softlabel` says what the shard is. Pages carry checksums; readers verify
them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.gathering import GatheredRows
from softlabel.pipeline.shards.hashing import HashingFile
from softlabel.pipeline.shards.packing import Packing, payload_bytes
from softlabel.pipeline.shards.parquet_columns import shard_schema, to_batch, to_block
from softlabel.pipeline.shards.parquet_pages import GroupPages
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import SHARD_METADATA_KEY

ROW_GROUP_BYTES = 64 * 2**20
# About what key, label, top1 and shift take.
ROW_OVERHEAD = 64


class ParquetWriter:
    """Appends encoded blocks to one shard; row groups are cut by bytes, not by batches."""

    def __init__(self, file: BinaryIO, packing: Packing) -> None:
        self._packing = packing
        self._schema = shard_schema(packing)
        self._file = HashingFile(file)
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._file, "w"),
            self._schema,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        self._row_bytes = payload_bytes(packing.codec) + 2 * (packing.identity.features or 0)
        self._group_rows = max(1, ROW_GROUP_BYTES // (ROW_OVERHEAD + self._row_bytes))
        self._pending = GatheredRows(self._group_rows)
        self._pending_bytes = 0
        self.rows = 0

    def append(self, block: LabelBlock) -> None:
        """Add N rows; whole row groups are written as soon as they are full."""
        first = 0
        for end in self._group_ends(block):
            self._hold(block, first, end)
            self._write_group()
            first = end
        self._hold(block, first, len(block))
        self.rows += len(block)

    def _group_ends(self, block: LabelBlock) -> Iterator[int]:
        """The rows of `block` before which a row group ends."""
        if block.lengths is None:
            yield from range(
                self._group_rows - self._pending.rows, len(block) + 1, self._group_rows
            )
            return
        # Sequences differ in size: a group ends before the row that would overfill it.
        sizes = ROW_OVERHEAD + block.lengths.astype(np.int64) * (self._row_bytes + 10)
        for row, size in enumerate(sizes.tolist()):
            if self._pending_bytes and self._pending_bytes + size > ROW_GROUP_BYTES:
                yield row
                self._pending_bytes = 0
            self._pending_bytes += size

    def _hold(self, block: LabelBlock, first: int, end: int) -> None:
        if end > first:
            whole = end - first == len(block)
            self._pending.add(block if whole else block.slice(first, end - first))

    def finish(self) -> tuple[int, str]:
        """Write what is left and the footer; return the shard's size in bytes and its SHA-256."""
        if self._pending.rows or not self.rows:
            self._write_group()
        self._writer.close()
        return self._file.size, self._file.digest.hexdigest()

    def abandon(self) -> None:
        """Let go of a shard that will not be published."""
        with contextlib.suppress(Exception):
            self._writer.close()

    def _write_group(self) -> None:
        """Write the rows held as one group: in one piece, or batches would show in the bytes."""
        table = self._schema.empty_table()
        if self._pending.rows:
            batch = to_batch(self._pending.block(), self._packing, self._schema)
            table = pa.Table.from_batches([batch])
        self._writer.write_table(table, row_group_size=len(table) or None)
        self._pending.clear()


class ParquetReader:
    """Reads row ranges of one label shard; the last decoded row group is kept.

    Where few rows of a row group are wanted, its wide columns are read by pages, and only the
    others whole.

    Raises DataError when the file is damaged or belongs to another set.
    """

    def __init__(self, path: Path, packing: Packing) -> None:
        self._path = path
        self._packing = packing
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            self._check_metadata()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._damaged(str(error)) from error
        meta = self._file.metadata
        rows = [meta.row_group(index).num_rows for index in range(meta.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._group: tuple[int, LabelBlock] | None = None
        self._pages: tuple[int, GroupPages] | None = None
        self._narrow: pa.Table | None = None

    @property
    def rows(self) -> int:
        """Rows in the shard."""
        return int(self._starts[-1])

    def read(self, first: int, rows: int) -> Iterator[LabelBlock]:
        """Rows `first` to `first + rows` as blocks that never cross a row group."""
        end = first + rows
        while first < end:
            group = int(np.searchsorted(self._starts, first, side="right")) - 1
            offset = first - int(self._starts[group])
            taken = min(end, int(self._starts[group + 1])) - first
            yield self._rows_of(group, offset, taken)
            first += taken

    def keys(self) -> pa.ChunkedArray:
        """The keys of all rows, in order."""
        try:
            return self._file.read(columns=["key"])["key"]
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(str(error)) from error

    def _rows_of(self, group: int, first: int, rows: int) -> LabelBlock:
        held = self._group is not None and self._group[0] == group
        if not held and rows < self._starts[group + 1] - self._starts[group]:
            block = self._read_pages(group, first, rows)
            if block is not None:
                return block
        return self._read_group(group).slice(first, rows)

    def _read_group(self, group: int) -> LabelBlock:
        if self._group is None or self._group[0] != group:
            self._let_go()
            self._group = (group, self._block(self._read_columns(group, None)))
        return self._group[1]

    def _read_pages(self, group: int, first: int, rows: int) -> LabelBlock | None:
        """These rows by their pages; None where the group is to be read whole."""
        names = self._file.schema_arrow.names
        if self._pages is None or self._pages[0] != group:
            self._let_go()
            try:
                pages = GroupPages(self._path, self._file.metadata, group, names)
            except OSError as error:
                raise self._damaged(str(error)) from error
            self._pages = (group, pages)
        pages = self._pages[1]
        if not pages.afford(first, rows):
            return None
        wide = pages.read(first, rows)
        if wide is None:
            return None
        if self._narrow is None:
            others = [name for name in names if name not in pages.columns]
            self._narrow = self._read_columns(group, others)
        table = self._narrow.slice(first, rows)
        for name, values in wide.items():
            field = self._file.schema_arrow.field(name)
            buffers = [None, pa.py_buffer(values)]
            array = pa.FixedSizeBinaryArray.from_buffers(field.type, rows, buffers)
            table = table.append_column(field, array)
        return self._block(table)

    def _let_go(self) -> None:
        self._group = self._pages = self._narrow = None

    def _read_columns(self, group: int, names: list[str] | None) -> pa.Table:
        try:
            return self._file.read_row_group(group, columns=names).combine_chunks()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._damaged(str(error)) from error

    def _block(self, table: pa.Table) -> LabelBlock:
        try:
            return to_block(table, self._packing)
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def _check_metadata(self) -> None:
        text = (self._file.schema_arrow.metadata or {}).get(SHARD_METADATA_KEY)
        if text is None:
            raise self._damaged("it is no label shard")
        if json.loads(text).get("identity_sha256") != self._packing.identity_sha256:
            raise self._damaged("it belongs to another label set")
        if not self._file.schema_arrow.equals(shard_schema(self._packing), check_metadata=True):
            raise self._damaged("its columns are not those of its label set")

    def _damaged(self, reason: str) -> DataError:
        return damaged_shard(self._path, reason, self._packing)


def damaged_shard(path: Path, reason: str, packing: Packing) -> DataError:
    """The error for a shard that cannot be trusted."""
    return DataError(
        f"{path}: {' '.join(reason.split())}; run 'softlabel verify --repair --labels "
        f"{path.parent}', then 'softlabel {packing.made_by}' again"
    )
