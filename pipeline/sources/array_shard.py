"""Pictures stored as arrays of one shape, with labels in an array beside them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from softlabel.pipeline.sources.files import digest_of, size_of
from softlabel.pipeline.sources.mapped import mapped_rows
from softlabel.pipeline.sources.remote_array import RemoteArray
from softlabel.pipeline.sources.row_keys import check_stems, numbered_keys
from softlabel.pipeline.sources.shard import Pictures, ShardRows
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location
from softlabel.schemas.sample import Array

UNKNOWN = -1
# Rows a shard, from which on they are left in their files: with fewer very many would be mapped.
MAPPED_ROWS = 1024


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array in a file, known by its header.

    member: its name in an archive. load: gives the array itself, mapped into memory where that can
    be, or read by rows where it is behind a URL; raises DataError. in_rows: whether it is mapped,
    each row in one piece.
    """

    path: Location
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    load: Callable[[], Array | RemoteArray]
    member: str | None = None
    in_rows: bool = False

    @property
    def place(self) -> str:
        """The file, and the member in it, for messages."""
        return f"{self.path}" if self.member is None else f"{self.path}: {self.member}"

    def loaded(self) -> Array | RemoteArray:
        """The array. Raises DataError where the file is no longer what its header said."""
        array = self.load()
        if array.shape != self.shape or array.dtype != self.dtype:
            raise DataError(f"{self.place}: has another shape now; the file changed, start again")
        return array


