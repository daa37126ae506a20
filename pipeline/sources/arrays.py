"""Pictures in NumPy's files, `.npy` with labels beside it, `.npz` with both; or numbers in `.npz`.

`NAME.npy` has its labels in `NAME.labels.npy`, `images.npy` also in `labels.npy`. An `.npz` holds
its pictures as `images`, `x` or `x_train`, its labels as `labels`, `y` or `y_train`. Keys are
`STEM-00000000` and on. Nothing that is pickled is read.
"""

from __future__ import annotations

import contextlib
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from softlabel.pipeline.sources.array_shard import (
    ArrayShard,
    StoredArray,
    array_source,
    chosen_one,
)
from softlabel.pipeline.sources.array_table import LABELS, can_be_column, open_array_tables
from softlabel.pipeline.sources.files import is_file, opened, refuse_remote, size_of
from softlabel.pipeline.sources.reasons import no_such_source, reason
from softlabel.pipeline.sources.remote_array import RemoteArray
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location
from softlabel.schemas.sample import Array

LABELS_SUFFIX = ".labels.npy"
PICTURES = ("images", "x", "x_train")
# What a compressed member may hold: it is unpacked whole.
MAX_BYTES = 16 * 2**30
LOCAL_HEADER = struct.Struct("<26xHH")
FAULTS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def open_arrays(path: Location, files: Sequence[Location]) -> Source:
    """The source in these files; those of labels among them are read with their pictures.

    Raises ParameterError where a file is not there, DataError where it cannot be used.
    """
    pictures = [file for file in files if not _holds_labels(file)]
    if not pictures:
        raise DataError(f"{path}: holds labels and no pictures; name the file of pictures")
    here = [file for file in pictures if isinstance(file, Path) and file.suffix == ".npz"]
    tables = {file: table for file in here if (table := _table(file))}
    if len(tables) == len(pictures):
        return open_array_tables(path, tables)
    if tables:
        other = next(file for file in pictures if file not in tables)
        raise DataError(
            f"{path}: {next(iter(tables)).name} holds numbers and {other.name} pictures; give them "
            "one by one"
        )
    return array_source(path, [_shard(file) for file in pictures])


def _holds_labels(path: Location) -> bool:
    return path.name == "labels.npy" or path.name.endswith(LABELS_SUFFIX)


def _shard(path: Location) -> ArrayShard:
    if not is_file(path):
        raise no_such_source(path)
    if path.suffix == ".npz":
        pictures, labels = _npz(refuse_remote(path, ".npz files"))
        return ArrayShard(pictures, labels, path.stem)
    beside = [path.with_name(path.stem + LABELS_SUFFIX)]
    if path.name == "images.npy":
        beside.append(path.with_name("labels.npy"))
    labels_path = next((file for file in beside if is_file(file)), None)
    return ArrayShard(_npy(path), None if labels_path is None else _npy(labels_path), path.stem)


def _npy(path: Location) -> StoredArray:
    stored = _map_npy(path)
    in_rows = isinstance(stored, np.memmap) and stored.flags.c_contiguous
    return StoredArray(path, stored.shape, stored.dtype, lambda: _map_npy(path), in_rows=in_rows)


def _map_npy(path: Location) -> Array | RemoteArray:
    """The array where it lies in the file. Raises DataError where the file is not its size."""
    try:
        with opened(path) as file:
            shape, fortran, dtype = _read_header(file)
            offset = file.tell()
        held = size_of(path) - offset
        if held != math.prod(shape) * dtype.itemsize:
            raise ValueError(_wrong_size(held, shape, dtype))
        if isinstance(path, Path):
            return _map(path, offset, shape, fortran, dtype)
        if fortran and len(shape) > 1:
            raise ValueError("its rows lie apart (Fortran order), and it is not on this machine")
        return RemoteArray(path, offset, shape, dtype)
    except FAULTS as error:
        raise DataError(
            f"{path}: is no usable .npy file: {reason(error)}; save it again"
        ) from error


def _npz(path: Path) -> tuple[StoredArray, StoredArray | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                name: _member(path, name, archive)
                for name in (*PICTURES, *LABELS)
                if f"{name}.npy" in archive.namelist()
            }
            held = ", ".join(repr(name.removesuffix(".npy")) for name in archive.namelist())
    except FAULTS as error:
        raise _bad_npz(path, error) from error
    found = {name: members[name] for name in PICTURES if name in members}
    pictures = chosen_one(path, found, "pictures")
    if pictures is None:
        names = ", ".join(map(repr, PICTURES))
        raise DataError(f"{path}: has none of {names}, it has {held}; name the pictures so")
    found = {name: members[name] for name in LABELS if name in members}
    return pictures, chosen_one(path, found, "labels")


def _table(path: Path) -> dict[str, StoredArray]:
    """The arrays of an `.npz` that are columns of numbers; none where it has pictures."""
    if not path.is_file():
        raise no_such_source(path)
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            for name in (name.removesuffix(".npy") for name in names):
                with contextlib.suppress(_Pickled):
                    arrays[name] = _member(path, name, archive)
    except FAULTS as error:
        raise _bad_npz(path, error) from error
    if any(_like_pictures(name, array) for name, array in arrays.items()):
        return {}
    return {name: array for name, array in arrays.items() if can_be_column(name, array)}


def _like_pictures(name: str, array: StoredArray) -> bool:
    as_shaped, as_stored = len(array.shape) in (3, 4), array.dtype == np.uint8
    return (as_shaped or as_stored) if name in PICTURES else (as_shaped and as_stored)


class _Pickled(ValueError):
    """An array of Python objects."""


def _member(path: Path, name: str, archive: zipfile.ZipFile) -> StoredArray:
    with archive.open(f"{name}.npy") as file:
        shape, fortran, dtype = _read_header(file)
    in_rows = archive.getinfo(f"{name}.npy").compress_type == zipfile.ZIP_STORED and not fortran
    return StoredArray(path, shape, dtype, lambda: _load_member(path, name), name, in_rows)


def _load_member(path: Path, name: str) -> Array:
    """A stored member where it lies in the file, a compressed one unpacked whole."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            info = archive.getinfo(f"{name}.npy")
            shape, fortran, dtype = _read_header(file)
            header = file.tell()
            held = info.file_size - header
            if held != math.prod(shape) * dtype.itemsize:
                raise ValueError(_wrong_size(held, shape, dtype))
            if info.compress_type == zipfile.ZIP_STORED:
                offset = _data_offset(path, info) + header
                return _map(path, offset, shape, fortran, dtype)
            if held > MAX_BYTES:
                raise ValueError(f"{name} has more than {MAX_BYTES >> 30} GiB: use np.savez")
            data = file.read()
        array: Array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        return array
    except FAULTS as error:
        raise _bad_npz(path, error) from error


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after the header before it, of its own length."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    return int(info.header_offset + LOCAL_HEADER.size + name + extra)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is not read")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise _Pickled("it holds pickled objects")
    return shape, fortran, dtype


def _map(
    path: Path, offset: int, shape: tuple[int, ...], fortran: bool, dtype: np.dtype[np.generic]
) -> Array:
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


def _wrong_size(held: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> str:
    return f"it holds {held} bytes of values, its header says {list(shape)} of {dtype}"


def _bad_npz(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: is no usable .npz file: {reason(error)}; save it again")
