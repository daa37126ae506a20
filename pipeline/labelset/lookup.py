"""Labels by key, at random: an index over the keys' hashes and memory-mapped columns.

Hashes only find candidates. The key of every row that is returned was compared with the one that
was asked for, so two keys with one hash never get each other's label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.labelset.keys import key_hashes, utf8
from softlabel.pipeline.labelset.lookup_build import (
    INDEX,
    VALUE,
    Hashes,
    Rows,
    row_columns,
    write_cache,
)
from softlabel.pipeline.labelset.lookup_cache import (
    Arrays,
    CardColumn,
    cache_path,
    card_of,
    damaged_column,
    open_cache,
    remove_caches_of_others,
)
from softlabel.pipeline.shards.block import LabelBlock, spread
from softlabel.pipeline.shards.packing import Packing
from softlabel.pipeline.shards.parquet_columns import known_labels, value_columns
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Manifest
from softlabel.schemas.reports.label_sets import Problem

# Hashes compared at once from where the directory points, which has two to four places a key.
WINDOW = 4


@dataclass(frozen=True, slots=True)
class _Index:
    """Sorted hashes with their samples, and where the hashes with given first bits begin."""

    hashes: Hashes
    samples: Rows
    directory: npt.NDArray[np.unsignedinteger]
    shift: np.uint64

    def find(self, hashes: Hashes) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """A sample with each hash, and whether there is one."""
        first = self.directory.take((hashes >> self.shift).view(np.int64)).astype(np.int64)
        near = first[:, None] + np.arange(WINDOW)
        same = self.hashes.take(near, mode="clip") == hashes[:, None]
        places = first + same.argmax(axis=1)
        # Cheaper than to ask each row of `same`.
        found = self.hashes.take(places, mode="clip") == hashes
        if not found.all():
            late = np.flatnonzero(~found)
            places[late] = self.hashes.searchsorted(hashes[late])
            found[late] = self.hashes.take(places[late], mode="clip") == hashes[late]
        return self.samples.take(places, mode="clip"), found

    def all_with(self, value: np.uint64) -> Rows:
        """Every sample with this hash."""
        first = int(self.hashes.searchsorted(value, "left"))
        return self.samples[first : int(self.hashes.searchsorted(value, "right"))]


class Lookup:
    """Rows of one label set by key, out of its cache."""

    def __init__(self, folder: Path, packing: Packing, arrays: Arrays) -> None:
        self._folder = folder
        self._packing = packing
        self._views = packing.identity.views
        self._starts = arrays.get("starts")
        self._values = [
            (column.name, arrays[VALUE + column.name]) for column in value_columns(packing)
        ]
        directory = arrays["directory"]
        shift = np.uint64(64 - int(np.log2(len(directory))))
        self._index = _Index(arrays["hashes"], arrays["samples"], directory, shift)
        self._key_starts = arrays["key_starts"]
        self._key_bytes = arrays["key_bytes"]

    def rows(self, keys: Sequence[str] | pa.Array, view: int | npt.NDArray[Any] = 0) -> LabelBlock:
        """The rows of `keys` and `view`, in this order; see `LabelSet.lookup`."""
        asked = _string_array(keys)
        chosen = self._checked_views(view, len(asked))
        rows = self._samples(asked)
        if self._views > 1:
            rows = rows * self._views + chosen
        lengths = None
        positions = rows
        if self._starts is not None:
            lengths = (self._starts[rows + 1] - self._starts[rows]).astype(np.uint32)
            positions = spread(self._starts, rows)
        values = {name: array.take(positions, axis=0) for name, array in self._values}
        stored = self._packing.identity.features is not None
        return LabelBlock(
            keys=asked,
            labels=known_labels(values.pop("label")),
            top1=values.pop("top1"),
            shift=values.pop("shift"),
            features=values.pop("features") if stored else None,
            payload=values,
            codec=self._packing.codec,
            views=chosen.astype(np.uint16) if self._views > 1 else None,
            lengths=lengths,
        )

    def _checked_views(self, view: int | npt.NDArray[Any], rows: int) -> Rows:
        if isinstance(view, int) and view == 0:
            return np.zeros(rows, np.int64)
        views = np.asarray(view)
        if views.dtype.kind not in "iu" or views.shape not in ((), (rows,)):
            raise ParameterError(
                f"lookup: view must be an integer, or an array of one for each of {rows} keys; "
                f"got {views.dtype} of shape {views.shape}"
            )
        bad = (views < 0) | (views >= self._views)
        if bad.any():
            raise ParameterError(
                f"lookup: view {views[bad].flat[0]} is outside 0..{self._views - 1}, the views of "
                f"{self._folder}"
            )
        return np.broadcast_to(views.astype(np.int64), rows)

    def _samples(self, asked: pa.StringArray) -> Rows:
        """The number of each key's sample. Raises DataError that names the first unknown one."""
        hashes = key_hashes(asked)
        samples, found = self._index.find(hashes)
        if found.all() and self._are_keys_of(samples, asked):
            return samples
        for place, key in enumerate(asked.to_pylist()):
            candidates = self._index.all_with(hashes[place])
            right = [sample for sample in candidates if self._key(sample) == key.encode()]
            if not right:
                raise DataError(
                    f"{self._folder}: has no label for key {key!r}; "
                    "run 'softlabel infer' over a source that holds it"
                )
            samples[place] = right[0]
        return samples

    def _are_keys_of(self, samples: Rows, asked: pa.StringArray) -> bool:
        """Whether these samples' stored keys are the ones that were asked for, to the byte."""
        wanted, data = utf8(asked)
        first = self._key_starts.take(samples)
        lengths = self._key_starts.take(samples + 1) - first
        if not np.array_equal(lengths, wanted[1:] - wanted[:-1]):
            return False
        places = np.arange(len(data)) + np.repeat(first - wanted[:-1], lengths)
        return self._key_bytes.take(places).tobytes() == data

    def _key(self, sample: int) -> bytes:
        return self._key_bytes[self._key_starts[sample] : self._key_starts[sample + 1]].tobytes()


