"""Label shards as Parquet files in the layout `packed`: payload columns are FixedSizeBinary.

Columns: `key` string; `label` int32, null where unknown; `top1` uint16 or uint32 by the number of
classes; `shift` float32; `logits` float16 x C and `lse` float32 x K, both FixedSizeBinary with
dtype and shape in the field's metadata. The file's metadata `softlabel` holds format version,
identity, codec, temperatures and class count. Pages carry checksums; readers verify them.
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
from softlabel.pipeline.encode import EncodedBlock, id_dtype
from softlabel.pipeline.publish import publishing
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import FORMAT_VERSION, SHARD_METADATA_KEY, Identity

ROW_GROUP_BYTES = 64 * 2**20


def shard_schema(identity: Identity) -> pa.Schema:
    """The Arrow schema of every shard of a set with this identity."""
    classes, temperatures = len(identity.classes), len(identity.temperatures)
    header = {
        "format_version": FORMAT_VERSION,
        "identity_sha256": identity.digest(),
        "codec": identity.codec,
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
            _packed_field("logits", "float16", 2, classes),
            _packed_field("lse", "float32", 4, temperatures),
        ],
        metadata={SHARD_METADATA_KEY: json.dumps(header, sort_keys=True)},
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
        row_bytes = 2 * len(identity.classes) + 4 * len(identity.temperatures) + 64
        self._group_rows = max(1, ROW_GROUP_BYTES // row_bytes)
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self.rows = 0

    def append(self, keys: pa.StringArray, labels: pa.Int32Array, rows: EncodedBlock) -> None:
        """Add N rows; whole row groups are written as soon as they are full."""
        columns = [
            keys,
            labels,
            pa.array(rows.top1),
            pa.array(rows.shift),
            _packed(rows.payload),
            _packed(rows.lse),
        ]
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
            classes, temperatures = len(self._identity.classes), len(self._identity.temperatures)
            block = LabelBlock(
                keys=table["key"].chunk(0),
                labels=table["label"].chunk(0),
                top1=table["top1"].chunk(0).to_numpy(),
                shift=table["shift"].chunk(0).to_numpy(),
                logits=_unpacked(table["logits"].chunk(0), np.dtype("<f2"), classes),
                lse=_unpacked(table["lse"].chunk(0), np.dtype("<f4"), temperatures),
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
            f"{self._path}: {reason}; delete this shard's receipt and labelset.json and run "
            "'softlabel infer' again"
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


def _packed_field(name: str, dtype: str, width: int, size: int) -> pa.Field:
    return pa.field(
        name,
        pa.binary(width * size),
        nullable=False,
        metadata={"dtype": dtype, "shape": json.dumps([size])},
    )


def _packed(values: npt.NDArray[Any]) -> pa.FixedSizeBinaryArray:
    values = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))
    width = values.dtype.itemsize * values.shape[1]
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(values), [None, pa.py_buffer(values)]
    )


def _unpacked(column: pa.FixedSizeBinaryArray, dtype: np.dtype[Any], size: int) -> npt.NDArray[Any]:
    values = np.frombuffer(column.buffers()[1], dtype, len(column) * size)
    return values.reshape(len(column), size)
