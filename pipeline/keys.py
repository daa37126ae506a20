"""Keys as bytes and as hashes: the same numbers on every machine, in every process."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash


def key_hashes(keys: pa.Array) -> npt.NDArray[np.uint64]:
    """XXH3-64 of each key's UTF-8 bytes, uint64 `[N]`; the same on every machine.

    keys: an Arrow array of `string` without nulls.
    """
    starts, data = utf8(keys)
    digest = xxhash.xxh3_64_digest
    joined = b"".join([digest(data[start:stop]) for start, stop in pairwise(starts.tolist())])
    return np.frombuffer(joined, ">u8").astype(np.uint64)


def utf8(keys: pa.StringArray) -> tuple[npt.NDArray[np.int32], bytes]:
    """Where each key begins in the UTF-8 bytes, with the end of the last, and these bytes.

    keys: as for `key_hashes`. The first value is int32 `[N + 1]`.
    """
    if not len(keys):
        return np.zeros(1, np.int32), b""
    _, places, data = keys.buffers()
    starts = np.frombuffer(places, np.int32, len(keys) + 1, keys.offset * 4)
    first, end = int(starts[0]), int(starts[-1])
    return starts - first, b"" if data is None else bytes(memoryview(data)[first:end])
