"""WebDataset tars of encoded pictures, read by rows.

A sample is a group of adjacent members with one key: the name up to the first dot of its last
part. Its picture is the member whose whole suffix is that of a picture (`.jpg`, and not
`.seg.png`); its label stands in `.cls`, or as `label` in `.json`, where null and -1 are unknown.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.shards.tar import HEADER
from softlabel.pipeline.shards.tar_members import Member, member_groups, read_members
from softlabel.pipeline.shards.tar_samples import CLASS_SUFFIX
from softlabel.pipeline.sources.files import digest_of, opened, size_of
from softlabel.pipeline.sources.label_columns import UNKNOWN
from softlabel.pipeline.sources.pictures import (
    MOST_BYTES,
    PIECE_BYTES,
    PIECE_PICTURES,
    SUFFIXES,
)
from softlabel.pipeline.sources.reasons import no_such_source
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location

LABEL_SUFFIXES = (CLASS_SUFFIX, ".json")
MOST_LABEL_BYTES = 16 * 2**20
# All indexes held of one source: about three million samples.
INDEX_BYTES = 256 * 2**20
BUFFER = 2**17
_INTEGER = re.compile(rb"\s*([+-]?[0-9]{1,10})\s*")
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}


class TarIndex(NamedTuple):
    """Where the samples of one tar stand.

    places: int64 `[N, 4]`, offset and bytes of the picture, then of the label. labelled: uint8
    `[N]`, what holds the label: 0 nothing, 1 `.cls`, 2 `.json`.
    """

    keys: pa.StringArray
    places: npt.NDArray[np.int64]
    labelled: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return int(self.keys.nbytes + self.places.nbytes + self.labelled.nbytes)


class TarIndexes:
    """The indexes of a source's tars, the oldest forgotten where they grow too many.

    Readers in several threads may share it: two that miss the same one both make it.
    """

    def __init__(self) -> None:
        self._held: dict[Location, TarIndex] = {}

    def of(self, path: Location) -> TarIndex:
        """The index of this tar. Raises DataError where it cannot be a source."""
        index = self._held.get(path)
        if index is None:
            index = read_index(path)
            self._held[path] = index
            held = list(self._held.items())
            total = sum(other.nbytes for _, other in held)
            for other, old in held[:-1]:
                if total <= INDEX_BYTES:
                    break
                self._held.pop(other, None)
                total -= old.nbytes
        return index


class PictureTar:
    """One tar; its file is open only while rows are read, behind a URL until it is closed."""

    def __init__(
        self, path: Location, name: str, rows: int, size: int, indexes: TarIndexes
    ) -> None:
        self.name = name
        self.rows = rows
        self.bytes = size
        self.stated: str | None = None
        self._path = path
        self._indexes = indexes
        self._remote: BinaryIO | None = None

    def read(self, first: int, rows: int) -> Iterator[ShardRows]:
        """Rows `first` to `first + rows`, encoded, in pieces of 256 pictures or 64 MiB."""
        index = self._index()
        end = first + rows
        try:
            with self._opened() as file:
                if file.seek(0, os.SEEK_END) != self.bytes:
                    raise self._changed()
                while first < end:
                    last = min(end, first + PIECE_PICTURES)
                    sizes = np.cumsum(index.places[first:last, 1])
                    last = min(last, first + int(np.searchsorted(sizes, PIECE_BYTES)) + 1)
                    yield self._rows(file, index, first, last)
                    first = last
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read ({error.strerror})") from error

    def keys(self) -> pa.StringArray:
        """The keys of all rows, in order."""
        return self._index().keys

    def sha256(self) -> str:
        """SHA-256 of the file as it is now."""
        return digest_of(self._path)

    def reopen(self) -> PictureTar:
        """The same tar for another thread."""
        return PictureTar(self._path, self.name, self.rows, self.bytes, self._indexes)

    def close(self) -> None:
        """Let go of a file behind a URL; else only the source's indexes hold anything."""
        self._remote = None

    def _opened(self) -> contextlib.AbstractContextManager[BinaryIO]:
        if isinstance(self._path, Path):
            return open(self._path, "rb", BUFFER)
        if self._remote is None:
            self._remote = opened(self._path)
        # It holds blocks of what the next read begins with.
        return contextlib.nullcontext(self._remote)

    def _index(self) -> TarIndex:
        index = self._indexes.of(self._path)
        if len(index.keys) != self.rows:
            raise self._changed()
        return index

    def _rows(self, file: BinaryIO, index: TarIndex, first: int, last: int) -> ShardRows:
        pictures, labels = [], []
        for row in range(first, last):
            pictures.append(self._data(file, index, row, 0, MOST_BYTES + 1))
            labels.append(self._label(file, index, row) if index.labelled[row] else None)
        return ShardRows(index.keys[first:last], pictures, pa.array(labels, pa.int32()))

    def _data(self, file: BinaryIO, index: TarIndex, row: int, column: int, most: int) -> bytes:
        offset, size = index.places[row, column : column + 2].tolist()
        file.seek(offset)
        # One byte more than allowed tells that it is too long.
        data = file.read(min(size, most))
        if len(data) != min(size, most):
            raise self._changed()
        return data

    def _label(self, file: BinaryIO, index: TarIndex, row: int) -> int | None:
        data = self._data(file, index, row, 2, MOST_LABEL_BYTES + 1)
        suffix = LABEL_SUFFIXES[index.labelled[row] - 1]
        try:
            if len(data) > MOST_LABEL_BYTES:
                raise ValueError(f"it has more than {MOST_LABEL_BYTES >> 20} MiB")
            label = _read_integer(data) if suffix == CLASS_SUFFIX else _read_field(data)
            if label is not None and not -(2**31) <= label < 2**31:
                raise ValueError(f"{label} is beyond 32 bits")
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self._path}: member {index.keys[row].as_py() + suffix!r} holds no label "
                f"({error}); mend it or leave it out"
            ) from error
        return None if label == UNKNOWN else label

    def _changed(self) -> DataError:
        return DataError(f"{self._path}: the file changed since it was opened; start again")


