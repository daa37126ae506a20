"""A subset of a label set: the keys or the classes that a file lists, and where their rows lie."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.labelset.portions import Portion, RowReader, row_bounds, shard_name
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import ShardPlan


class KeyList:
    """The keys of a subset, as a file lists them: a key a line, in UTF-8, in any order.

    Raises ParameterError where the file cannot be read, DataError, with the line and the key,
    where a line is blank or says again what another said.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = _lines(path, "keys")
        self._numbers = {key: number for number, key in enumerate(self._lines)}
        self._seen = np.zeros(len(self._lines), bool)

    def mask(self, keys: pa.Array) -> npt.NDArray[np.bool_]:
        """Which of `keys` are in the list, bool `[N]`; they count as found."""
        found = np.asarray([self._numbers.get(key, -1) for key in keys.to_pylist()], np.int64)
        self._seen[found[found >= 0]] = True
        return found >= 0

    def check_all_found(self, labels: LabelSet) -> None:
        """Raise DataError, naming line and key, where a key of the list was not found."""
        if not self._seen.all():
            row = int((~self._seen).argmax())
            raise DataError(
                f"{self._path}: line {row + 1}: key {self._lines[row]!r} is not in "
                f"{labels.folder}; take it out of the file"
            )


@dataclass(frozen=True, slots=True)
class Subset:
    """What a list of keys keeps of a set.

    rows: numbers of the kept rows, int64, ascending. keys_sha256: of their keys in the set's
    order, a key a line.
    """

    portions: tuple[Portion, ...]
    rows: npt.NDArray[np.int64]
    keys_sha256: str


def key_subset(labels: LabelSet, keys: KeyList, shard_rows: int | None) -> Subset:
    """The rows of the listed keys, in the set's order.

    In the set's own shards, less those that keep nothing, or in shards of `shard_rows` samples.
    Raises DataError where the set lacks a key.
    """
    reader = RowReader(labels)
    digest = hashlib.sha256()
    parts: list[npt.NDArray[np.int64]] = []
    start = 0
    for shard in labels.manifest.shards:
        stored = reader.shard(shard).keys().combine_chunks()
        kept = np.flatnonzero(keys.mask(stored))
        for key in stored.take(pa.array(kept[:: labels.views])).to_pylist():
            digest.update(f"{key}\n".encode())
        parts.append(start + kept)
        start += shard.rows
    keys.check_all_found(labels)
    rows = np.concatenate(parts)
    bounds = np.cumsum([0, *(len(part) for part in parts if len(part))]).tolist()
    if shard_rows is not None:
        bounds = row_bounds(labels.manifest, len(rows), shard_rows)
    # Each range begins at its first kept row; the outer ones reach to the ends of the set.
    edges = [0, *(int(rows[bound]) for bound in bounds[1:-1]), labels.manifest.rows]
    counts = np.diff(bounds).tolist()
    portions = tuple(
        Portion(ShardPlan(name=shard_name(index), rows=count, segments=()), *edges[index:][:2])
        for index, count in enumerate(counts)
    )
    return Subset(portions, rows, digest.hexdigest())


def read_class_list(path: Path, labels: LabelSet) -> tuple[int, ...]:
    """The ids of the classes that a file names, a name a line, in the file's order.

    Raises ParameterError where the file cannot be read, DataError, with the line and the name,
    where a line is blank, says again what another said, or names no class of the set.
    """
    numbers = {name: number for number, name in enumerate(labels.classes)}
    names = _lines(path, "classes")
    for line, name in enumerate(names, 1):
        if name not in numbers:
            raise DataError(
                f"{path}: line {line}: {name!r} is no class of {labels.folder}; see its classes "
                f"with 'softlabel inspect --labels {labels.folder}'"
            )
    if len(names) < 2:
        raise DataError(f"{path}: names one class; soft labels need two or more")
    return tuple(numbers[name] for name in names)


def _lines(path: Path, what: str) -> list[str]:
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: the {what} cannot be read: {error}") from error
    lines = text.removesuffix("\n").split("\n")
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(f"{path}: line {number} is blank ({line!r}); write one a line")
        if line in first:
            raise DataError(
                f"{path}: line {number}: {line!r} stands in line {first[line]} already; "
                "write each once"
            )
        first[line] = number
    return lines
