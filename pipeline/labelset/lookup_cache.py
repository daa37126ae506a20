"""The cache of `lookup`: a folder of memory-mapped columns beside the label set, built once.

It is made under a temporary name and renamed when it is whole, so that its name holds all of it
or nothing. An flock on a file beside it lets one process build while the others wait. What it was
built from, and a checksum of each column, stand in `lookup.json`; a cache of anything else, or with
columns of other types or sizes, is built again.

The bytes of a cache of up to 256 MiB are compared with its checksums at each opening (15 ms where
the system has them in memory), those of a larger one where a full check is asked for: every worker
of a loader would read it all before its first label.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import Field

from softlabel.pipeline.publish import make_folder, publish_bytes, sync_folder, temporary_name
from softlabel.schemas.errors import EnvironmentFault
from softlabel.schemas.labelset import Manifest, canonical_json, sha256_of
from softlabel.schemas.model import Record

CARD_FILE = "lookup.json"

CHECKED_BYTES = 2**28
# Bytes that are hashed at a time.
PIECE = 2**24

Arrays = Mapping[str, npt.NDArray[Any]]


class CardColumn(Record):
    """One column of the cache: NumPy's name of its type, its shape, and XXH3-64 of its values."""

    dtype: str
    shape: tuple[int, ...]
    xxh3_64: str


class Card(Record):
    """lookup.json: which label set the cache was built from, to the byte, and what it holds."""

    cache_version: Literal[2] = 2
    identity_sha256: str
    manifest_sha256: str
    rows: int
    columns: Mapping[str, CardColumn] = Field(default_factory=dict)


# Writes the columns into a folder and tells of them by name.
Build = Callable[[Path], Mapping[str, CardColumn]]


class NpyWriter:
    """Appends rows to a `.npy` file; the number of rows is known when it is finished."""

    def __init__(self, path: Path, dtype: np.dtype[Any], width: int | None = None) -> None:
        self._dtype = dtype
        self._width = width
        self._file: IO[bytes] = open(path, "wb")
        self._hash = xxhash.xxh3_64()
        self.rows = 0
        self._write_header()

    def append(self, values: npt.NDArray[Any]) -> None:
        """Add values `[N]`, or `[N, width]`, cast to the file's type."""
        data = np.ascontiguousarray(values, self._dtype).data
        self._hash.update(data)
        self._file.write(data)
        self.rows += len(values)

    def finish(self) -> CardColumn:
        """Write the true shape and make the file durable; return what the card says of it."""
        end = self._file.tell()
        self._file.seek(0)
        self._write_header()
        self._file.seek(end)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return CardColumn(
            dtype=self._dtype.str, shape=self._shape(), xxh3_64=self._hash.hexdigest()
        )

    def close(self) -> None:
        """Let the file go as it is."""
        self._file.close()

    def _write_header(self) -> None:
        # NumPy leaves room for a first axis of any length, so the header keeps its size.
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": self._shape()}
        np.lib.format.write_array_header_1_0(self._file, header)

    def _shape(self) -> tuple[int, ...]:
        return (self.rows,) if self._width is None else (self.rows, self._width)


def card_of(manifest: Manifest) -> Card:
    """What a cache of this label set says of itself, before its columns are known."""
    return Card(
        identity_sha256=manifest.identity_sha256,
        manifest_sha256=sha256_of(canonical_json(manifest)),
        rows=manifest.rows,
    )


def cache_path(folder: Path, manifest: Manifest, place: Path | None) -> Path:
    """Where the cache of the label set in `folder` lies: beside it, or in `place`."""
    real = folder.resolve()
    name = f"{real.name}.lookup-{manifest.identity_sha256[:16]}"
    return real.with_name(name) if place is None else place / name


def open_cache(
    path: Path, card: Card, names: Iterable[str], build: Build, *, full: bool = False
) -> Arrays:
    """The cache's columns by `names`, memory-mapped; `build` writes them into a folder if needed.

    full: compare every byte with its column's checksum, however large the cache is. Raises
    EnvironmentFault where the cache cannot be written, and what `build` raises.
    """
    names = tuple(names)
    standing = _standing(path, card, names, full)
    if standing is not None:
        return standing
    try:
        make_folder(path.parent)
        with _alone(path):
            standing = _standing(path, card, names, full)
            if standing is None:
                _publish(path, card, build)
                standing = _mapped(path, names)
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: the lookup cache cannot be written ({error.strerror or error}); name a "
            "folder with room that can be written: softlabel.open(folder, cache=PATH)"
        ) from error
    return standing


