"""Numbers in `.npz` files, for teachers that take no pictures: arrays by the names of their inputs.

Each array `[N, ...]` of numbers is a column, and so are the labels, and keys where they are text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.sources.array_shard import StoredArray, check_label_kind, chosen_one
from softlabel.pipeline.sources.label_columns import (
    KEYS,
    check_agreement,
    checked_keys,
)
from softlabel.pipeline.sources.number_columns import NumberColumns, find_numbers
from softlabel.pipeline.sources.picture_columns import PIECE_ROWS
from softlabel.pipeline.sources.row_keys import check_stems, numbered_keys
from softlabel.pipeline.sources.sequences import Sequences
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.sources.table_source import table_source
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import NumberInput

# How files name the hard labels, and how tables do.
LABELS = ("labels", "y", "y_train")
LABEL = "label"


class ArrayTable:
    """The arrays of one file as a table; those that are read are loaded, and kept."""

    def __init__(
        self,
        path: Path,
        arrays: Mapping[str, StoredArray],
        columns: NumberColumns,
        stated: str | None = None,
    ) -> None:
        self.name = path.name
        self.rows = next(iter(arrays.values())).shape[0]
        self.bytes = path.stat().st_size
        # As of pictures in arrays: only their bytes tell numbered rows apart.
        self.stated: str | None = stated or file_sha256(path)
        self.columns = columns
        self._path = path
        self._arrays = arrays
        self._loaded: dict[str, Array] = {}

    def read(self, first: int, rows: int) -> Iterator[ShardRows]:
        """Rows `first` to `first + rows`, at most 256 at once."""
        end = first + rows
        for start in range(first, end, PIECE_ROWS):
            last = min(end, start + PIECE_ROWS)
            parts = {name: self._array(name)[start:last] for name in self.columns.leaves}
            batch = pa.record_batch({name: _as_column(part) for name, part in parts.items()})
            yield self.columns.rows(self._path, batch, start)

    def keys(self) -> pa.StringArray:
        """The keys of all rows, in order."""
        key = self.columns.others.key
        if key is None:
            return numbered_keys(self._path.stem, 0, self.rows)
        return checked_keys(self._path, _as_column(self._array(key)), 0)

    def sha256(self) -> str:
        """SHA-256 of the file as it is now."""
        return file_sha256(self._path)

    def reopen(self) -> ArrayTable:
        """The same arrays for another thread."""
        return ArrayTable(self._path, self._arrays, self.columns, self.stated)

    def taking(self, wanted: Sequence[NumberInput] | Sequences) -> ArrayTable:
        """The same arrays with these inputs to read."""
        return ArrayTable(self._path, self._arrays, self.columns.taking(wanted), self.stated)

    def close(self) -> None:
        """Let go of the arrays."""
        self._loaded = {}

    def _array(self, name: str) -> Array:
        if name not in self._loaded:
            array = self._arrays[name].loaded()[:]
            self._loaded[name] = array.reshape(-1, *_axes(name, array.shape))
        return self._loaded[name]


def open_array_tables(path: Location, files: Mapping[Path, Mapping[str, StoredArray]]) -> Source:
    """The source in these files, whose arrays `can_be_column` found. Raises DataError."""
    check_stems(path, {file: file.stem for file in files})
    tables = {file: _with_one_label(file, arrays) for file, arrays in files.items()}
    found = {file: _columns(file, arrays) for file, arrays in tables.items()}
    check_agreement(path, {file: columns for file, columns in found.items()})
    shards = [ArrayTable(file, tables[file], columns) for file, columns in found.items()]
    return table_source(path, shards, shards[0].columns)


def can_be_column(name: str, array: StoredArray) -> bool:
    """Whether a member of a file is a column of numbers, or of keys."""
    kind = array.dtype.kind
    if kind == "U":
        return name in KEYS and len(array.shape) == 1
    counted = len(array.shape) > 0 and 0 not in array.shape[1:]
    return kind in "biuf" and array.dtype.itemsize <= 8 and counted


def _with_one_label(path: Path, arrays: Mapping[str, StoredArray]) -> dict[str, StoredArray]:
    """The arrays, all of one length, with that of labels under its name in tables."""
    named = {name: arrays[name] for name in (LABEL, *LABELS) if name in arrays}
    label = chosen_one(path, named, "labels")
    others = {name: array for name, array in arrays.items() if name not in named}
    if label is None:
        table = others
    else:
        check_label_kind(label)
        table = {**others, LABEL: label}
    rows = {name: array.shape[0] for name, array in arrays.items()}
    (first, wanted), *rest = rows.items()
    for name, other in rest:
        if other != wanted:
            raise DataError(
                f"{path}: {first!r} has {wanted} rows, {name!r} has {other}; save one row a sample"
            )
    return table


def _columns(path: Path, arrays: Mapping[str, StoredArray]) -> NumberColumns:
    empty = {
        name: np.zeros((0, *_axes(name, array.shape)), array.dtype)
        for name, array in arrays.items()
    }
    schema = pa.schema([(name, _as_column(part).type) for name, part in empty.items()])
    return find_numbers(path, schema, {}, lambda _: False)


def _axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of one row: labels may be saved as `[N, 1]`."""
    return () if name == LABEL and shape[1:] == (1,) else shape[1:]


def _as_column(values: Array) -> pa.Array:
    """Values `[N, ...]` as N of a column, those of more axes as lists."""
    if values.dtype.kind == "U":
        return pa.array(values.tolist(), pa.string())
    native = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    column = pa.array(native.reshape(-1))
    for size in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column
