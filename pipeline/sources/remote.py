"""Files behind URLs, read in blocks by fsspec, with every fault of the network in one line.

What an address needs besides, such as keys or an endpoint, fsspec takes from its own configuration
and from where the protocol's package looks. Retries are theirs too.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from softlabel.pipeline.sources.reasons import no_such_source, reason
from softlabel.schemas.errors import EnvironmentFault, ParameterError, SoftlabelError
from softlabel.schemas.location import Url

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# What is asked for at once, and how many of those a file holds: columns of a table, and headers
# and pictures of a tar, are read side by side.
BLOCK_BYTES = 4 * 2**20
BLOCKS = 8
EXTRAS = {"http": "remote", "https": "remote", "s3": "s3", "gs": "gs", "gcs": "gs"}


class Entry(NamedTuple):
    """What lies in a folder. size: in bytes, where it is told."""

    name: str
    is_folder: bool
    size: int | None


class RemoteFile(io.BufferedIOBase):
    """A file behind a URL, open for reading at any place; only blocks of it are in memory."""

    def __init__(self, url: Url, file: IO[bytes]) -> None:
        self._url = url
        self._file = file

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """As a local file does. Raises EnvironmentFault."""
        with _telling(self._url):
            return self._file.read(-1 if size is None else size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As a local file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As a local file does."""
        return self._file.tell()

    def close(self) -> None:
        """Let go of the blocks."""
        self._file.close()
        super().close()


def remote_file(url: Url) -> BinaryIO:
    """The file, open for reading. Raises ParameterError where there is none, EnvironmentFault."""
    return cast(BinaryIO, _opened(url))


def _opened(url: Url) -> RemoteFile:
    with _telling(url):
        system, path = _system(url)
        blocks = {"cache_type": "blockcache", "cache_options": {"maxblocks": BLOCKS}}
        # In a chain the first file system says how the next one is read.
        options = {} if "::" in url else {"block_size": BLOCK_BYTES, **blocks}
        file = system.open(path, "rb", **options)
    if isinstance(file, io.BytesIO):
        # A file of memory:// has one position for all who opened it.
        file = io.BytesIO(file.getvalue())
    try:
        file.seek(0, os.SEEK_END)
        file.seek(0)
    except ValueError as error:
        raise EnvironmentFault(
            f"{url}: its server gives whole files only, and ranges of them are read; copy the file "
            "to this machine"
        ) from error
    return RemoteFile(url, file)


def remote_size(url: Url) -> int | None:
    """Bytes of the file; None where there is no such file. Raises EnvironmentFault."""
    found = _info(url)
    if found is None or found["type"] != "file":
        return None
    if found["size"] is not None:
        return int(found["size"])
    # A cache in between may know it of the open file only.
    with _opened(url) as file:
        return file.seek(0, os.SEEK_END)


def remote_sha256(url: Url) -> str:
    """SHA-256 of the file's bytes in lower-case hexadecimal; as `remote_file` raises."""
    with _opened(url) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_remote_folder(url: Url) -> bool:
    """Whether a folder is there. Raises EnvironmentFault."""
    if url.is_web:
        # To a web server a folder is a page, as files are: one that links to what lies in it.
        return bool(entries(url)) if _info(url) is not None else False
    found = _info(url)
    return found is not None and found["type"] == "directory"


def entries(folder: Url) -> list[Entry]:
    """What lies in a folder, by name, but for what is hidden. Raises EnvironmentFault."""
    with _telling(folder):
        system, path = _system(folder)
        found = system.ls(path, detail=True)
    named = [(Url(f"{folder.protocol}://{item['name']}").name, item) for item in found]
    return sorted(
        Entry(name, item["type"] == "directory", item["size"])
        for name, item in named
        # A page of a folder links to itself in other orders.
        if name and not name.startswith(".")
    )


def matching(pattern: Url) -> list[Url]:
    """The URLs that a pattern with `*`, `?` and `[ab]` names, sorted. Raises EnvironmentFault."""
    fixed = next(place for place, letter in enumerate(pattern) if letter in "*?[")
    folder = Url(pattern[: pattern.rindex("/", 0, fixed) + 1])
    with _telling(pattern):
        system, path = _system(pattern)
        base = _system(folder)[1].rstrip("/")
        found = sorted(name for name in system.glob(path) if name.startswith(f"{base}/"))
    return [Url(folder + name[len(base) + 1 :]) for name in found]


def read_all(folder: Url, names: Sequence[str], most: int) -> list[bytes]:
    """The first `most` bytes of each of these files of a folder. Raises EnvironmentFault."""
    with _telling(folder):
        system, _ = _system(folder)
        paths = [_system(folder / name)[1] for name in names]
        found = system.cat_ranges(paths, 0, most, on_error="raise")
    return list(found)


def _info(url: Url) -> dict[str, Any] | None:
    with _telling(url):
        system, path = _system(url)
        try:
            return cast("dict[str, Any]", system.info(path))
        except FileNotFoundError as error:
            if not _is_missing(url, error):
                raise
            return None


def _is_missing(url: Url, error: FileNotFoundError) -> bool:
    """Whether the file is not there: over HTTP a server that cannot be asked looks the same."""
    cause = error.__cause__
    return not url.is_web or cause is None or getattr(cause, "status", None) in (404, 410)


def _system(url: Url) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path in it; of this thread and process."""
    from fsspec.core import url_to_fs

    system, path = url_to_fs(str(url))
    return system, path


@contextlib.contextmanager
def _telling(url: Url) -> Iterator[None]:
    try:
        yield
    except SoftlabelError:
        raise
    except ImportError as error:
        raise EnvironmentFault(
            f"{url}: needs a package that is missing ({reason(error)}); {_install(url)}"
        ) from error
    # Every protocol's package has errors of its own.
    except Exception as error:
        raise _told(url, error) from error


def _told(url: Url, error: Exception) -> SoftlabelError:
    cause = error
    if isinstance(error, FileNotFoundError):
        if _is_missing(url, error):
            return no_such_source(url)
        cause = cast(Exception, error.__cause__)
    if "protocol not known" in str(error).lower():
        return ParameterError(
            f"{url}: fsspec knows no protocol {url.protocol!r}; check the address"
        )
    return EnvironmentFault(
        f"{url}: cannot be read ({reason(cause)}); check the address, your access to it and the "
        "network, and run again"
    )


def _install(url: Url) -> str:
    extra = EXTRAS.get(url.protocol)
    return "install it" if extra is None else f"pip install 'softlabel[{extra}]'"
