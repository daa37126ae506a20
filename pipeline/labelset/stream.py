"""Streaming the rows of a label set: prefetched, cut into parts, and resumable by arithmetic.

A shard is read by one part alone and from its first row on, so what a run has left is a range at
the end of each shard. Ranges are dealt to the parts in turn: part i of n has every n-th, from the
i-th on. What is left of a run that was stopped is therefore a function of how many rows each of
its parts had handed out, and a state needs to hold no more than these numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from softlabel.pipeline.prefetch import prefetch
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.shards.layouts import open_shard, shard_path
from softlabel.pipeline.shards.packing import Packing
from softlabel.pipeline.shards.parquet import damaged_shard
from softlabel.schemas.errors import DataError, IdentityError, ParameterError
from softlabel.schemas.labelset import Manifest, ManifestShard
from softlabel.schemas.model import Record

# Row groups of up to 64 MiB wait: one here, one in the queue, one in the reader's hands.
GROUPS_AHEAD = 1

Part = tuple[int, int]


Rows = Annotated[int, Field(ge=0)]


class StreamState(Record):
    """Where one part of a streaming run stood.

    shards: digest of the set's shards and their rows, for an identity may be cut in many ways.
    earlier: rows that each part of the runs before had handed out, oldest run first. done: rows
    that this part had handed out.
    """

    identity: str
    shards: str
    part: tuple[int, int]
    earlier: tuple[Annotated[tuple[Rows, ...], Field(min_length=1)], ...] = ()
    done: Rows


@dataclass(frozen=True, slots=True)
class Range:
    """Rows `first` to the end of one shard."""

    shard: ManifestShard
    first: int

    @property
    def rows(self) -> int:
        """Rows in the range."""
        return self.shard.rows - self.first


class LabelStream:
    """Blocks of exactly `rows` rows of one part of a label set, the last one maybe smaller.

    An iterator for one thread. A thread of its own reads ahead; it ends with the rows, with
    `close`, or when the stream is let go.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        packing: Packing,
        rows: int,
        part: Part = (0, 1),
        resume: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        if rows < 1:
            raise ParameterError(f"batches: rows must be 1 or more, got {rows}")
        if not 0 <= part[0] < part[1]:
            raise ParameterError(f"batches: part must be (i, n) with 0 <= i < n, got {part}")
        self._identity = manifest.identity_sha256
        self._shards = _shards_digest(manifest)
        self._part = (int(part[0]), int(part[1]))
        self._earlier = _earlier(resume, self._identity, self._shards, folder)
        self._rows = rows
        self._done = 0
        ranges = deal(_left(manifest, self._earlier), *self._part)
        self._pieces = prefetch(read_ranges(folder, packing, ranges), GROUPS_AHEAD, "labels")
        self._piece: LabelBlock | None = None
        self._starts: npt.NDArray[np.int64] | None = None
        self._used = 0
        self._size = 0

    def __iter__(self) -> LabelStream:
        return self

    def __next__(self) -> LabelBlock:
        used, rows = self._used, self._rows
        if self._size - used < rows:
            return self._across()
        self._used = used + rows
        self._done += rows
        assert self._piece is not None
        return self._piece.slice(used, rows, self._starts)

    def state(self) -> dict[str, Any]:
        """Where this part stands after the blocks that it handed out, as plain JSON values.

        Hand the states of all parts to `batches(resume=...)` to go on, with any number of parts.
        """
        state = StreamState(
            identity=self._identity,
            shards=self._shards,
            part=self._part,
            earlier=self._earlier,
            done=self._done,
        )
        return state.model_dump(mode="json")

    def close(self) -> None:
        """Stop reading; the stream has no further blocks, and its state stays."""
        self._pieces.close()
        self._piece, self._size, self._used = None, 0, 0

    def _across(self) -> LabelBlock:
        """A block whose rows lie in several pieces, or the last one."""
        parts: list[LabelBlock] = []
        wanted = self._rows
        while wanted:
            if self._used == self._size and not self._advance():
                break
            assert self._piece is not None
            taken = min(wanted, self._size - self._used)
            parts.append(self._piece.slice(self._used, taken, self._starts))
            self._used += taken
            wanted -= taken
        if not parts:
            raise StopIteration
        self._done += self._rows - wanted
        return concat_blocks(parts)

    def _advance(self) -> bool:
        # The piece must go before the next one comes, or one more is held.
        self._piece, self._size, self._used = None, 0, 0
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._piece, self._size = piece, len(piece)
        self._starts = None if piece.lengths is None else piece.starts()
        return True


