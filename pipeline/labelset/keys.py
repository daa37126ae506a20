"""Keys as bytes and as hashes: the same numbers on every machine, in every process."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Segment

FEW = 3


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


class KeySet:
    """Many keys, of which 8 bytes each are held: their hashes."""

    def __init__(self, columns: Iterable[pa.StringArray]) -> None:
        self._hashes = _sorted_hashes(columns)

    def __len__(self) -> int:
        return len(self._hashes)

    def others(self, keys: pa.StringArray) -> pa.StringArray:
        """Those of `keys` that are not in the set, each once.

        One that is not may be missed where it shares the hash of one that is: 1 in 2^64 / N.
        """
        hashes = key_hashes(keys)
        places = self._hashes.searchsorted(hashes)
        known = self._hashes.take(places, mode="clip") == hashes if len(self) else places < 0
        return pc.unique(keys.filter(pa.array(~known)))


def miscounted_keys(columns: Callable[[], Iterable[pa.StringArray]], times: int = 1) -> list[str]:
    """The keys that do not stand `times` times, in the order of their first places.

    columns: gives all keys anew at each call; of each, 8 bytes are held.
    """
    hashes = _sorted_hashes(columns())
    if _all_stand(hashes, times):
        return []
    values, counts = np.unique(hashes, return_counts=True)
    suspects = values[counts != times]
    # Two keys may share a hash: the few in question are compared themselves.
    some = [keys.filter(pa.array(np.isin(key_hashes(keys), suspects))) for keys in columns()]
    found = pc.value_counts(pa.chunked_array(some, pa.string()))
    unequal = found.field("values").filter(pc.not_equal(found.field("counts"), times))
    names: list[str] = unequal.to_pylist()
    return names


def few(keys: list[str]) -> str:
    """The first of the keys, quoted, and how many more there are."""
    shown = ", ".join(repr(key) for key in keys[:FEW])
    return shown if len(keys) <= FEW else f"{shown} and {len(keys) - FEW} more"


def place(segments: Sequence[Segment], row: int) -> str:
    """Where row number `row` of these comes from: source shard and row in it."""
    for segment in segments:
        if row < segment.rows:
            return f"{segment.source} row {segment.first + row}"
        row -= segment.rows
    raise IndexError(row)


def duplicate_key(key: str, places: str) -> DataError:
    """The error for a key that names two samples."""
    return DataError(f"key {key!r} appears twice: {places}; make the keys unique and prepare again")


def _sorted_hashes(columns: Iterable[pa.StringArray]) -> npt.NDArray[np.uint64]:
    held = array("Q")
    for keys in columns:
        held.frombytes(key_hashes(keys).tobytes())
    hashes = np.frombuffer(held, np.uint64)
    hashes.sort()
    return hashes


def _all_stand(hashes: npt.NDArray[np.uint64], times: int) -> bool:
    """Whether each value of the sorted `hashes` stands so often."""
    if len(hashes) % times:
        return False
    firsts, lasts = hashes[::times], hashes[times - 1 :: times]
    return bool((firsts == lasts).all() and (firsts[1:] != lasts[:-1]).all())
