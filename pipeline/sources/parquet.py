"""The canonical source: Parquet shards of key, hard label and raw picture.

Columns: `key` string; `label` int32, null where unknown; `image` FixedSizeBinary, uint8 in
`[height, width, channels]` order. Shape, class names and the SHA-256 of the rows stand in each
file's metadata under `softlabel.source`, so that a shard describes itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError, model_validator

from softlabel.pipeline.publish import file_sha256, publishing
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Segment, SourceDigest, SourceFile
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


class ParquetSource:
    """Samples in the order of their shards' names.

    classes: class names in label order. shape: height, width, channels of every picture.
    files: one fingerprint a shard. Not safe for use by two threads at once; `reopen` gives
    each its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._paths = {file.name: file for file in _shard_paths(path)}
        headers = {name: _read_header(file) for name, file in self._paths.items()}
        first, *others = headers
        self.classes = headers[first].classes
        self.shape = headers[first].shape
        for name in others:
            for field in ("classes", "shape"):
                if getattr(headers[name], field) != getattr(headers[first], field):
                    raise DataError(
                        f"{path}: {name} and {first} differ in {field}; prepare them in one run"
                    )
        self.files = tuple(
            SourceFile(
                name=name,
                rows=pq.read_metadata(file).num_rows,
                bytes=file.stat().st_size,
                digest=headers[name].digest,
            )
            for name, file in self._paths.items()
        )
        if self.rows == 0:
            raise DataError(f"{path}: the source is empty; prepare it from data that has samples")
        self._open: tuple[str, pq.ParquetFile, np.ndarray] | None = None
        self._group: tuple[str, int, SampleBlock] | None = None
        self._digests: dict[str, SourceDigest] = {}

    @property
    def rows(self) -> int:
        """Samples in all shards."""
        return sum(file.rows for file in self.files)

    def reopen(self) -> ParquetSource:
        """A second reader of the same source, for another thread."""
        return ParquetSource(self.path)

    def digest(self, name: str) -> SourceDigest:
        """Size and SHA-256 of shard `name` as its bytes are now; computed once."""
        if name not in self._digests:
            file = self._paths[name]
            self._digests[name] = SourceDigest(
                name=name, bytes=file.stat().st_size, sha256=file_sha256(file)
            )
        return self._digests[name]

    def read(self, segments: Sequence[Segment]) -> SampleBlock:
        """The samples of `segments`, one after the other; a view where one row group holds all.

        Raises DataError where a shard cannot be read or a label is outside the classes.
        """
        pieces = [piece for segment in segments for piece in self._pieces(segment)]
        if len(pieces) == 1:
            return pieces[0]
        return SampleBlock(
            pa.concat_arrays([piece.keys for piece in pieces]),
            np.concatenate([piece.inputs for piece in pieces]),
            pa.concat_arrays([piece.labels for piece in pieces]),
        )

    def keys(self, segments: Sequence[Segment]) -> pa.StringArray:
        """The keys of `segments`, one after the other; pictures stay unread."""
        arrays = []
        for segment in segments:
            column = pq.read_table(self._paths[segment.source], columns=["key"])["key"]
            arrays += column.slice(segment.first, segment.rows).chunks
        return pa.concat_arrays(arrays)

    def _pieces(self, segment: Segment) -> Iterable[SampleBlock]:
        name, file, starts = self._file(segment.source)
        first, end = segment.first, segment.first + segment.rows
        if end > starts[-1]:
            raise DataError(
                f"{self._paths[name]}: has {starts[-1]} rows, row {end - 1} was asked for; "
                "the file changed, prepare the source again"
            )
        while first < end:
            group = int(np.searchsorted(starts, first, side="right")) - 1
            block = self._read_group(name, file, group)
            offset = first - int(starts[group])
            rows = min(end - first, len(block) - offset)
            yield block.slice(offset, rows)
            first += rows

    def _file(self, name: str) -> tuple[str, pq.ParquetFile, np.ndarray]:
        if self._open is None or self._open[0] != name:
            file = pq.ParquetFile(self._paths[name], page_checksum_verification=True)
            meta = file.metadata
            rows = [meta.row_group(index).num_rows for index in range(meta.num_row_groups)]
            self._open = (name, file, np.concatenate([[0], np.cumsum(rows)]).astype(np.int64))
        return self._open

    def _read_group(self, name: str, file: pq.ParquetFile, group: int) -> SampleBlock:
        if self._group is None or self._group[:2] != (name, group):
            try:
                table = file.read_row_group(group, columns=["key", "label", "image"])
            except (OSError, ValueError, pa.ArrowException) as error:
                raise DataError(
                    f"{self._paths[name]}: row group {group} cannot be read: {error}; "
                    "prepare the source again"
                ) from error
            block = self._block(table.combine_chunks())
            if block.keys.null_count or table["image"].null_count:
                raise DataError(f"{self._paths[name]}: a key or picture is null; prepare it again")
            self._check_labels(name, block)
            self._group = (name, group, block)
        return self._group[2]

    def _block(self, table: pa.Table) -> SampleBlock:
        images = table["image"].chunk(0)
        width = images.type.byte_width
        pixels = np.frombuffer(images.buffers()[1], np.uint8, len(images) * width)
        return SampleBlock(
            table["key"].chunk(0),
            pixels.reshape(len(images), *self.shape),
            table["label"].chunk(0),
        )

    def _check_labels(self, name: str, block: SampleBlock) -> None:
        labels = block.labels.drop_null().to_numpy(zero_copy_only=False)
        if len(labels) and (labels.min() < 0 or labels.max() >= len(self.classes)):
            bad = pc.or_(
                pc.less(block.labels, 0), pc.greater_equal(block.labels, len(self.classes))
            )
            row = int(pc.index(bad, True).as_py())
            raise DataError(
                f"{self._paths[name]}: key {block.keys[row].as_py()!r} has label "
                f"{block.labels[row].as_py()}, outside 0..{len(self.classes) - 1}; "
                "mend the labels or the class list and prepare again"
            )


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


def _shard_paths(path: Path) -> list[Path]:
    if not path.exists():
        raise ParameterError(f"{path}: no such source; write one with 'softlabel prepare'")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(
            f"{path}: the source is empty: no .parquet file in it; write it with "
            "'softlabel prepare'"
        )
    return files


def _read_header(path: Path) -> SourceHeader:
    try:
        schema = pq.read_schema(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: is no Parquet file: {error}; prepare the source again") from error
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