def open_tars(path: Location, files: Sequence[Location]) -> Source:
    """The source in these tars, in this order; `path` is what they are called together.

    A tar is named by its file's name, and where two have the same by its path from the folder
    that they share. Raises DataError where a tar is cut, compressed, or holds soft labels only,
    where a sample has no picture or several, and where a key is empty or stands in two places.
    """
    indexes = TarIndexes()
    shards = []
    for file, name in zip(files, _names(files), strict=True):
        if isinstance(file, Path) and not file.exists():
            raise no_such_source(file)
        rows = len(indexes.of(file).keys)
        shards.append(PictureTar(file, name, rows, size_of(file), indexes))
    return Source(path, shards, ())


def read_index(path: Location) -> TarIndex:
    """Where the samples of a tar stand; reads headers only. Raises DataError, as `open_tars`."""
    with opened(path) as file:
        return _read_index(path, file)


def _read_index(path: Location, file: BinaryIO) -> TarIndex:
    _refuse_other_files(path, file)

    def place(file: BinaryIO, member: Member) -> Member:
        if member.name.rpartition("/")[2].startswith("."):
            raise DataError(
                f"{path}: member {member.name!r} has an empty key, its name begins with a dot; "
                "rename it or leave it out"
            )
        return member

    keys: list[str] = []
    places: list[tuple[int, int, int, int]] = []
    labelled = bytearray()
    for key, members in member_groups(path, place, file):
        own = {suffix.lower(): member for suffix, member in members}
        picture = _only_picture(path, key, own)
        kind = next((n for n, s in enumerate(LABEL_SUFFIXES, 1) if s in own), 0)
        label = own[LABEL_SUFFIXES[kind - 1]] if kind else None
        keys.append(key)
        places.append(
            (picture.data, picture.size, *((label.data, label.size) if label else (0, 0)))
        )
        labelled.append(kind)
    return TarIndex(
        pa.array(keys, pa.string()),
        np.asarray(places, np.int64).reshape(-1, 4),
        np.frombuffer(bytes(labelled), np.uint8),
    )


def _only_picture(path: Location, key: str, members: dict[str, Member]) -> Member:
    found = [member for suffix, member in members.items() if suffix in SUFFIXES]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{path}: sample {key!r} has {len(found)} pictures, {found[0].name!r} and "
            f"{found[1].name!r}; keep one"
        )
    names = ", ".join(repr(member.name) for member in itertools.islice(members.values(), 3))
    raise DataError(
        f"{path}: sample {key!r} has no picture, only {names}; a key ends at the "
        "first dot and the rest must be .jpg, .png and so on: rename it or leave it out"
    )


def _refuse_other_files(path: Location, file: BinaryIO) -> None:
    begin = file.read(8)
    for magic, packing in _PACKED.items():
        if begin.startswith(magic):
            raise DataError(f"{path}: is compressed ({packing}); unpack it to a plain .tar first")
    try:
        first = next(read_members(file), None)
    except (OSError, ValueError):
        # Somebody else's tar, or none: told when it is read.
        return
    if first is None or first.name != HEADER:
        return
    file.seek(first.data)
    try:
        layout = json.loads(file.read(min(first.size, MOST_LABEL_BYTES)))["layout"]
    except (ValueError, LookupError, TypeError, RecursionError):
        layout = None
    if layout != "merged":
        raise DataError(
            f"{path}: holds soft labels without their pictures (layout {layout}); give the tars of "
            "the pictures"
        )


def _read_integer(data: bytes) -> int:
    found = _INTEGER.fullmatch(data)
    if found is None:
        raise ValueError(f"{data[:20]!r} is no integer")
    return int(found[1])


def _read_field(data: bytes) -> int | None:
    document = json.loads(data)
    label = document.get("label") if isinstance(document, dict) else None
    if label is not None and type(label) is not int:
        raise ValueError(f"'label' is {str(label)[:20]!r}, no integer")
    return label


def _names(files: Sequence[Location]) -> list[str]:
    names = [file.name for file in files]
    if max(Counter(names).values(), default=0) < 2:
        return names
    places = [str(file.absolute()) if isinstance(file, Path) else file.path for file in files]
    shared = os.path.commonpath([os.path.dirname(place) for place in places])
    return [os.path.relpath(place, shared) for place in places]
