"""Label shards as WebDataset tars: a group of members a sample, behind one that tells of the shard.

The first member, `__softlabel__`, says what the shard is; loaders pass over it. A tar shows neither
a flipped bit nor a missing end: the SHA-256 of its receipt is its only guard.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.shards.hashing import HashingFile
from softlabel.pipeline.shards.packing import Packing
from softlabel.pipeline.shards.parquet import damaged_shard
from softlabel.pipeline.shards.parquet_columns import shard_header
from softlabel.pipeline.shards.tar_members import (
    END,
    Member,
    member_bytes,
    read_members,
    split_name,
)
from softlabel.pipeline.shards.tar_samples import (
    JSON_SUFFIX,
    OURS,
    StoredSample,
    array_members,
    block_of_samples,
    member_prefix,
    read_document,
    samples_of,
)
from softlabel.schemas.errors import DataError

HEADER = "__softlabel__"
# Of a few samples; in `merged` a whole one of the source is often longer, and skipped.
BUFFER = 2**16
BLOCK_ROWS = 4096
BLOCK_BYTES = 64 * 2**20

Members = Sequence[tuple[str, bytes]]


class TarWriter:
    """Appends blocks to one shard; a sample is written when all its views are there.

    Raises DataError where a key is empty, appears twice, or cannot name members.
    """

    def __init__(self, file: BinaryIO, packing: Packing) -> None:
        self._packing = packing
        self._file = HashingFile(file)
        self._places: dict[str, int] = {}
        self._held: LabelBlock | None = None
        self._held_members: Members = ()
        self.rows = 0
        header = json.dumps(shard_header(packing), sort_keys=True).encode()
        self._file.write(member_bytes(HEADER, header))

    def append(self, block: LabelBlock, members: Sequence[Members] | None = None) -> None:
        """Add the rows of `block`.

        members: for `merged`, the source's own members of each sample that the block has rows of,
        `(".jpg", b"...")` and so on; of a sample that an earlier block began, they are known.
        """
        if (members is None) == (self._packing.layout == "merged"):
            raise ValueError("the source's members belong to the layout merged, and to no other")
        if not len(block):
            return
        self.rows += len(block)
        own: list[Members] = [()] * _samples(block) if members is None else list(members)
        if len(own) != _samples(block):
            raise ValueError(f"members of {len(own)} samples for {_samples(block)}")
        if self._held is not None:
            if self._held.keys[0] == block.keys[0]:
                own[0] = self._held_members
            else:
                own.insert(0, self._held_members)
            block = concat_blocks([self._held, block])
            self._held = None
        if block.views is not None:
            # The next block may have more views of the last sample.
            whole = _last_sample(block)
            self._held, self._held_members = block.slice(whole, len(block) - whole), own.pop()
            block = block.slice(0, whole)
        self._write(block, own)

    def finish(self) -> tuple[int, str]:
        """Write what is left and the end; return the shard's size in bytes and its SHA-256."""
        if self._held is not None:
            self._write(self._held, [self._held_members])
            self._held = None
        self._file.write(END)
        return self._file.size, self._file.digest.hexdigest()

    def abandon(self) -> None:
        """Let go of a shard that will not be published."""

    def _write(self, block: LabelBlock, own: Sequence[Members]) -> None:
        _refuse_view_twice(block)
        samples = samples_of(block, self._packing)
        for (key, labels), members in zip(samples, own, strict=True):
            prefix = self._prefix(key)
            _check_source_members(prefix, members)
            for suffix, data in (*members, *labels):
                try:
                    self._file.write(member_bytes(prefix + suffix, data))
                except ValueError as error:
                    raise DataError(f"{error}; leave this sample out") from error

    def _prefix(self, key: str) -> str:
        try:
            prefix = member_prefix(key, self._packing)
        except ValueError as error:
            raise DataError(
                f"{error}; give every sample a key, or choose the layout packed"
            ) from error
        place = len(self._places)
        if self._places.setdefault(prefix, place) != place:
            raise DataError(
                f"key {key!r} appears twice: samples {self._places[prefix]} and {place} of one "
                "shard; make the keys unique"
            )
        return prefix


