"""A folder of picture files, a folder for each class inside it, as torchvision's ImageFolder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from softlabel.pipeline.sources.files import digest_of, is_folder
from softlabel.pipeline.sources.pictures import (
    MOST_BYTES,
    PIECE_BYTES,
    PIECE_PICTURES,
    SUFFIXES,
)
from softlabel.pipeline.sources.reasons import no_such_source
from softlabel.pipeline.sources.remote import entries, read_all
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError, EnvironmentFault
from softlabel.schemas.location import Location, Url

# Of pictures behind a URL: more are not in memory together.
FETCHED_AT_ONCE = 64


class Listing(NamedTuple):
    """The pictures of one shard: their paths below the root, `/` between the parts, and bytes."""

    keys: pa.StringArray
    bytes: int


class FolderShard:
    """The pictures of one class; label: its number, None where there are no classes."""

    def __init__(self, root: Location, name: str, listing: Listing, label: int | None) -> None:
        self.name = name
        self.rows = len(listing.keys)
        self.bytes = listing.bytes
        self.stated: str | None = None
        self._root = root
        self._listing = listing
        self._label = label

    def read(self, first: int, rows: int) -> Iterator[ShardRows]:
        """Rows `first` to `first + rows`, encoded, in pieces of 256 pictures or 64 MiB."""
        end = first + rows
        while first < end:
            pictures: list[bytes] = []
            size = 0
            for picture in self._contents(first, min(end, first + PIECE_PICTURES)):
                pictures.append(picture)
                size += len(picture)
                if size >= PIECE_BYTES:
                    break
            keys = self._listing.keys.slice(first, len(pictures))
            yield ShardRows(keys, pictures, pa.array([self._label] * len(pictures), pa.int32()))
            first += len(pictures)

    def keys(self) -> pa.StringArray:
        """The keys of all rows, in order."""
        return self._listing.keys

    def sha256(self) -> str:
        """SHA-256 over path, NUL, SHA-256 and newline of each file, as the files are now."""
        digest = hashlib.sha256()
        for key in self._listing.keys.to_pylist():
            try:
                found = digest_of(self._root / key)
            except OSError as error:
                raise _unreadable(self._root / key, error) from error
            digest.update(f"{key}\0{found}\n".encode())
        return digest.hexdigest()

    def reopen(self) -> FolderShard:
        """The same shard for another thread."""
        return FolderShard(self._root, self.name, self._listing, self._label)

    def close(self) -> None:
        """Nothing is held."""

    def _contents(self, first: int, end: int) -> Iterator[bytes]:
        """The pictures of these rows, encoded; of those behind a URL some are fetched at once."""
        keys = self._listing.keys.slice(first, end - first).to_pylist()
        # One byte more tells the decoder that it is too long.
        most = MOST_BYTES + 1
        if isinstance(self._root, Url):
            for start in range(0, len(keys), FETCHED_AT_ONCE):
                yield from read_all(self._root, keys[start : start + FETCHED_AT_ONCE], most)
            return
        for key in keys:
            try:
                with open(self._root / key, "rb") as file:
                    yield file.read(most)
            except OSError as error:
                raise _unreadable(self._root / key, error) from error


def open_image_folder(path: Location) -> Source:
    """The source in `path`: `CLASS/**/NAME.jpg` and so on, classes in order of their names.

    Also an empty class folder counts. A folder with pictures and without folders is one shard
    without labels. Hidden files and folders, and files that are not named as pictures, are
    passed over. Raises ParameterError where there is no such folder; DataError where it holds no
    pictures, or pictures beside the class folders, or a link that leads out of it.
    """
    if not is_folder(path):
        raise no_such_source(path)
    inside = os.path.realpath(path) if isinstance(path, Path) else path.path.rstrip("/")
    loose, folders = _entries(path, "", inside)
    if folders and loose:
        raise DataError(
            f"{path}: has class folders and the picture {loose[0][0]!r} beside them; move it into "
            "a class folder or away"
        )
    if not folders:
        if not loose:
            raise DataError(f"{path}: the source is empty: no pictures and no class folders in it")
        name = os.path.basename(inside)
        return Source(path, [FolderShard(path, name, _listing(loose), None)], ())
    shards = [
        FolderShard(path, name, _listing(_below(path, f"{name}/", inside)), label)
        for label, name in enumerate(folders)
    ]
    return Source(path, shards, tuple(folders))


def _below(root: Location, prefix: str, inside: str) -> list[tuple[str, int]]:
    """Path below the root and bytes of each picture in `prefix` and the folders in it."""
    found, pending = [], [prefix]
    while pending:
        current = pending.pop()
        pictures, folders = _entries(root, current, inside)
        found += pictures
        pending += [f"{current}{name}/" for name in folders]
    return found


def _entries(root: Location, prefix: str, inside: str) -> tuple[list[tuple[str, int]], list[str]]:
    """The pictures that lie in a folder itself, path and bytes, and the names of its folders."""
    if isinstance(root, Url):
        return _remote_entries(root, prefix)
    pictures, folders = [], []
    try:
        with os.scandir(root / prefix) as held:
            for entry in held:
                if entry.name.startswith("."):
                    continue
                _check_name(root / prefix, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.name.lower().endswith(SUFFIXES) or _is_linked_folder(entry):
                    pictures.append((prefix + entry.name, _size(entry, inside)))
    except OSError as error:
        raise _unreadable(root / prefix, error) from error
    return pictures, sorted(folders)


def _remote_entries(root: Url, prefix: str) -> tuple[list[tuple[str, int]], list[str]]:
    held = entries(root / prefix if prefix else root)
    pictures = []
    for name, inner, size in held:
        if not inner and name.lower().endswith(SUFFIXES):
            if size is None:
                raise EnvironmentFault(
                    f"{root / prefix}: its server does not tell the sizes of files, and a folder "
                    "of pictures is known by them; give tars or Parquet files, or copy it here"
                )
            pictures.append((prefix + name, size))
    return pictures, [entry.name for entry in held if entry.is_folder]


def _is_linked_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and entry.is_dir()


def _size(entry: os.DirEntry[str], inside: str) -> int:
    if _is_linked_folder(entry):
        raise DataError(
            f"{entry.path}: is a link to a folder and not followed; put the folder itself here"
        )
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if os.path.commonpath([inside, target]) != inside:
            raise DataError(
                f"{entry.path}: is a link that leads out of the source; put the file itself here"
            )
    if not entry.is_file():
        raise DataError(f"{entry.path}: is no file, or a link that leads nowhere; remove it")
    return entry.stat().st_size


def _check_name(folder: Path, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{folder}: the name {name!r} in it is no UTF-8; rename it") from error


def _listing(pictures: Sequence[tuple[str, int]]) -> Listing:
    # By code points, which is the order of the bytes in UTF-8.
    keys = pa.array(sorted(key for key, _ in pictures), pa.string())
    return Listing(keys, sum(size for _, size in pictures))


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}); mend or remove it")
