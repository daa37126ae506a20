"""Writing the cache of `lookup`: one pass over a label set's rows, then the index over its keys.

`value-NAME.npy` holds a stored column, a row a label row or a position; `starts.npy` where each
row of sequences begins. `key_bytes.npy` are the UTF-8 bytes of all samples' keys, sample n from
`key_starts[n]` to `key_starts[n + 1]`; its views' rows follow each other from `n * views` on.
`hashes.npy` are the keys' hashes in order, `samples.npy` whose they are, and `directory.npy` where
in them the hashes begin that start with the bits of its own position, or follow these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.labelset.keys import key_hashes, utf8
from softlabel.pipeline.labelset.lookup_cache import CardColumn, NpyWriter
from softlabel.pipeline.labelset.stream import Range, read_ranges
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.packing import Packing
from softlabel.pipeline.shards.parquet_columns import column_values, value_columns
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Manifest

# Before the name of a label set's own column, so that none can be taken for one of the index.
VALUE = "value-"
INDEX = ("hashes", "samples", "directory")
# Of 8 bytes, or 24 while they are looked for: what is worked on at once is small beside all hashes.
CHUNK = 2**15

Rows = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def write_cache(
    target: Path, folder: Path, manifest: Manifest, packing: Packing
) -> dict[str, CardColumn]:
    """Write all files into the folder `target`, and tell of each; of all rows only hashes are held.

    Raises DataError where a shard is damaged, a sample's views do not stand together, or two
    samples have one key.
    """
    views = packing.identity.views
    hashes = np.empty(manifest.rows // views, np.uint64)
    with contextlib.ExitStack() as stack:
        columns = _Columns(target, packing, stack)
        rows = samples = 0
        last: str | None = None
        for block in read_ranges(folder, packing, [Range(s, 0) for s in manifest.shards]):
            _check_views(folder, block, rows, views, last)
            keys = block.keys if views == 1 else block.keys.filter(pa.array(block.views == 0))
            hashes[samples : samples + len(keys)] = key_hashes(keys)
            columns.append(block, keys)
            rows, samples = rows + len(block), samples + len(keys)
            last = block.keys[-1].as_py()
        written = columns.finish()
    order = np.argsort(hashes, kind="stable")
    _refuse_duplicates(target, folder, hashes, order)
    return written | _write_index(target, hashes, order)


def row_columns(packing: Packing) -> dict[str, tuple[np.dtype[Any], int | None]]:
    """The files with a value a row, a position or a sample: their types and widths."""
    whole = np.dtype(np.int64)
    columns: dict[str, tuple[np.dtype[Any], int | None]] = {
        VALUE + column.name: (column.dtype, column.width) for column in value_columns(packing)
    }
    columns |= {"key_starts": (whole, None), "key_bytes": (np.dtype(np.uint8), None)}
    if packing.identity.positions:
        columns["starts"] = (whole, None)
    return columns


class _Columns:
    """The cache's files but for the index, written block by block."""

    def __init__(self, target: Path, packing: Packing, stack: contextlib.ExitStack) -> None:
        self._values = value_columns(packing)
        self._files = {
            name: stack.enter_context(
                contextlib.closing(NpyWriter(target / f"{name}.npy", dtype, width))
            )
            for name, (dtype, width) in row_columns(packing).items()
        }
        self._positions = 0
        for name in ("key_starts", "starts"):
            if name in self._files:
                self._files[name].append(np.zeros(1, np.int64))

    def append(self, block: LabelBlock, keys: pa.StringArray) -> None:
        """Add the block's rows, and the keys of the samples that begin in it."""
        for column in self._values:
            self._files[VALUE + column.name].append(column_values(block, column))
        offsets, data = utf8(keys)
        before = self._files["key_bytes"].rows
        self._files["key_bytes"].append(np.frombuffer(data, np.uint8))
        self._files["key_starts"].append(offsets[1:].astype(np.int64) + before)
        if "starts" in self._files:
            starts = block.starts()
            self._files["starts"].append(starts[1:] + self._positions)
            self._positions += int(starts[-1])

    def finish(self) -> dict[str, CardColumn]:
        """Make all files whole and durable."""
        return {name: file.finish() for name, file in self._files.items()}


def _refuse_duplicates(target: Path, folder: Path, hashes: Hashes, order: Rows) -> None:
    """Raise DataError where two samples have one key: which label would be asked for?"""
    alike = np.flatnonzero(_follows_its_like(hashes, order))
    if not len(alike):
        return
    starts = np.load(target / "key_starts.npy", mmap_mode="r")
    data = np.load(target / "key_bytes.npy", mmap_mode="r")
    seen = set()
    for place in np.unique(np.concatenate([alike, alike + 1])):
        sample = order[place]
        key = data[starts[sample] : starts[sample + 1]].tobytes()
        if key in seen:
            raise DataError(
                f"{folder}: holds two samples with the key {key.decode()!r}; "
                "run 'softlabel verify' on it"
            )
        seen.add(key)


def _follows_its_like(hashes: Hashes, order: Rows) -> npt.NDArray[np.bool_]:
    """Whether each hash but the last, in sorted order, equals the next one."""
    same = np.zeros(max(len(order) - 1, 0), bool)
    for part in _chunks(len(same)):
        values = hashes[order[part.start : part.stop + 1]]
        same[part] = values[1:] == values[:-1]
    return same


def _write_index(target: Path, hashes: Hashes, order: Rows) -> dict[str, CardColumn]:
    samples = (order[part] for part in _chunks(len(order)))
    in_order = (hashes[order[part]] for part in _chunks(len(order)))
    written = {
        "samples": _write(target, "samples", order.dtype, samples),
        "hashes": _write(target, "hashes", hashes.dtype, in_order),
    }
    hashes.sort()
    bits = len(hashes).bit_length() + 1
    width = np.dtype(np.uint32 if len(hashes) < 2**32 else np.uint64)
    shift = np.uint64(64 - bits)
    firsts = (
        hashes.searchsorted(np.arange(part.start, part.stop, dtype=np.uint64) << shift)
        for part in _chunks(2**bits)
    )
    return written | {"directory": _write(target, "directory", width, firsts)}


def _write(
    target: Path, name: str, dtype: np.dtype[Any], parts: Iterator[npt.NDArray[Any]]
) -> CardColumn:
    with contextlib.closing(NpyWriter(target / f"{name}.npy", dtype)) as file:
        for part in parts:
            file.append(part)
        return file.finish()


def _chunks(total: int) -> Iterator[slice]:
    for first in range(0, total, CHUNK):
        yield slice(first, min(first + CHUNK, total))


def _check_views(folder: Path, block: LabelBlock, first: int, views: int, last: str | None) -> None:
    """Raise DataError unless a sample's views stand together and in order: rows are found so."""
    if block.views is None:
        return
    wanted = np.arange(first, first + len(block)) % views
    before = pa.concat_arrays([pa.array([last], pa.string()), block.keys.slice(0, len(block) - 1)])
    same = pc.equal(block.keys, before).fill_null(False).to_numpy(zero_copy_only=False)
    if not (np.array_equal(block.views, wanted) and np.array_equal(same, wanted != 0)):
        raise DataError(
            f"{folder}: the views of a sample do not stand together; run 'softlabel verify'"
        )
