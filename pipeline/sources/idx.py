"""IDX files, the format of MNIST and its successors, plain or gzipped.

Layout: two zero bytes, a type code (0x08 is uint8), the number of dimensions, each dimension as
a big-endian uint32, then the values (LeCun et al., the MNIST database of handwritten digits).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow as pa

from softlabel.pipeline.sources.array_shard import ArrayShard, StoredArray, array_source
from softlabel.pipeline.sources.reasons import no_such_source, reason
from softlabel.pipeline.sources.row_keys import numbered_keys
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.location import Location
from softlabel.schemas.sample import Array, SampleBlock

UINT8 = 0x08
MAX_BYTES = 16 * 2**30
# The most dimensions that the header's one byte can name.
MOST_DIMENSIONS = 255
PICTURES = "-images-idx3-ubyte"
LABELS = "-labels-idx1-ubyte"
KEY_DIGITS = 5
FAULTS = (OSError, EOFError, zlib.error)


def open_idx(path: Location, files: Sequence[Path]) -> Source:
    """The source in those of these files that are `PART-images-idx3-ubyte`, plain or `.gz`.

    Each has its labels in `PART-labels-idx1-ubyte` beside it; without that file all are unknown.
    Plain goes before gzipped. Keys are those of `read_idx_pair`. Raises ParameterError where a file
    is not there, DataError where it cannot be used.
    """
    found: dict[Path, Path] = {}
    for file in files:
        name = file.with_name(file.name.removesuffix(".gz"))
        if name.name.endswith(PICTURES) and (file == name or name not in files):
            found[name] = file
    if not found:
        raise DataError(f"{path}: has no file *{PICTURES} or *{PICTURES}.gz; name one")
    return array_source(path, [_shard(name, file) for name, file in found.items()])


def read_idx_pair(folder: Path, part: str) -> SampleBlock:
    """The pictures and labels of `part` ('train' or 't10k'); keys are `PART-00000` and on.

    Pictures `[N, height, width]` come back as `[N, height, width, 1]`. Raises DataError where a
    file is cut, is not uint8, or where pictures and labels differ in number.
    """
    images_path = _find(folder, f"{part}{PICTURES}")
    labels_path = _find(folder, f"{part}{LABELS}")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1:
        raise DataError(
            f"{images_path}: expected [N, height, width] pictures and [N] labels, got "
            f"{list(images.shape)} and {list(labels.shape)}; check the file names"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{images_path}: has {len(images)} pictures, {labels_path.name} has {len(labels)} "
            "labels; take both from one release"
        )
    keys = numbered_keys(part, 0, len(images), KEY_DIGITS)
    return SampleBlock(keys, images[..., None], pa.array(labels.astype(np.int32)))


def read_idx(path: Path) -> Array:
    """One uint8 IDX file as an array. Raises DataError where it is damaged or not uint8."""
    try:
        with _opened(path) as file:
            return _parse(path, file.read(MAX_BYTES + 1))
    except FAULTS as error:
        raise _unreadable(path, error) from error


def _shard(name: Path, path: Path) -> ArrayShard:
    if not path.is_file():
        raise no_such_source(path)
    part = name.name.removesuffix(PICTURES)
    labels = _beside(path.parent, f"{part}{LABELS}")
    stored = None if labels is None else _stored(labels, 1)
    return ArrayShard(_stored(path, 3), stored, part, KEY_DIGITS)


def _stored(path: Path, dimensions: int) -> StoredArray:
    """The file by its header; its values stay unread."""
    shape = _read_shape(path)
    if len(shape) != dimensions:
        raise DataError(
            f"{path}: expected {dimensions} dimensions, got {list(shape)}; check the file names"
        )
    if path.suffix != ".gz":
        _check_size(path, path.stat().st_size - _header_bytes(dimensions), shape)
    in_rows = path.suffix != ".gz"
    return StoredArray(path, shape, np.dtype(np.uint8), lambda: _map(path), in_rows=in_rows)


def _map(path: Path) -> Array:
    """The values where they lie in the file; a gzipped one is unpacked whole."""
    if path.suffix == ".gz":
        return read_idx(path)
    shape = _read_shape(path)
    header = _header_bytes(len(shape))
    _check_size(path, path.stat().st_size - header, shape)
    if not math.prod(shape):
        return np.zeros(shape, np.uint8)
    return np.memmap(path, np.uint8, "r", header, shape)


def _read_shape(path: Path) -> tuple[int, ...]:
    try:
        with _opened(path) as file:
            return _parse_shape(path, file.read(_header_bytes(MOST_DIMENSIONS)))
    except FAULTS as error:
        raise _unreadable(path, error) from error


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else open(path, "rb")


def _parse(path: Path, data: bytes) -> Array:
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: holds more than {MAX_BYTES >> 30} GiB; split it")
    shape = _parse_shape(path, data)
    header = _header_bytes(len(shape))
    _check_size(path, len(data) - header, shape)
    try:
        return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    except ValueError as error:
        raise DataError(f"{path}: its header gives no usable shape: {reason(error)}") from error


def _parse_shape(path: Path, data: bytes) -> tuple[int, ...]:
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataError(f"{path}: is no IDX file (it must begin with two zero bytes)")
    kind, dimensions = data[2], data[3]
    if kind != UINT8:
        raise DataError(f"{path}: holds IDX type 0x{kind:02x}; only uint8 (0x08) is read")
    header = _header_bytes(dimensions)
    if len(data) < header:
        raise DataError(f"{path}: ends inside its header; fetch the file again")
    return struct.unpack(f">{dimensions}I", data[4:header])


def _header_bytes(dimensions: int) -> int:
    return 4 + 4 * dimensions


def _check_size(path: Path, values: int, shape: tuple[int, ...]) -> None:
    if values != math.prod(shape):
        raise DataError(
            f"{path}: holds {values} values, its header says {math.prod(shape)}; "
            "fetch the file again"
        )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read: {reason(error)}; fetch the file again")


def _find(folder: Path, name: str) -> Path:
    path = _beside(folder, name)
    if path is None:
        raise ParameterError(f"{folder}: has neither {name} nor {name}.gz; check prepare.path")
    return path


def _beside(folder: Path, name: str) -> Path | None:
    """The file of this name, plain or else gzipped."""
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.exists()), None)
