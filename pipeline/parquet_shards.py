"""Label shards as Parquet files in the layout `packed`: payload columns are FixedSizeBinary.

Columns: `key` string; `label` int32, null where unknown; `top1` uint16 or uint32 by the number of
classes; `shift` float32; then the codec's columns, those of several values a row as
FixedSizeBinary with dtype and shape in the field's metadata. The file's metadata `softlabel` holds
format version, identity, codec, temperatures and class count. Pages carry checksums; readers
verify them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from softlabel.pipeline.block import LabelBlock
from softlabel.pipeline.codecs import Codec, Column, Columns, ShiftedRows, id_dtype, make_codec
from softlabel.pipeline.publish import publishing
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import FORMAT_VERSION, SHARD_METADATA_KEY, Identity

ROW_GROUP_BYTES = 64 * 2**20
# About what key, label, top1 and shift take.
ROW_OVERHEAD = 64


def shard_schema(identity: Identity) -> pa.Schema:
    """The Arrow schema of every shard of a set with this identity."""
    classes = len(identity.classes)
    header = {
        "format_version": FORMAT_VERSION,
        "identity_sha256": identity.digest(),
        "codec": identity.codec,
        "k": identity.k,
        "layout": "packed",
        "temperatures": list(identity.temperatures),
        "num_classes": classes,
    }
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.int32()),
            pa.field("top1", pa.from_numpy_dtype(id_dtype(classes)), nullable=False),
            pa.field("shift", pa.float32(), nullable=False),
            *(_field(column) for column in set_codec(identity).columns),
        ],
        metadata={SHARD_METADATA_KEY: json.dumps(header, sort_keys=True)},
    )


def set_codec(identity: Identity) -> Codec:
    """The codec of every shard of a set with this identity."""
    return make_codec(identity.codec, identity.k, len(identity.classes), identity.temperatures)


def payload_bytes(identity: Identity) -> int:
    """Bytes that the codec's columns take for one row."""
    return sum(
        column.dtype.itemsize * (column.width or 1) for column in set_codec(identity).columns
    )


