"""Files that know the SHA-256 of what was written to them, or of all that stands in them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, BinaryIO

# What is read at a time where nobody else wants the bytes.
PIECE = 2**20


class HashingFile:
    """A binary file that knows the SHA-256 and the number of the bytes written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Write bytes; return how many."""
        view = memoryview(data)
        self.digest.update(view)
        self._file.write(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Leave the file open: whoever opened it syncs and publishes it."""

    def readable(self) -> bool:
        """False."""
        return False

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """False."""
        return False


class HashingReader(io.BufferedReader):
    """A file for reading that knows the SHA-256 of all its bytes, of what is passed over too.

    Bytes are hashed once, when they are first read; a reader that goes forward reads none twice.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._digest = hashlib.sha256()
        self._hashed = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        start = self.tell()
        while self._hashed < start:
            self.seek(self._hashed)
            if not self._read_on(min(PIECE, start - self._hashed)):
                break
        self.seek(start)
        return self._read_on(size)

    def finish(self) -> tuple[int, str]:
        """Read what is left; return the file's size in bytes and its SHA-256."""
        self.seek(self._hashed)
        while self._read_on(PIECE):
            pass
        return self._hashed, self._digest.hexdigest()

    def _read_on(self, size: int | None) -> bytes:
        start = self.tell()
        data = super().read(size)
        new = memoryview(data)[self._hashed - start :]
        self._digest.update(new)
        self._hashed += len(new)
        return data
