"""NumPy's file formats `.npy` and `.npz` in memory: the same arrays give the same bytes.

An `.npz` here is a zip archive without compression, dates or extensions beyond 4 GiB. Nothing is
ever unpickled. NumPy's own functions read what is written here; they would take a hundred times
as long for the few bytes of a sample.
"""

from __future__ import annotations

import functools
import io
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<|][fu][124])', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,15}, )*(?:\d{1,15},?)?)\), \} *\n",
    re.DOTALL,
)
_NUMBER = re.compile(rb"\d+")
_END = struct.Struct("<4s4H2IH")
# 1 January 1980, the first day that zip knows, and a file that everybody may read.
_DATE, _VERSION, _UNIX, _MODE = 0x21, 20, 3 << 8, 0o100644 << 16


def npy_bytes(values: Values) -> bytes:
    """The array as an `.npy` file, little-endian and in C order."""
    little = values.astype(values.dtype.newbyteorder("<"), order="C", copy=False)
    return _npy_header(little.dtype.str, little.shape) + little.tobytes()


def read_npy(data: bytes) -> Values:
    """The array of an `.npy` file. Raises ValueError where it is none that `npy_bytes` makes."""
    end = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape = _read_header(data[:end])
    return np.frombuffer(data, dtype, offset=end).reshape(shape)


def npz_bytes(arrays: Mapping[str, Values]) -> bytes:
    """The named arrays as an `.npz` file, in their order."""
    files, directory, offset = [], [], 0
    for name, values in arrays.items():
        file = f"{name}.npy".encode()
        data = npy_bytes(values)
        facts = (0, 0, 0, _DATE, zlib.crc32(data), len(data), len(data), len(file), 0)
        local = _LOCAL.pack(b"PK\3\4", _VERSION, *facts) + file + data
        central = (b"PK\1\2", _UNIX | _VERSION, _VERSION, *facts, 0, 0, 0, _MODE, offset)
        files.append(local)
        directory.append(_CENTRAL.pack(*central) + file)
        offset += len(local)
    size, count = sum(map(len, directory)), len(directory)
    end = _END.pack(b"PK\5\6", 0, 0, count, count, size, offset, 0)
    return b"".join([*files, *directory, end])


def read_npz(data: bytes) -> dict[str, Values]:
    """The arrays of an `.npz` file by name.

    Raises ValueError where it is none that `npz_bytes` makes, or damaged.
    """
    arrays = {}
    offset = 0
    while data[offset : offset + 4] == b"PK\3\4":
        if len(data) < offset + _LOCAL.size:
            raise ValueError("a zip archive is cut short")
        _, _, flags, method, _, _, check, size, _, name_size, extra = _LOCAL.unpack_from(
            data, offset
        )
        if flags or method or extra:
            raise ValueError("a zip archive is not the plain one of a label shard")
        start = offset + _LOCAL.size + name_size
        name = data[start - name_size : start].decode()
        content = data[start : start + size]
        if zlib.crc32(content) != check:
            raise ValueError(f"the checksum of {name} in a zip archive is wrong")
        arrays[name.removesuffix(".npy")] = read_npy(content)
        offset = start + size
    return arrays


@functools.lru_cache(maxsize=1024)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    facts = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


@functools.lru_cache(maxsize=1024)
def _read_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape; by a pattern, for NumPy's own parser fails in many ways on damaged ones."""
    parts = _HEADER.fullmatch(header)
    if parts is None:
        raise ValueError("an array is no plain one in NumPy's format, version 1.0")
    return np.dtype(parts[1].decode()), tuple(map(int, _NUMBER.findall(parts[2])))