class ShardWriter:
    """Appends encoded blocks to one shard; row groups are cut by bytes, not by batches."""

    def __init__(self, file: BinaryIO, identity: Identity) -> None:
        self._schema = shard_schema(identity)
        self._file = _HashingFile(file)
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._file, "w"),
            self._schema,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        self._columns = set_codec(identity).columns
        self._group_rows = max(1, ROW_GROUP_BYTES // (ROW_OVERHEAD + payload_bytes(identity)))
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self.rows = 0

    def append(
        self, keys: pa.StringArray, labels: pa.Int32Array, rows: ShiftedRows, payload: Columns
    ) -> None:
        """Add N rows; whole row groups are written as soon as they are full."""
        packed = [_packed(column, payload[column.name]) for column in self._columns]
        columns = [keys, labels, pa.array(rows.top1), pa.array(rows.shift), *packed]
        self._pending.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._pending_rows += len(keys)
        self.rows += len(keys)
        while self._pending_rows >= self._group_rows:
            self._write_group(self._group_rows)

    def finish(self) -> tuple[int, str]:
        """Write what is left and the footer; return the shard's size in bytes and its SHA-256."""
        if self._pending_rows or not self.rows:
            self._write_group(self._pending_rows)
        self._writer.close()
        return self._file.size, self._file.digest.hexdigest()

    def abandon(self) -> None:
        """Let go of a shard that will not be published."""
        with contextlib.suppress(Exception):
            self._writer.close()

    def _write_group(self, rows: int) -> None:
        table = pa.Table.from_batches(self._pending, self._schema)
        self._writer.write_table(table.slice(0, rows).combine_chunks(), row_group_size=rows or None)
        self._pending = table.slice(rows).to_batches()
        self._pending_rows -= rows


@contextlib.contextmanager
def writing_shard(path: Path, identity: Identity) -> Iterator[ShardWriter]:
    """A writer whose file is published as `path` when the block ends without an exception.

    The block must call `finish`.
    """
    with publishing(path) as file:
        writer = ShardWriter(file, identity)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise


class ShardReader:
    """Reads row ranges of one label shard; the last decoded row group is kept.

    Raises DataError when the file is damaged or belongs to another identity.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self._path = path
        self._identity = identity
        self._codec = set_codec(identity)
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            self._check_metadata()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._damaged(str(error)) from error
        meta = self._file.metadata
        rows = [meta.row_group(index).num_rows for index in range(meta.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._group: tuple[int, LabelBlock] | None = None

    @property
    def rows(self) -> int:
        """Rows in the shard."""
        return int(self._starts[-1])

    def read(self, first: int, rows: int) -> Iterator[LabelBlock]:
        """Rows `first` to `first + rows` as blocks that never cross a row group."""
        end = first + rows
        while first < end:
            group = int(np.searchsorted(self._starts, first, side="right")) - 1
            block = self._read_group(group)
            offset = first - int(self._starts[group])
            taken = min(end - first, len(block) - offset)
            yield block.slice(offset, taken)
            first += taken

    def keys(self) -> pa.ChunkedArray:
        """The keys of all rows, in order."""
        try:
            return self._file.read(columns=["key"])["key"]
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(str(error)) from error

    def _read_group(self, group: int) -> LabelBlock:
        if self._group is None or self._group[0] != group:
            try:
                table = self._file.read_row_group(group).combine_chunks()
            except (OSError, pa.ArrowException) as error:
                raise self._damaged(str(error)) from error
            block = LabelBlock(
                keys=table["key"].chunk(0),
                labels=table["label"].chunk(0),
                top1=table["top1"].chunk(0).to_numpy(),
                shift=table["shift"].chunk(0).to_numpy(),
                payload={
                    column.name: _unpacked(column, table[column.name].chunk(0))
                    for column in self._codec.columns
                },
                codec=self._codec,
            )
            self._group = (group, block)
        return self._group[1]

    def _check_metadata(self) -> None:
        text = (self._file.schema_arrow.metadata or {}).get(SHARD_METADATA_KEY)
        if text is None:
            raise self._damaged("it is no label shard")
        if json.loads(text).get("identity_sha256") != self._identity.digest():
            raise self._damaged("it belongs to another label set")
        if not self._file.schema_arrow.equals(shard_schema(self._identity), check_metadata=True):
            raise self._damaged("its columns are not those of its identity")

    def _damaged(self, reason: str) -> DataError:
        reason = " ".join(reason.split())
        return DataError(
            f"{self._path}: {reason}; run 'softlabel verify --repair --labels "
            f"{self._path.parent}', then 'softlabel infer' again"
        )


class _HashingFile:
    """A binary file that knows the SHA-256 and the number of the bytes written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self._file.write(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Leave the file open: whoever opened it syncs and publishes it."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def _field(column: Column) -> pa.Field:
    if column.width is None:
        return pa.field(column.name, pa.from_numpy_dtype(column.dtype), nullable=False)
    return pa.field(
        column.name,
        pa.binary(column.dtype.itemsize * column.width),
        nullable=False,
        metadata={"dtype": column.dtype.name, "shape": json.dumps([column.width])},
    )


def _packed(column: Column, values: npt.NDArray[Any]) -> pa.Array:
    if column.width is None:
        return pa.array(values)
    little = column.dtype.newbyteorder("<")
    values = np.ascontiguousarray(values.astype(little, copy=False))
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(little.itemsize * column.width), len(values), [None, pa.py_buffer(values)]
    )


def _unpacked(column: Column, stored: pa.Array) -> npt.NDArray[Any]:
    if column.width is None:
        return np.asarray(stored.to_numpy())
    little = column.dtype.newbyteorder("<")
    values = np.frombuffer(stored.buffers()[1], little, len(stored) * column.width)
    return values.reshape(len(stored), column.width)
