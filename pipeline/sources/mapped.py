"""Pictures that stay in mapped files until they are wanted, chosen by number alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softlabel.schemas.sample import Array

# The kernel reads as much around a page that is not there.
READ_AROUND = 128 * 2**10

Mapped = np.memmap[tuple[int, ...], np.dtype[np.generic]]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MappedRows:
    """N pictures: number i is row `rows[i]` of `files[of[i]]`.

    files: in C order, `[M, height, width, channels]`, each once.
    """

    files: tuple[Mapped, ...]
    of: Numbers
    rows: Numbers

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, numbers: Numbers) -> MappedRows:
        """The pictures of these numbers, in this order; none is read."""
        return MappedRows(self.files, self.of[numbers], self.rows[numbers])

    def read(self) -> Array:
        """The pictures, `[N, height, width, channels]`."""
        first = np.asarray(self.files[0])
        if len(self.files) == 1:
            return first[self.rows]
        pictures = np.empty((len(self), *first.shape[1:]), first.dtype)
        for number in np.unique(self.of):
            here = np.flatnonzero(self.of == number)
            pictures[here] = self.files[number][self.rows[here]]
        return pictures


def mapped_rows(file: Mapped, first: int, rows: int) -> MappedRows:
    """Rows `first` to `first + rows` of one file."""
    numbers = np.arange(first, first + rows)
    return MappedRows((file,), np.zeros_like(numbers), numbers)


def joined_mapped(parts: Sequence[MappedRows]) -> MappedRows:
    """The pictures of `parts`, one after the other."""
    files = {id(file): file for part in parts for file in part.files}
    numbers = {name: number for number, name in enumerate(files)}
    of = [np.array([numbers[id(file)] for file in part.files])[part.of] for part in parts]
    rows = np.concatenate([part.rows for part in parts])
    return MappedRows(tuple(files.values()), np.concatenate(of), rows)


def read_ahead(pictures: MappedRows) -> None:
    """Have the kernel read these, ascending ones of one file, in its order into its cache.

    They are looked at in any order, which on a slow disk would be a seek for each.
    """
    (file,), rows = pictures.files, pictures.rows
    if not len(rows) or not hasattr(os, "posix_fadvise"):
        return
    each = file[0].nbytes
    apart = np.flatnonzero(np.diff(rows) * each > READ_AROUND)
    firsts, lasts = rows[[0, *(apart + 1)]], rows[[*apart, -1]]
    with open(str(file.filename), "rb") as opened:
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            begin, size = file.offset + first * each, (last + 1 - first) * each
            os.posix_fadvise(opened.fileno(), begin, size, os.POSIX_FADV_WILLNEED)
