"""The canonical source: Parquet shards of key, hard label and raw picture.

Columns: `key` string; `label` int32, null where unknown; `image` FixedSizeBinary, uint8 in
`[height, width, channels]` order. Shape, class names and the SHA-256 of the rows stand in each
file's metadata under `softlabel.source`, so that a shard describes itself.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError, model_validator

from softlabel.pipeline.publish import publishing
from softlabel.pipeline.sources.files import digest_of, readable, size_of
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location
from softlabel.schemas.model import Record
from softlabel.schemas.sample import SampleBlock

METADATA_KEY = b"softlabel.source"
ROW_GROUP_BYTES = 64 * 2**20


class SourceHeader(Record):
    """What one source shard says of itself."""

    format_version: int = 1
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    digest: str

    @model_validator(mode="after")
    def _classes_are_unique(self) -> SourceHeader:
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(f"class name {twice!r} appears twice")
        return self


class CanonicalShard:
    """One file of the canonical source; the last row group is kept."""

    def __init__(self, path: Location, header: SourceHeader) -> None:
        self.name = path.name
        self.rows = pq.read_metadata(readable(path)).num_rows
        self.bytes = size_of(path)
        self.stated: str | None = header.digest
        self._path = path
        self._header = header
        self._file: tuple[pq.ParquetFile, npt.NDArray[np.int64]] | None = None
        self._group: tuple[int, ShardRows] | None = None

    def read(self, first: int, rows: int) -> Iterator[ShardRows]:
        """Rows `first` to `first + rows`, in pieces that never cross a row group."""
        file, starts = self._opened()
        end = first + rows
        while first < end:
            group = int(np.searchsorted(starts, first, side="right")) - 1
            block = self._read_group(file, group)
            offset = first - int(starts[group])
            taken = min(end - first, len(block.keys) - offset)
            assert isinstance(block.pictures, np.ndarray)
            pictures = block.pictures[offset : offset + taken]
            yield ShardRows(
                block.keys.slice(offset, taken), pictures, block.labels.slice(offset, taken)
            )
            first += taken

    def keys(self) -> pa.StringArray:
        """The keys of all rows, in order; pictures stay unread."""
        return pq.read_table(readable(self._path), columns=["key"])["key"].combine_chunks()

    def sha256(self) -> str:
        """SHA-256 of the file as it is now."""
        return digest_of(self._path)

    def reopen(self) -> CanonicalShard:
        """The same file for another thread."""
        other = copy.copy(self)
        other.close()
        return other

    def close(self) -> None:
        """Let go of the file and its last row group."""
        self._file = self._group = None

    def _opened(self) -> tuple[pq.ParquetFile, npt.NDArray[np.int64]]:
        if self._file is None:
            file = pq.ParquetFile(readable(self._path), page_checksum_verification=True)
            meta = file.metadata
            rows = [meta.row_group(index).num_rows for index in range(meta.num_row_groups)]
            self._file = file, np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        return self._file

    def _read_group(self, file: pq.ParquetFile, group: int) -> ShardRows:
        if self._group is None or self._group[0] != group:
            try:
                table = file.read_row_group(group, columns=["key", "label", "image"])
            except (OSError, ValueError, pa.ArrowException) as error:
                raise DataError(
                    f"{self._path}: row group {group} cannot be read: {error}; "
                    "prepare the source again"
                ) from error
            if table["key"].null_count or table["image"].null_count:
                raise DataError(f"{self._path}: a key or picture is null; prepare it again")
            self._group = (group, self._rows_of(table.combine_chunks()))
        return self._group[1]

    def _rows_of(self, table: pa.Table) -> ShardRows:
        images = table["image"].chunk(0)
        width = images.type.byte_width
        pixels = np.frombuffer(images.buffers()[1], np.uint8, len(images) * width)
        shape = (len(images), *self._header.shape)
        return ShardRows(table["key"].chunk(0), pixels.reshape(shape), table["label"].chunk(0))


def open_canonical(path: Location, files: Sequence[Location]) -> Source:
    """The source in these files. Raises DataError where they do not belong together."""
    for one, other in itertools.combinations(files, 2):
        if one.name == other.name:
            raise DataError(
                f"{path}: {one} and {other} have one name, and shards are known by theirs; rename "
                "one of them, or use the folders one by one"
            )
    headers = {file.name: _read_header(file) for file in files}
    first, *others = headers
    for name in others:
        for field in ("classes", "shape"):
            if getattr(headers[name], field) != getattr(headers[first], field):
                raise DataError(
                    f"{path}: {name} and {first} differ in {field}; prepare them in one run"
                )
    shards = [CanonicalShard(file, headers[file.name]) for file in files]
    return Source(path, shards, headers[first].classes, headers[first].shape)


def is_canonical(path: Location) -> bool:
    """Whether the Parquet file says of itself that it is a softlabel source."""
    return METADATA_KEY in (_read_schema(path).metadata or {})


def write_source_shard(path: Path, block: SampleBlock, classes: Sequence[str]) -> None:
    """Publish `block` as one canonical source shard; the same block gives the same bytes."""
    inputs = np.ascontiguousarray(block.inputs)
    row_bytes = int(np.prod(inputs.shape[1:]))
    images = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(row_bytes), len(block), [None, pa.py_buffer(inputs)]
    )
    header = SourceHeader(
        classes=tuple(classes), shape=inputs.shape[1:], digest=_rows_digest(block, inputs)
    )
    schema = pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.int32()),
            pa.field("image", images.type, nullable=False),
        ],
        metadata={METADATA_KEY: json.dumps(header.model_dump(mode="json"), sort_keys=True)},
    )
    table = pa.Table.from_arrays([block.keys, block.labels, images], schema=schema)
    with publishing(path) as file:
        pq.write_table(
            table,
            file,
            row_group_size=max(1, ROW_GROUP_BYTES // row_bytes),
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )


def _rows_digest(block: SampleBlock, inputs: np.ndarray) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([block.keys.to_pylist(), block.labels.to_pylist()]).encode())
    digest.update(inputs.data)
    return digest.hexdigest()


def _read_schema(path: Location) -> pa.Schema:
    try:
        return pq.read_schema(readable(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: is no Parquet file: {error}; prepare the source again") from error


def _read_header(path: Location) -> SourceHeader:
    schema = _read_schema(path)
    metadata = schema.metadata or {}
    if METADATA_KEY not in metadata:
        raise DataError(
            f"{path}: is no softlabel source (its metadata lacks "
            f"'{METADATA_KEY.decode()}'); write one with 'softlabel prepare'"
        )
    try:
        header = SourceHeader.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        raise DataError(
            f"{path}: the source metadata is damaged: {error.errors()[0]['msg']}; prepare it again"
        ) from error
    for name, kind in _columns(header.shape).items():
        if name not in schema.names or schema.field(name).type != kind:
            raise DataError(f"{path}: must have a column {name!r} of {kind}; prepare it again")
    return header


def _columns(shape: tuple[int, int, int]) -> dict[str, pa.DataType]:
    return {"key": pa.string(), "label": pa.int32(), "image": pa.binary(math.prod(shape))}
