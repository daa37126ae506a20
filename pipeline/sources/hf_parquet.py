"""Parquet files of encoded pictures or of numbers, as Hugging Face and others write them.

Columns: see `picture_columns` and `number_columns`; keys and labels: see `label_columns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from softlabel.pipeline.sources.files import digest_of, readable, size_of
from softlabel.pipeline.sources.label_columns import (
    TableColumns,
    check_agreement,
    checked_keys,
    features_of,
)
from softlabel.pipeline.sources.number_columns import NumberColumns, find_numbers
from softlabel.pipeline.sources.picture_columns import (
    PIECE_BYTES,
    PIECE_ROWS,
    find_columns,
    has_pictures,
)
from softlabel.pipeline.sources.reasons import reason
from softlabel.pipeline.sources.row_keys import check_stems, numbered_keys
from softlabel.pipeline.sources.sequences import Sequences
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.sources.table_source import table_source
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location
from softlabel.schemas.teacher import NumberInput

# Row groups may hold gigabytes: the file is read through a buffer of this size.
BUFFER_BYTES = 2**20
FAULTS = (OSError, ValueError, pa.ArrowException)


def open_hf_parquet(path: Location, files: Sequence[Location]) -> Source:
    """The source in these files. Raises DataError where they cannot be used or differ."""
    check_stems(path, {file: file.stem for file in files})
    found = {file: _look_into(file) for file in files}
    check_agreement(path, {file: columns for file, (columns, _) in found.items()})
    shards = [
        ParquetTable(file, columns, groups, size_of(file))
        for file, (columns, groups) in found.items()
    ]
    return table_source(path, shards, shards[0].columns)


@dataclass(frozen=True, slots=True)
class RowGroups:
    """starts: first row of each row group, and the rows of all. piece_rows: read at once of each.

    A row group is read in one piece where it has no more than 64 MiB.
    """

    starts: npt.NDArray[np.int64]
    piece_rows: tuple[int, ...]


class ParquetTable:
    """One Parquet file; the piece read last is kept, and where reading goes on after it."""

    def __init__(self, path: Location, columns: TableColumns, groups: RowGroups, size: int) -> None:
        self.name = path.name
        self.rows = int(groups.starts[-1])
        self.bytes = size
        self.stated: str | None = None
        self.columns = columns
        self._path = path
        self._groups = groups
        self._file: pq.ParquetFile | None = None
        self._group = -1
        self._pieces: Iterator[tuple[int, pa.RecordBatch]] = iter(())
        self._piece: tuple[int, pa.RecordBatch] | None = None

    def read(self, first: int, rows: int) -> Iterator[ShardRows]:
        """Rows `first` to `first + rows`, at most 256 at once."""
        end = first + rows
        while first < end:
            start, batch = self._piece_with(first)
            offset = first - start
            taken = min(end - first, len(batch) - offset, PIECE_ROWS)
            yield self.columns.rows(self._path, batch.slice(offset, taken), first)
            first += taken

    def keys(self) -> pa.StringArray:
        """The keys of all rows, in order; pictures stay unread."""
        key = self.columns.others.key
        if key is None:
            return numbered_keys(self._path.stem, 0, self.rows)
        try:
            with _open(self._path) as file:
                column = file.read(columns=[key])[key]
        except FAULTS as error:
            raise DataError(
                f"{self._path}: column {key!r} cannot be read: {reason(error)}; fetch the file "
                "again"
            ) from error
        return checked_keys(self._path, column.combine_chunks(), 0)

    def sha256(self) -> str:
        """SHA-256 of the file as it is now."""
        return digest_of(self._path)

    def reopen(self) -> ParquetTable:
        """The same file for another thread."""
        return ParquetTable(self._path, self.columns, self._groups, self.bytes)

    def taking(self, wanted: Sequence[NumberInput] | Sequences) -> ParquetTable:
        """The same table of numbers with these inputs to read."""
        assert isinstance(self.columns, NumberColumns)
        columns = self.columns.taking(wanted)
        return ParquetTable(self._path, columns, self._groups, self.bytes)

    def close(self) -> None:
        """Let go of the file and its last piece."""
        self._piece, self._pieces, self._group = None, iter(()), -1
        if self._file is not None:
            self._file.close()
            self._file = None

    def _piece_with(self, row: int) -> tuple[int, pa.RecordBatch]:
        """The piece that holds `row`, and its first row.

        What lies between the last piece and this one is read over; a row group read before begins
        again at its first row.
        """
        if self._piece is not None and 0 <= row - self._piece[0] < len(self._piece[1]):
            return self._piece
        group = int(np.searchsorted(self._groups.starts, row, side="right")) - 1
        if group != self._group or self._piece is None or row < self._piece[0]:
            self._group, self._pieces = group, self._read_group(group)
        self._piece = None
        for start, batch in self._pieces:
            if row < start + len(batch):
                self._piece = start, batch
                return self._piece
        raise DataError(f"{self._path}: row {row} is gone; the file changed, start again")

    def _read_group(self, group: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        start = int(self._groups.starts[group])
        try:
            if self._file is None:
                self._file = _open(self._path)
            for batch in self._file.iter_batches(
                batch_size=self._groups.piece_rows[group],
                row_groups=[group],
                columns=self.columns.leaves,
            ):
                yield start, batch
                start += len(batch)
        except FAULTS as error:
            raise DataError(
                f"{self._path}: row group {group} cannot be read: {reason(error)}; fetch the file "
                "again"
            ) from error


def _look_into(path: Location) -> tuple[TableColumns, RowGroups]:
    try:
        with _open(path) as file:
            schema, meta = file.schema_arrow, file.metadata
            find = find_columns if has_pictures(schema) else find_numbers
            columns: TableColumns = find(
                path, schema, features_of(path, schema), lambda name: _has_nulls(file, name)
            )
    except FAULTS as error:
        raise DataError(
            f"{path}: is no Parquet file: {reason(error)}; fetch the file again"
        ) from error
    groups = [meta.row_group(index) for index in range(meta.num_row_groups)]
    rows = [group.num_rows for group in groups]
    pieces = tuple(_piece_rows(group) for group in groups)
    return columns, RowGroups(np.concatenate([[0], np.cumsum(rows)]).astype(np.int64), pieces)


def _open(path: Location) -> pq.ParquetFile:
    # Buffered ahead, a row group would be in memory whole.
    return pq.ParquetFile(
        readable(path), buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
    )


def _has_nulls(file: pq.ParquetFile, name: str) -> bool:
    return any(batch.column(0).null_count for batch in file.iter_batches(columns=[name]))


def _piece_rows(group: pq.RowGroupMetaData) -> int:
    """From the size of all columns: to ask a damaged footer for one of them ends the process."""
    rows, size = int(group.num_rows), int(group.total_byte_size)
    fitting = rows if size <= PIECE_BYTES else min(PIECE_ROWS, rows * PIECE_BYTES // size)
    return max(1, fitting)
