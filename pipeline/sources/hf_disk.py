"""A folder that Hugging Face's `Dataset.save_to_disk` wrote: Arrow streams of pictures or numbers.

Columns: see `picture_columns` and `number_columns`; the key is column `key`, `__key__` or `id`,
else the row's number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.sources.label_columns import (
    TableColumns,
    check_agreement,
    checked_features,
    checked_keys,
    features_of,
)
from softlabel.pipeline.sources.number_columns import NumberColumns, find_numbers
from softlabel.pipeline.sources.picture_columns import (
    PIECE_ROWS,
    find_columns,
    has_pictures,
)
from softlabel.pipeline.sources.reasons import no_such_source, reason
from softlabel.pipeline.sources.row_keys import check_stems, numbered_keys
from softlabel.pipeline.sources.sequences import Sequences
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.sources.table_source import table_source
from softlabel.schemas.errors import DataError
from softlabel.schemas.teacher import NumberInput

STATE_FILE = "state.json"
INFO_FILE = "dataset_info.json"
DICT_FILE = "dataset_dict.json"
# Without it a stream that was cut between two batches looks whole.
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
FAULTS = (OSError, ValueError, pa.ArrowException)


def open_hf_disk(path: Path) -> Source:
    """The source in this folder. Raises ParameterError where there is none, DataError."""
    if not path.exists():
        raise no_such_source(path)
    if (path / DICT_FILE).exists():
        splits = _read_json(path / DICT_FILE).get("splits") or ()
        names = ", ".join(map(repr, splits))
        raise DataError(f"{path}: holds several datasets; name the folder of one of them: {names}")
    state, info = _read_json(path / STATE_FILE), _read_json(path / INFO_FILE)
    if state.get("_indices_data_files"):
        raise DataError(
            f"{path}: its rows are chosen by an indices mapping; call flatten_indices() on the "
            "dataset and save it again"
        )
    files = _data_files(path, state)
    check_stems(path, {file: file.stem for file in files})
    features = checked_features(path / INFO_FILE, info.get("features"))
    found = {file: _look_into(file, features) for file in files}
    if found:
        check_agreement(path, {file: columns for file, (columns, _) in found.items()})
    shards = [ArrowTable(file, columns, starts) for file, (columns, starts) in found.items()]
    if not shards:
        return Source(path, (), ())
    return table_source(path, shards, shards[0].columns)


class ArrowTable:
    """One Arrow stream, mapped into memory while it is read."""

    def __init__(self, path: Path, columns: TableColumns, starts: npt.NDArray[np.int64]) -> None:
        self.name = path.name
        self.rows = int(starts[-1])
        self.bytes = path.stat().st_size
        self.stated: str | None = None
        self.columns = columns
        self._path = path
        self._starts = starts
        self._batches: list[pa.RecordBatch] | None = None

    def read(self, first: int, rows: int) -> Iterator[ShardRows]:
        """Rows `first` to `first + rows`, at most 256 at once."""
        batches = self._mapped()
        end = first + rows
        while first < end:
            place = int(np.searchsorted(self._starts, first, side="right")) - 1
            offset = first - int(self._starts[place])
            taken = min(end - first, len(batches[place]) - offset, PIECE_ROWS)
            yield self.columns.rows(self._path, batches[place].slice(offset, taken), first)
            first += taken

    def keys(self) -> pa.StringArray:
        """The keys of all rows, in order; pictures stay unread."""
        key = self.columns.others.key
        if key is None:
            return numbered_keys(self._path.stem, 0, self.rows)
        pieces = [
            checked_keys(self._path, batch.column(key), int(start))
            for batch, start in zip(self._mapped(), self._starts[:-1], strict=True)
        ]
        return pa.concat_arrays(pieces) if pieces else pa.array([], pa.string())

    def sha256(self) -> str:
        """SHA-256 of the file as it is now."""
        return file_sha256(self._path)

    def reopen(self) -> ArrowTable:
        """The same file for another thread."""
        return ArrowTable(self._path, self.columns, self._starts)

    def taking(self, wanted: Sequence[NumberInput] | Sequences) -> ArrowTable:
        """The same table of numbers with these inputs to read."""
        assert isinstance(self.columns, NumberColumns)
        return ArrowTable(self._path, self.columns.taking(wanted), self._starts)

    def close(self) -> None:
        """Let go of the file."""
        self._batches = None

    def _mapped(self) -> list[pa.RecordBatch]:
        if self._batches is None:
            stream = _map(self._path)
            if not np.array_equal(stream.starts, self._starts):
                raise DataError(f"{self._path}: has other rows now; the file changed, start again")
            self._batches = stream.batches
        return self._batches


@dataclass(frozen=True, slots=True)
class _Stream:
    """A mapped Arrow stream. starts: first row of each batch, and the rows of all."""

    schema: pa.Schema
    batches: list[pa.RecordBatch]
    starts: npt.NDArray[np.int64]


def _look_into(
    path: Path, features: Mapping[str, Any]
) -> tuple[TableColumns, npt.NDArray[np.int64]]:
    stream = _map(path)
    find = find_columns if has_pictures(stream.schema) else find_numbers
    columns: TableColumns = find(
        path,
        stream.schema,
        features or features_of(path, stream.schema),
        lambda name: any(batch.column(name).null_count for batch in stream.batches),
    )
    return columns, stream.starts


def _map(path: Path) -> _Stream:
    """The stream's batches where they lie in the file: only their headers are read."""
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            file.seek(max(0, size - len(END_OF_STREAM)))
            whole = file.read() == END_OF_STREAM
        mapped = pa.memory_map(str(path))
        reader = pa.ipc.open_stream(mapped)
        batches = list(reader)
    except FAULTS as error:
        raise DataError(
            f"{path}: is no Arrow stream: {reason(error)}; save the dataset to disk again"
        ) from error
    if not whole or mapped.tell() != size:
        raise DataError(f"{path}: the stream is cut; save the dataset to disk again")
    rows = [len(batch) for batch in batches]
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    return _Stream(reader.schema, batches, starts)


def _data_files(path: Path, state: dict[str, Any]) -> list[Path]:
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
        safe = all(name == Path(name).name for name in names)
    except (KeyError, TypeError) as error:
        raise _damaged(path / STATE_FILE) from error
    if not safe or len(set(names)) < len(names):
        raise DataError(
            f"{path / STATE_FILE}: must list files of its own folder, each once; "
            "save the dataset to disk again"
        )
    for name in names:
        if not (path / name).is_file():
            raise DataError(f"{path}: lacks {name}, which {STATE_FILE} lists; fetch it again")
    return [path / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path.parent}: is no dataset saved to disk: {path.name} cannot be read "
            f"({error.strerror}); save it with Dataset.save_to_disk"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(values, dict):
        raise _damaged(path)
    return values


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: is damaged; save the dataset to disk again")
