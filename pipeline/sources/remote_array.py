"""An array in a file behind a URL, of which rows are read as they are asked for."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np

from softlabel.pipeline.sources.remote import remote_file
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Url
from softlabel.schemas.sample import Array


class RemoteArray:
    """Values `[N, ...]` of a file, in C order from byte `offset` on; a slice of it is an array."""

    def __init__(
        self, url: Url, offset: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._url = url
        self._offset = offset
        self._file: BinaryIO | None = None

    def __getitem__(self, rows: slice) -> Array:
        """These rows. Raises DataError where the file ends before, EnvironmentFault."""
        first, end, _ = rows.indices(self.shape[0])
        each = math.prod(self.shape[1:]) * self.dtype.itemsize
        if self._file is None:
            self._file = remote_file(self._url)
        self._file.seek(self._offset + first * each)
        data = self._file.read((end - first) * each)
        if len(data) != (end - first) * each:
            raise DataError(f"{self._url}: the file changed since it was opened; start again")
        return np.frombuffer(data, self.dtype).reshape(end - first, *self.shape[1:])