class ArrayShard:
    """Pictures uint8 `[N, height, width]` or `[N, height, width, channels]`, and their labels.

    labels: integers `[N]` or `[N, 1]`, -1 where unknown, or masks `[N, height, width]`; None: all
    unknown. masked: they are masks. stem, digits: keys are `STEM-NUMBER`. stated: the shard's
    SHA-256, where it was taken already. stays: leave pictures in their mapped file when they are
    read. The loaded arrays are kept. Raises DataError where the arrays cannot be used.
    """

    def __init__(
        self,
        pictures: StoredArray,
        labels: StoredArray | None,
        stem: str,
        digits: int = 8,
    ) -> None:
        _check_pictures(pictures)
        if labels is not None:
            _check_labels(pictures, labels)
        self.name = pictures.path.name
        self.rows = pictures.shape[0]
        self.files = [pictures.path]
        if labels is not None and labels.path != pictures.path:
            self.files.append(labels.path)
        self.bytes = sum(size_of(file) for file in self.files)
        # Numbered rows of one size look alike in any order: only their bytes tell.
        self.stated: str | None = self.sha256()
        height, width, *channels = pictures.shape[1:]
        self.shape = (height, width, channels[0] if channels else 1)
        self.masked = labels is not None and len(labels.shape) == 3
        self.stem = stem
        self.stays = False
        self._digits = digits
        self._pictures = pictures
        self._labels = labels
        self._loaded: tuple[Array | RemoteArray, pa.Int32Array | Array | RemoteArray] | None = None

    def read(self, first: int, rows: int) -> Iterator[ShardRows]:
        """Rows `first` to `first + rows`, where they lie in the file if they are mapped."""
        if self._loaded is None:
            self._loaded = self._read_pictures(), self._read_labels()
        pictures, labels = self._loaded
        own: Pictures = pictures[first : first + rows].reshape(rows, *self.shape)
        if self.stays and isinstance(pictures, np.memmap):
            own = mapped_rows(pictures, first, rows)
        keys = numbered_keys(self.stem, first, rows, self._digits)
        if isinstance(labels, pa.Array):
            yield ShardRows(keys, own, labels.slice(first, rows))
        else:
            yield ShardRows(keys, own, _as_lists(labels[first : first + rows]))

    def keys(self) -> pa.StringArray:
        """The keys of all rows, in order; nothing is read."""
        return numbered_keys(self.stem, 0, self.rows, self._digits)

    def sha256(self) -> str:
        """SHA-256 of the file as it is now; of several, of the lines `SHA-256  NAME`."""
        digests = [digest_of(file) for file in self.files]
        if len(digests) == 1:
            return digests[0]
        names = [file.name for file in self.files]
        lines = [f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def reopen(self) -> ArrayShard:
        """The same arrays for another thread."""
        other = copy.copy(self)
        other.close()
        return other

    def close(self) -> None:
        """Let go of the arrays."""
        self._loaded = None

    @property
    def in_rows(self) -> bool:
        """Whether each picture lies in one piece in a mapped file."""
        return self._pictures.in_rows

    def _read_pictures(self) -> Array | RemoteArray:
        pictures = self._pictures.loaded()
        if isinstance(pictures, RemoteArray):
            return pictures
        return pictures.reshape(self.rows, *self.shape)

    def _read_labels(self) -> pa.Int32Array | Array | RemoteArray:
        """The labels of all pictures, or their masks where these lie."""
        if self._labels is None:
            return pa.nulls(self.rows, pa.int32())
        if self.masked:
            return self._labels.loaded()
        labels = self._labels.loaded()[:].reshape(-1)
        limits = np.iinfo(np.int32)
        bad = (labels > limits.max) | (labels < limits.min)
        if bad.any():
            row = int(bad.argmax())
            key = numbered_keys(self.stem, row, 1, self._digits)[0].as_py()
            raise DataError(
                f"{self._labels.place}: key {key!r} has label {labels[row]}; number the classes"
            )
        return pa.array(labels.astype(np.int32), mask=labels == UNKNOWN)


def array_source(path: Location, shards: Sequence[ArrayShard]) -> Source:
    """The source of these shards. Raises DataError where keys or shapes do not go together."""
    check_stems(path, {shard.files[0]: shard.stem for shard in shards})
    first, *others = shards
    for shard in others:
        if shard.shape != first.shape:
            raise DataError(
                f"{path}: {shard.name} has pictures of {list(shard.shape)}, {first.name} of "
                f"{list(first.shape)} [height, width, channels]; bring them to one shape"
            )
        if shard.masked != first.masked:
            one, other = (first, shard) if first.masked else (shard, first)
            raise DataError(
                f"{path}: {one.name} has masks for labels, {other.name} has none; give each file "
                "its masks, or open them one by one"
            )
    long = sum(shard.rows for shard in shards) >= MAPPED_ROWS * len(shards)
    # All alike: a window puts the rows of several shards together.
    stays = long and all(shard.in_rows for shard in shards)
    for shard in shards:
        shard.stays = stays
    return Source(path, shards, (), first.shape, masked=first.masked)


def _as_lists(masks: Array) -> pa.FixedSizeListArray:
    """Masks `[N, height, width]` as lists of the pixels of each."""
    pixels = pa.array(np.ascontiguousarray(masks).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(pixels, masks.shape[1] * masks.shape[2])


def chosen_one(path: Location, found: Mapping[str, StoredArray], what: str) -> StoredArray | None:
    """The only one of `found`; None where there is none. Raises DataError where there are more."""
    if len(found) > 1:
        names = " and ".join(map(repr, found))
        raise DataError(f"{path}: the {what} may be in {names}; keep one of them")
    return next(iter(found.values()), None)


def _check_pictures(pictures: StoredArray) -> None:
    kind = pictures.dtype
    if kind.kind == "f":
        raise DataError(
            f"{pictures.place}: holds pictures of {kind}, only uint8 is read; save what the "
            "teacher's preprocessing takes as uint8 (from 0..1: np.rint(x * 255).astype('uint8'))"
        )
    if kind != np.uint8:
        raise DataError(
            f"{pictures.place}: holds pictures of {kind}, only uint8 is read; save values 0..255 "
            "as uint8"
        )
    if len(pictures.shape) not in (3, 4) or 0 in pictures.shape[1:]:
        raise DataError(
            f"{pictures.place}: expected pictures [N, height, width] or [N, height, width, "
            f"channels], got {list(pictures.shape)}; save them so"
        )


def check_label_kind(labels: StoredArray) -> None:
    """Raise DataError where these are no numbers of classes."""
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{labels.place}: holds labels of {labels.dtype}; save the classes' numbers as integers"
        )


def _check_labels(pictures: StoredArray, labels: StoredArray) -> None:
    check_label_kind(labels)
    if not labels.shape or labels.shape[1:] not in ((), (1,), pictures.shape[1:3]):
        raise DataError(
            f"{labels.place}: expected labels [N], got {list(labels.shape)}; save one a picture, "
            f"or masks of {pictures.shape[1]}x{pictures.shape[2]}, as large as the pictures"
        )
    if labels.shape[0] != pictures.shape[0]:
        raise DataError(
            f"{pictures.place}: has {pictures.shape[0]} pictures, {labels.place} has "
            f"{labels.shape[0]} labels; save one label a picture"
        )