class TarReader:
    """Reads row ranges of one label shard; keeps where its samples begin, and no rows.

    sha256: what the file's SHA-256 must be; without it only what shows is found. It is looked at
    once: copies, in other threads and processes, read what was checked, as long as the file is the
    same. Raises DataError where the file is damaged, changes later or belongs to another set.
    """

    def __init__(self, path: Path, packing: Packing, sha256: str | None = None) -> None:
        self._path = path
        self._packing = packing
        self._suffixes = {JSON_SUFFIX, *array_members(packing)}
        with self._naming_damage():
            self._checked = _stamp(path.stat())
            if sha256 is not None and file_sha256(path) != sha256:
                raise ValueError("its SHA-256 is not that of its receipt")
            with self._open() as file:
                self._check_header(file)
                self._offsets, self._starts = self._index(file)

    @property
    def rows(self) -> int:
        """Rows in the shard."""
        return int(self._starts[-1])

    def read(self, first: int, rows: int) -> Iterator[LabelBlock]:
        """Rows `first` to `first + rows`, in blocks of at most 4,096 rows and about 64 MiB."""
        end = first + rows
        while first < end:
            with self._naming_damage():
                start, block = self._read_block(first, end)
            offset = first - start
            taken = min(end - first, len(block) - offset)
            yield block.slice(offset, taken)
            first += taken

    def keys(self) -> pa.ChunkedArray:
        """The keys of all rows, in order."""
        keys: list[pa.Array] = [pa.array([], pa.string())]
        with self._naming_damage(), self._open() as file:
            counts = np.diff(self._starts)
            for first in range(0, len(self._offsets), BLOCK_ROWS):
                part = slice(first, first + BLOCK_ROWS)
                found = [
                    read_document(_sample(file, int(offset), {JSON_SUFFIX}), self._packing)["key"]
                    for offset in self._offsets[part]
                ]
                column = pa.array(found, pa.string())
                keys.append(column.take(pa.array(np.arange(len(found)).repeat(counts[part]))))
        return pa.chunked_array(keys)

    def _read_block(self, first: int, end: int) -> tuple[int, LabelBlock]:
        """The samples from the one of row `first` on, and the number of their first row."""
        begin = number = int(np.searchsorted(self._starts, first, side="right")) - 1
        start = int(self._starts[begin])
        samples: list[StoredSample] = []
        size = 0
        with self._open() as file:
            while number < len(self._offsets) and self._starts[number] < end:
                if samples and (
                    size >= BLOCK_BYTES or self._starts[number + 1] - start > BLOCK_ROWS
                ):
                    break
                samples.append(_sample(file, int(self._offsets[number]), self._suffixes))
                size += sum(map(len, samples[-1].members.values()))
                number += 1
        block = block_of_samples(samples, self._packing)
        if len(block) != self._starts[number] - start:
            raise ValueError("it changed while it was read")
        return start, block

    def _open(self) -> BinaryIO:
        file = open(self._path, "rb", BUFFER)
        if _stamp(os.fstat(file.fileno())) != self._checked:
            file.close()
            raise ValueError("it changed after it was checked")
        return file

    def _check_header(self, file: BinaryIO) -> None:
        member = next(read_members(file), None)
        if member is None or member.name != HEADER:
            raise ValueError("it is no label shard")
        found, wanted = json.loads(_data(file, member)), shard_header(self._packing)
        if not isinstance(found, dict) or found.get("identity_sha256") != wanted["identity_sha256"]:
            raise ValueError("it belongs to another label set")
        if found != wanted:
            raise ValueError("its header is not that of its label set")

    def _index(self, file: BinaryIO) -> tuple[np.ndarray, np.ndarray]:
        """Where each sample's own members begin, and its first row, with the number of all rows."""
        offsets: list[int] = []
        rows = [0]
        current, found = "", set(self._suffixes)
        for member in read_members(file):
            prefix, suffix = split_name(member.name) or ("", "")
            if not suffix.startswith(OURS):
                continue
            if prefix != current:
                if found != self._suffixes:
                    raise ValueError(f"a member of {current!r} is missing")
                current, found = prefix, set()
                offsets.append(member.start)
            found.add(suffix)
            if suffix == JSON_SUFFIX:
                rows.append(self._rows(StoredSample(prefix, {suffix: _data(file, member)})))
        if found != self._suffixes or len(rows) != len(offsets) + 1:
            raise ValueError(f"a member of {current!r} is missing, or there twice")
        return np.asarray(offsets, np.int64), np.cumsum(rows, dtype=np.int64)

    def _rows(self, sample: StoredSample) -> int:
        if self._packing.identity.views == 1:
            return 1
        return len(read_document(sample, self._packing)["view"])

    @contextlib.contextmanager
    def _naming_damage(self) -> Iterator[None]:
        """Turn whatever a damaged file leads to into the error that names it."""
        try:
            yield
        except (OSError, ValueError, pa.ArrowException) as error:
            raise damaged_shard(self._path, str(error), self._packing) from error
        except (TypeError, LookupError, RecursionError) as error:
            reason = f"a sample's JSON says other things than a label shard's does ({error})"
            raise damaged_shard(self._path, reason, self._packing) from error


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """What differs where a file was written to or replaced."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check_source_members(prefix: str, members: Members) -> None:
    for suffix, _ in members:
        if suffix.lower().startswith(OURS):
            raise DataError(
                f"sample {prefix!r} of the source holds soft labels already; take the tars that "
                "had none"
            )
        if split_name(prefix + suffix) != (prefix, suffix):
            raise ValueError(f"{suffix!r} is no suffix of a member")


def _sample(file: BinaryIO, offset: int, wanted: set[str]) -> StoredSample:
    """These members of the sample whose own ones begin at `offset`."""
    found: dict[str, bytes] = {}
    for member in read_members(file, offset):
        prefix, suffix = split_name(member.name) or ("", "")
        if suffix in wanted:
            found[suffix] = _data(file, member)
            if len(found) == len(wanted):
                return StoredSample(prefix, found)
    raise ValueError("it is cut short")


def _data(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.data)
    return file.read(member.size)


def _samples(block: LabelBlock) -> int:
    """How many samples have rows in the block."""
    return len(block) if block.views is None else int(_begins(block).sum())


def _last_sample(block: LabelBlock) -> int:
    """The first row of the block's last sample."""
    return int(np.flatnonzero(_begins(block))[-1])


def _begins(block: LabelBlock) -> np.ndarray:
    """Which rows begin a sample, bool `[N]`."""
    keys = np.asarray(block.keys.to_pylist(), object)
    return np.concatenate([[True], keys[1:] != keys[:-1]])


def _refuse_view_twice(block: LabelBlock) -> None:
    if block.views is None or len(block) < 2:
        return
    twice = ~_begins(block)[1:] & (block.views[1:] <= block.views[:-1])
    if twice.any():
        row = int(twice.argmax()) + 1
        raise DataError(
            f"key {block.keys[row].as_py()!r} has view {block.views[row]} twice or out of order; "
            "make the keys unique"
        )
