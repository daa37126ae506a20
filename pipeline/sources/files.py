"""Files of sources, on this machine or behind a URL, by the same few functions.

Of a URL each raises EnvironmentFault where it cannot be asked.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import BinaryIO

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.sources.reasons import no_such_source
from softlabel.pipeline.sources.remote import (
    Entry,
    entries,
    is_remote_folder,
    matching,
    remote_file,
    remote_sha256,
    remote_size,
)
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.location import Location, Url


def is_file(path: Location) -> bool:
    """Whether a file is there."""
    return path.is_file() if isinstance(path, Path) else remote_size(path) is not None


def is_folder(path: Location) -> bool:
    """Whether a folder is there."""
    return path.is_dir() if isinstance(path, Path) else is_remote_folder(path)


def size_of(path: Location) -> int:
    """Bytes of the file. Raises ParameterError where there is none behind a URL."""
    if isinstance(path, Path):
        return path.stat().st_size
    size = remote_size(path)
    if size is None:
        raise no_such_source(path)
    return size


def opened(path: Location) -> BinaryIO:
    """The file, open for reading at any place."""
    return open(path, "rb") if isinstance(path, Path) else remote_file(path)


def readable(path: Location) -> Path | BinaryIO:
    """The file as pyarrow takes it: itself, or open where it is behind a URL."""
    return path if isinstance(path, Path) else remote_file(path)


def digest_of(path: Location) -> str:
    """SHA-256 of the file's bytes in lower-case hexadecimal."""
    return file_sha256(path) if isinstance(path, Path) else remote_sha256(path)


def matched(pattern: Location) -> list[Location]:
    """The files that a pattern with `*`, `?` and `[ab]` names, sorted."""
    if isinstance(pattern, Url):
        return [*matching(pattern)]
    return [Path(name) for name in sorted(glob.glob(str(pattern)))]


def listed(folder: Location) -> list[Entry]:
    """What lies in a folder, by name, but for what is hidden."""
    if isinstance(folder, Url):
        return entries(folder)
    held = (Entry(path.name, path.is_dir(), None) for path in folder.iterdir())
    return sorted(entry for entry in held if not entry.name.startswith("."))


def refuse_remote(path: Location, what: str) -> Path:
    """The path, where `what` is on this machine. Raises ParameterError where it is not.

    It is mapped into memory to be read.
    """
    if isinstance(path, Url):
        raise ParameterError(
            f"{path}: {what} can be read on this machine only; copy the files here and name those"
        )
    return path