def open_lookup(
    folder: Path,
    manifest: Manifest,
    packing: Packing,
    place: Path | None = None,
    *,
    full: bool = False,
) -> Lookup:
    """The lookup of a label set; its cache is built if it does not stand.

    place: a folder for the cache, beside the label set if None; there the caches of sets that
    stood in `folder` before are removed with the building. full: read the cache through first and
    compare its checksums; what fails is built again. Raises DataError for a damaged set,
    EnvironmentFault where the cache cannot be written.
    """
    path = cache_path(folder, manifest, place)

    def build(target: Path) -> dict[str, CardColumn]:
        written = write_cache(target, folder, manifest, packing)
        # In a chosen place a folder of the same name elsewhere may have its own.
        if place is None:
            remove_caches_of_others(path)
        return written

    names = (*row_columns(packing), *INDEX)
    arrays = open_cache(path, card_of(manifest), names, build, full=full)
    return Lookup(folder, packing, arrays)


def check_cache(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """The cache beside the folder, if one of this set stands, holds what was written into it."""
    path = cache_path(folder, manifest, None)
    column = damaged_column(path, card_of(manifest))
    if column is not None:
        message = f"the lookup cache is damaged in {path / column}.npy; delete the folder {path}"
        yield Problem(kind="cache", shard=None, message=f"{message}: the next lookup builds it")


def _string_array(keys: Sequence[str] | pa.Array) -> pa.StringArray:
    try:
        if isinstance(keys, str):
            raise pa.ArrowTypeError("one string")
        if isinstance(keys, pa.ChunkedArray):
            keys = keys.combine_chunks()
        array = keys if isinstance(keys, pa.Array) else _from_strings(keys)
        if not pa.types.is_string(array.type):
            array = array.cast(pa.string())
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ParameterError(
            f"lookup: keys must be a sequence of strings or an Arrow string array; got {error}"
        ) from error
    if array.null_count:
        raise ParameterError("lookup: keys must be strings; got null among them")
    return array


def _from_strings(keys: Sequence[str]) -> pa.StringArray:
    """What `pa.array` makes of strings; where all are ASCII in less time, for it visits each."""
    text = "".join(keys)
    data = text.encode()
    if len(data) != len(text):
        return pa.array(keys, pa.string())
    ends = np.zeros(len(keys) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, keys), np.int32, len(keys)), out=ends[1:])
    return pa.StringArray.from_buffers(len(keys), pa.py_buffer(ends), pa.py_buffer(data))