def deal(ranges: Sequence[Range], index: int, parts: int) -> list[Range]:
    """Part `index` of `parts`: every `parts`-th range from the `index`-th on."""
    return list(ranges[index::parts])


def read_ranges(folder: Path, packing: Packing, ranges: Sequence[Range]) -> Iterator[LabelBlock]:
    """The rows of `ranges` one after the other, in blocks of the readers' own size.

    Raises DataError where a shard is damaged or is none of this set's.
    """
    for item in ranges:
        if item.rows:
            reader = open_shard(folder, item.shard.name, packing, item.shard.sha256)
            if reader.rows != item.shard.rows:
                raise damaged_shard(
                    shard_path(folder, item.shard.name, packing),
                    f"has {reader.rows} rows, not {item.shard.rows}",
                    packing,
                )
            yield from reader.read(item.first, item.rows)


def _left(manifest: Manifest, earlier: Sequence[Sequence[int]]) -> list[Range]:
    """What runs whose parts had handed out `earlier` rows left over, in the order of the shards.

    Raises DataError where a part is said to have handed out more rows than it had.
    """
    ranges = [Range(shard, 0) for shard in manifest.shards]
    for run in earlier:
        parts = [_after(deal(ranges, index, len(run)), done) for index, done in enumerate(run)]
        ranges = [parts[place % len(run)][place // len(run)] for place in range(len(ranges))]
        ranges = [item for item in ranges if item.rows]
    return ranges


def _after(ranges: Sequence[Range], done: int) -> list[Range]:
    result = []
    for item in ranges:
        taken = min(done, item.rows)
        done -= taken
        result.append(Range(item.shard, item.first + taken))
    if done:
        raise DataError(
            f"a state says that {done} rows more were handed out than its part had; "
            "resume from states that were saved from this label set"
        )
    return result


def _earlier(
    resume: Sequence[Mapping[str, Any]], identity: str, shards: str, folder: Path
) -> tuple[tuple[int, ...], ...]:
    """The rows handed out by each part of every run before, from the states of the last."""
    states = [_parsed(state) for state in resume]
    if not states:
        return ()
    first = states[0]
    for state in states:
        if (state.identity, state.shards) != (identity, shards):
            raise IdentityError(
                f"{folder}: a state to resume from is of other labels, or of these in other "
                "shards; open the label set that it was saved from"
            )
    parts = first.part[1]
    found = sorted(state.part[0] for state in states)
    alike = all((state.part[1], state.earlier) == (parts, first.earlier) for state in states)
    if not alike or found != list(range(parts)):
        raise DataError(
            f"{folder}: resuming needs one state of each of the parts of one run; got "
            f"{', '.join(f'part {state.part[0]} of {state.part[1]}' for state in states)}; pass "
            "the states of all parts, each once"
        )
    done = {state.part[0]: state.done for state in states}
    return (*first.earlier, tuple(done[index] for index in range(parts)))


def _parsed(state: Mapping[str, Any]) -> StreamState:
    try:
        return StreamState.model_validate(state)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise DataError(
            f"a state to resume from is damaged ({where}: {problem['msg']}); pass what state() gave"
        ) from error


def _shards_digest(manifest: Manifest) -> str:
    lines = [[shard.name, shard.rows] for shard in manifest.shards]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16]
