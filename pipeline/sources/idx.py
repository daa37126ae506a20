"""IDX files, the format of MNIST and its successors, plain or gzipped.

Layout: two zero bytes, a type code (0x08 is uint8), the number of dimensions, each dimension as
a big-endian uint32, then the values (LeCun et al., the MNIST database of handwritten digits).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.sample import Array, SampleBlock

UINT8 = 0x08
MAX_BYTES = 16 * 2**30


def read_idx_pair(folder: Path, part: str) -> SampleBlock:
    """The pictures and labels of `part` ('train' or 't10k'); keys are `PART-00000` and on.

    Pictures `[N, height, width]` come back as `[N, height, width, 1]`. Raises DataError where a
    file is cut, is not uint8, or where pictures and labels differ in number.
    """
    images_path = _find(folder, f"{part}-images-idx3-ubyte")
    labels_path = _find(folder, f"{part}-labels-idx1-ubyte")
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
    keys = pa.array([f"{part}-{index:05d}" for index in range(len(images))], pa.string())
    return SampleBlock(keys, images[..., None], pa.array(labels.astype(np.int32)))


def read_idx(path: Path) -> Array:
    """One uint8 IDX file as an array. Raises DataError where it is damaged or not uint8."""
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            return _parse(path, file.read(MAX_BYTES + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; fetch the file again") from error


def _parse(path: Path, data: bytes) -> Array:
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: holds more than {MAX_BYTES >> 30} GiB; split it")
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataError(f"{path}: is no IDX file (it must begin with two zero bytes)")
    kind, dimensions = data[2], data[3]
    if kind != UINT8:
        raise DataError(f"{path}: holds IDX type 0x{kind:02x}; only uint8 (0x08) is read")
    header = 4 + 4 * dimensions
    if len(data) < header:
        raise DataError(f"{path}: ends inside its header; fetch the file again")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise DataError(
            f"{path}: holds {len(data) - header} values, its header says {math.prod(shape)}; "
            "fetch the file again"
        )
    try:
        return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    except ValueError as error:
        raise DataError(f"{path}: its header gives no usable shape: {error}") from error


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise ParameterError(f"{folder}: has neither {name} nor {name}.gz; check prepare.path")
