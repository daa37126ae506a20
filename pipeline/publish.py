"""Publishing files so that a name either holds the whole content or does not exist."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from softlabel.schemas.errors import ParameterError

TEMPORARY_SUFFIX = ".tmp"


def temporary_name(path: Path) -> Path:
    """The name under which `path` is written before it is published, in the same folder."""
    return path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")


@contextlib.contextmanager
def publishing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; on a clean exit it becomes `path`, durably.

    fsync of the file, rename, fsync of the folder. On an exception the temporary file goes.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def publish_bytes(path: Path, data: bytes) -> None:
    """Publish `data` as `path`, replacing what was there."""
    with publishing(path) as file:
        file.write(data)


def make_folder(path: Path) -> None:
    """Create the folder `path` and those above it. Raises ParameterError where a file is there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ParameterError(
            f"{path}: cannot be a folder, a file is in the way; choose another output"
        ) from error


def refuse_folder(path: Path) -> None:
    """Raise ParameterError where a folder stands under the name of a file to write."""
    if path.is_dir():
        raise ParameterError(f"{path}: is a folder; name a file as output")


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes in lower-case hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed writer left under temporary names in `folder`."""
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