def damaged_column(path: Path, card: Card) -> str | None:
    """The first column of a cache of the set of `card` that is not as it was written, or None.

    Reads every byte. None also where no cache of this set stands: it would be built.
    """
    stated = _stated(path, card)
    if stated is None:
        return None
    bad = (name for name in stated.columns if _checked(path, stated, [name], full=True) is None)
    return next(bad, None)


def remove_caches_of_others(path: Path) -> None:
    """Delete the caches beside `path` whose names differ from it in the identity alone.

    They are of sets that stood in the same folder before. Who reads one goes on: what is mapped
    outlives its name. One that is being built is left alone.
    """
    name, identity = path.name[:-16], path.name[-16:]
    pattern = re.compile(rf"\.?({re.escape(name)}[0-9a-f]{{16}})(?:\.tmp|\.lock)?")
    found = (pattern.fullmatch(entry.name) for entry in path.parent.iterdir())
    for old in sorted({match[1] for match in found if match} - {name + identity}):
        _remove(path.with_name(old))


def _remove(path: Path) -> None:
    # Where it is locked it is being built, and elsewhere not ours to delete: nothing depends on it.
    with contextlib.suppress(OSError), _alone(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
        for folder in (path, temporary_name(path)):
            if folder.is_dir() and _is_cache(folder):
                (folder / CARD_FILE).unlink(missing_ok=True)
                shutil.rmtree(folder)


def _is_cache(folder: Path) -> bool:
    """Whether nothing but a cache's files lies here: somebody may have named a folder so."""
    own = (CARD_FILE, temporary_name(Path(CARD_FILE)).name)
    return all(entry.name in own or entry.suffix == ".npy" for entry in folder.iterdir())


def _standing(path: Path, card: Card, names: Iterable[str], full: bool) -> Arrays | None:
    """The columns of the cache that stands whole and was built from the same label set."""
    stated = _stated(path, card)
    if stated is None:
        return None
    arrays = _checked(path, stated, names, full=full)
    # Somebody may have put another cache there between the first column and the last.
    return arrays if _stated(path, card) == stated else None


def _stated(path: Path, card: Card) -> Card | None:
    """What the cache at `path` says of itself, where it is of the set of `card`."""
    try:
        stated = Card.model_validate_json((path / CARD_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return stated if stated.model_copy(update={"columns": {}}) == card else None


def _checked(path: Path, stated: Card, names: Iterable[str], *, full: bool) -> Arrays | None:
    """The columns, where their types, their shapes and, as the case is, bytes are as stated."""
    try:
        arrays = _mapped(path, names)
        full = full or sum(values.nbytes for values in arrays.values()) <= CHECKED_BYTES
        for name, values in arrays.items():
            column = stated.columns.get(name)
            if column is None or (column.dtype, column.shape) != (values.dtype.str, values.shape):
                return None
            if full and column.xxh3_64 != _xxh3_64(path / f"{name}.npy", values.nbytes):
                return None
    except (OSError, ValueError):
        return None
    return arrays


def _xxh3_64(path: Path, size: int) -> str:
    """Of the file's values, its last `size` bytes: read, for pages of a mapping stay in memory."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        file.seek(-size, os.SEEK_END)
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _mapped(path: Path, names: Iterable[str]) -> Arrays:
    # Indexing through the memmap subclass costs several times as much as through an array.
    return {
        name: np.asarray(np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        for name in names
    }


def _publish(path: Path, card: Card, build: Build) -> None:
    temporary = temporary_name(path)
    for old in (temporary, path):
        if old.exists():
            (old / CARD_FILE).unlink(missing_ok=True)
            shutil.rmtree(old)
    temporary.mkdir()
    try:
        whole = card.model_copy(update={"columns": dict(build(temporary))})
        publish_bytes(temporary / CARD_FILE, canonical_json(whole))
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def _alone(path: Path, operation: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold the lock on the cache; the lock's file goes with it."""
    lock = path.with_name(path.name + ".lock")
    handle = _locked(lock, operation)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _locked(lock: Path, operation: int) -> int:
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, operation)
        except OSError:
            os.close(handle)
            raise
        # The holder before us removed the name that we opened: then it locks nobody out.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        os.close(handle)
