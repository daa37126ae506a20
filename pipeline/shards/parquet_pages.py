"""A few rows of a Parquet column of fixed width from the pages they lie in.

Arrow reads whole row groups, of 64 MiB; a window of shuffled rows wants an eighth of one here and
another there. What is read is as the format has it: a data page of the first version (a header by
Thrift's compact protocol, then the values one after the other), uncompressed, without levels, with
its CRC-32.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

# Of a group's bytes, what may be read of pages beside the rows that were wanted before the group is
# read whole: who goes through it in small steps pays no more than half as much again.
BESIDE = 0.5
# Far more than a header without statistics has.
HEADER_BYTES = 128
DATA_PAGE = PLAIN = 0
# Where in PageHeader what stands; its fifth field is the DataPageHeader.
KIND, UNPACKED, PACKED, CRC, VALUES, ENCODING = (1,), (2,), (3,), (4,), (5, 1), (5, 2)
# Types of Thrift's compact protocol.
STOP, INT32, STRUCT = 0, 5, 12

Values = npt.NDArray[np.uint8]
# Integers by the numbers of the fields that lead to them.
Fields = dict[tuple[int, ...], int]


class Page(NamedTuple):
    """Rows `first` to `first + rows` of a row group: where their bytes begin, and their CRC-32."""

    first: int
    rows: int
    offset: int
    crc: int


class GroupPages:
    """The pages of a row group's columns of fixed width. columns: of which there are such, by name.

    names: of all columns of the file, in order. Raises OSError.
    """

    def __init__(self, path: Path, meta: pq.FileMetaData, group: int, names: Sequence[str]) -> None:
        self.columns: dict[str, ColumnPages] = {}
        for place, name in enumerate(names):
            # The values of lists are a column of another name.
            if meta.schema.column(place).path == name:
                pages = column_pages(path, meta, group, place)
                if pages is not None:
                    self.columns[name] = pages
        self._left = BESIDE * sum(pages.bytes for pages in self.columns.values())

    def afford(self, first: int, rows: int) -> bool:
        """Whether to read these rows by their pages, counting what was read so before."""
        self._left -= sum(pages.beside(first, rows) for pages in self.columns.values())
        return bool(self.columns) and self._left >= 0

    def read(self, first: int, rows: int) -> dict[str, Values] | None:
        """Rows `first` to `first + rows` of each column, `[rows, bytes]`.

        None where a page's checksum is wrong.
        """
        found = {}
        for name, pages in self.columns.items():
            values = pages.read(first, rows)
            if values is None:
                return None
            found[name] = values
        return found


class ColumnPages:
    """The pages of one column of one row group. width: bytes of a value."""

    def __init__(self, path: Path, width: int, pages: list[Page]) -> None:
        self._path = path
        self._width = width
        self._pages = pages
        self._firsts = [page.first for page in pages]

    @property
    def bytes(self) -> int:
        """Of all values."""
        return sum(page.rows for page in self._pages) * self._width

    def beside(self, first: int, rows: int) -> int:
        """The bytes that `read` takes from the file beside those rows."""
        return (sum(page.rows for page in self._holding(first, rows)) - rows) * self._width

    def read(self, first: int, rows: int) -> Values | None:
        """Rows `first` to `first + rows` of the group, `[rows, width]`; None where a CRC is wrong.

        Pages are checked whole.
        """
        pages = self._holding(first, rows)
        values = np.empty((sum(page.rows for page in pages), self._width), np.uint8)
        with open(self._path, "rb", buffering=0) as file:
            at = 0
            for page in pages:
                place = values[at : at + page.rows].data.cast("B")
                file.seek(page.offset)
                # A short read leaves bytes that the checksum does not know.
                file.readinto(place)
                if zlib.crc32(place) != page.crc:
                    return None
                at += page.rows
        skipped = first - pages[0].first
        return values[skipped : skipped + rows]

    def _holding(self, first: int, rows: int) -> list[Page]:
        begin = bisect_right(self._firsts, first) - 1
        return self._pages[begin : bisect_right(self._firsts, first + rows - 1)]


def column_pages(path: Path, meta: pq.FileMetaData, group: int, column: int) -> ColumnPages | None:
    """The pages of a column in a row group; None where they are of any other kind than ours.

    So they are too where a header is damaged: Arrow says more of it.
    """
    chunk, schema = meta.row_group(group).column(column), meta.schema.column(column)
    ours = (
        schema.physical_type == "FIXED_LEN_BYTE_ARRAY"
        and schema.max_definition_level == 0
        and chunk.compression == "UNCOMPRESSED"
        and not chunk.has_dictionary_page
    )
    if not ours:
        return None
    offset, rows = chunk.data_page_offset, meta.row_group(group).num_rows
    with open(path, "rb", buffering=0) as file:
        pages = list(_walk(file, offset, offset + chunk.total_compressed_size, schema.length))
    if sum(page.rows for page in pages) != rows:
        return None
    return ColumnPages(path, schema.length, pages)


def _walk(file: BinaryIO, offset: int, end: int, width: int) -> Iterator[Page]:
    """The pages between two places of the file, up to one that is of another kind."""
    first = 0
    while offset < end:
        file.seek(offset)
        try:
            header, length = _fields(file.read(HEADER_BYTES), 0)
            kinds = header[KIND], header[ENCODING]
            rows, crc = header[VALUES], header[CRC]
            sizes = header[PACKED], header[UNPACKED]
        except (LookupError, ValueError):
            return
        size = rows * width
        if kinds != (DATA_PAGE, PLAIN) or sizes != (size, size) or rows < 1:
            return
        yield Page(first, rows, offset + length, crc % 2**32)
        first += rows
        offset += length + size


def _fields(data: bytes, at: int, path: tuple[int, ...] = ()) -> tuple[Fields, int]:
    """What the struct that begins at `at` holds, and where it ends.

    Raises LookupError where the bytes end before, ValueError where it holds other than integers
    and structs.
    """
    fields: Fields = {}
    number = 0
    while (kind := data[at]) != STOP:
        step, kind = kind >> 4, kind & 15
        number, at = number + step, at + 1
        if step and kind == INT32:
            fields[*path, number], at = _integer(data, at)
        elif step and kind == STRUCT:
            inner, at = _fields(data, at, (*path, number))
            fields |= inner
        else:
            raise ValueError(f"a field after number {number} is of type {kind}")
    return fields, at + 1


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag number of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return (value >> 1) ^ -(value & 1), at
