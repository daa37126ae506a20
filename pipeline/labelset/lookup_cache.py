"""The cache of `lookup`: a folder of memory-mapped columns beside the label set, built once.

It is made under a temporary name and renamed when it is whole, so that its name holds all of it
or nothing. An flock on a file beside it lets one process build while the others wait. What it was
built from stands in `lookup.json`; a cache of anything else is built again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.publish import make_folder, publish_bytes, sync_folder, temporary_name
from softlabel.schemas.errors import EnvironmentFault
from softlabel.schemas.labelset import Manifest, canonical_json, sha256_of
from softlabel.schemas.model import Record

CARD_FILE = "lookup.json"

Arrays = Mapping[str, npt.NDArray[Any]]


class Card(Record):
    """lookup.json: which label set the cache was built from, to the byte."""

    cache_version: Literal[1] = 1
    identity_sha256: str
    manifest_sha256: str
    rows: int


class NpyWriter:
    """Appends rows to a `.npy` file; the number of rows is known when it is finished."""

    def __init__(self, path: Path, dtype: np.dtype[Any], width: int | None = None) -> None:
        self._dtype = dtype
        self._width = width
        self._file: IO[bytes] = open(path, "wb")
        self.rows = 0
        self._write_header()

    def append(self, values: npt.NDArray[Any]) -> None:
        """Add values `[N]`, or `[N, width]`, cast to the file's type."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self.rows += len(values)

    def finish(self) -> None:
        """Write the true shape and make the file durable."""
        end = self._file.tell()
        self._file.seek(0)
        self._write_header()
        self._file.seek(end)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Let the file go as it is."""
        self._file.close()

    def _write_header(self) -> None:
        # NumPy leaves room for a first axis of any length, so the header keeps its size.
        shape = (self.rows,) if self._width is None else (self.rows, self._width)
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


def card_of(manifest: Manifest) -> Card:
    """What a cache of this label set says of itself."""
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
    path: Path, card: Card, names: Iterable[str], build: Callable[[Path], None]
) -> Arrays:
    """The cache's columns by `names`, memory-mapped; `build` writes them into a folder if needed.

    Raises EnvironmentFault where the cache cannot be written, and what `build` raises.
    """
    names = tuple(names)
    standing = _standing(path, card, names)
    if standing is not None:
        return standing
    try:
        make_folder(path.parent)
        with _alone(path):
            standing = _standing(path, card, names)
            if standing is None:
                _publish(path, card, build)
                standing = _mapped(path, names)
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: the lookup cache cannot be written ({error.strerror or error}); name a "
            "folder with room that can be written: softlabel.open(folder, cache=PATH)"
        ) from error
    return standing


def _standing(path: Path, card: Card, names: Iterable[str]) -> Arrays | None:
    """The columns of the cache that stands whole and was built from the same label set."""
    wanted = canonical_json(card)
    try:
        if (path / CARD_FILE).read_bytes() != wanted:
            return None
        arrays = _mapped(path, names)
        # Somebody may have put another cache there between the first column and the last.
        return arrays if (path / CARD_FILE).read_bytes() == wanted else None
    except (OSError, ValueError):
        return None


def _mapped(path: Path, names: Iterable[str]) -> Arrays:
    # Indexing through the memmap subclass costs several times as much as through an array.
    return {
        name: np.asarray(np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        for name in names
    }


def _publish(path: Path, card: Card, build: Callable[[Path], None]) -> None:
    temporary = temporary_name(path)
    for old in (temporary, path):
        if old.exists():
            (old / CARD_FILE).unlink(missing_ok=True)
            shutil.rmtree(old)
    temporary.mkdir()
    try:
        build(temporary)
        publish_bytes(temporary / CARD_FILE, canonical_json(card))
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock on the cache; the lock's file goes with it."""
    lock = path.with_name(path.name + ".lock")
    handle = _locked(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _locked(lock: Path) -> int:
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
        # The holder before us removed the name that we opened: then it locks nobody out.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        os.close(handle)
