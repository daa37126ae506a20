"""Opening a label set and reading its rows: in its own order, by source row, or by key."""

from __future__ import annotations

import functools
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from softlabel.pipeline.codecs.codec import Codec
from softlabel.pipeline.labelset import integrity
from softlabel.pipeline.labelset.lookup import Lookup, open_lookup
from softlabel.pipeline.labelset.rejects import read_rejects
from softlabel.pipeline.labelset.selection import LabelSelection, select
from softlabel.pipeline.labelset.stream import LabelStream
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.shards.layouts import ShardReader, open_shard
from softlabel.pipeline.shards.packing import folder_packing
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import (
    MANIFEST_FILE,
    PLAN_FILE,
    REJECTS_FILE,
    Manifest,
    ManifestShard,
    Plan,
    Reject,
    Segment,
    shard_file,
)
from softlabel.schemas.reports.label_sets import Problem

ARROW_ROWS = 4096


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of one source shard, and where in which label shard theirs begin."""

    first: int
    rows: int
    shard: ManifestShard
    offset: int


class LabelSet:
    """A complete label set. Reads of one LabelSet belong to one thread.

    folder: where it lies. manifest: what it holds. identity: SHA-256 over all that decides a
    label's value. classes: names in the order of the logits.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        cache: Path | None = None,
        *,
        check_cache: bool = False,
        checked: dict[str, ShardReader] | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._cache = cache
        self._check_cache = check_cache
        self._packing = folder_packing(folder, manifest)
        self._lookup: Lookup | None = None
        # That of one Parquet shard, which holds rows; those of all tars, which copies of this set
        # share: they hold where rows are, which took reading whole shards.
        self._readers: dict[str, ShardReader] = {} if checked is None else checked
        self._pieces: dict[str, list[_Piece]] = {}
        views = self.views
        for shard in manifest.shards:
            offset = 0
            for part in shard.segments:
                piece = _Piece(part.first, part.rows, shard, offset)
                self._pieces.setdefault(part.source, []).append(piece)
                offset += part.rows * views
        for pieces in self._pieces.values():
            pieces.sort(key=attrgetter("first"))

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides a label's value."""
        return self.manifest.identity_sha256

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.manifest.identity.classes

    @property
    def num_classes(self) -> int:
        """C, the width of a row's logits."""
        return len(self.classes)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures whose log-sums and fidelity are recorded."""
        return self.manifest.identity.temperatures

    @property
    def views(self) -> int:
        """Label rows a sample has."""
        return self.manifest.identity.views

    @property
    def codec(self) -> Codec:
        """How rows are packed; a `factored` set's has the head."""
        return self._packing.codec

    @functools.cached_property
    def rejects(self) -> tuple[Reject, ...]:
        """The samples of the source that are left out, each with the reason.

        Raises DataError where their file is not the one of the manifest.
        """
        return read_rejects(self.folder, self.manifest)

    @property
    def bytes_per_row(self) -> float:
        """Size of the shards over the rows."""
        return sum(shard.bytes for shard in self.manifest.shards) / max(1, len(self))

    def __len__(self) -> int:
        return self.manifest.rows

    def reopen(self) -> LabelSet:
        """A second reader of the same set, for another thread or process."""
        return LabelSet(
            self.folder,
            self.manifest,
            self._cache,
            check_cache=self._check_cache,
            checked=self._readers if self._in_tars else None,
        )

    def check_tars(self) -> None:
        """Read all shards that are tars, which have no other guard than the SHA-256 of the whole.

        Copies of this set, in other processes too, then need not. Raises DataError for one that is
        not what its receipt says.
        """
        if self._in_tars:
            for shard in self.manifest.shards:
                self._shard(shard)

    def check_temperature(self, T: float) -> None:
        """Raise ParameterError where this set cannot give soft targets at `T`."""
        lowest = min(self.temperatures)
        if self.manifest.identity.codec == "topk" and T < lowest:
            raise ParameterError(
                f"temperature {T:g} is below {lowest:g}, the smallest that the topk label set "
                f"{self.folder} recorded; use {lowest:g} or more, or label again with "
                f"--temperatures {T:g}"
            )

    def refuse_inside(self, output: Path) -> None:
        """Raise ParameterError where `output` lies in this folder, which never changes."""
        inside = output.resolve()
        if self.folder.resolve() in (inside, *inside.parents):
            raise ParameterError(
                f"{output}: lies in the label set, which never changes; choose another --output"
            )

    def batches(
        self,
        rows: int,
        *,
        part: tuple[int, int] = (0, 1),
        resume: Sequence[Mapping[str, Any]] = (),
    ) -> LabelStream:
        """All rows in stored order, `rows` at a time; the last block may be smaller.

        part: `(i, n)` for the i-th of n parts, `i = rank * workers + worker`: whole shards, every
        n-th from the i-th on, so n should not be above the number of shards. resume: what
        `state()` said of each part of the run before, all of them, however many parts go on:
        these read exactly the rows that had not been handed out. Raises ParameterError, and
        DataError for states that do not belong here or together.
        """
        return LabelStream(self.folder, self.manifest, self._packing, rows, part, resume)

    def lookup(
        self, keys: Sequence[str] | pa.Array, view: int | npt.NDArray[np.integer] = 0
    ) -> LabelBlock:
        """The labels of `keys` in that order, repeats allowed; keys are str or an Arrow array.

        view: one for all keys, or an array with one a key. The first call builds a memory-mapped
        cache beside the folder, or in `cache` of `softlabel.open`, and later ones use it. Flipped
        bits in a cache beyond 256 MiB are found with `softlabel.open(check="full")` and by
        `softlabel verify` only. Raises DataError for an unknown key, ParameterError for an
        impossible view, EnvironmentFault where the cache cannot be written.
        """
        if self._lookup is None:
            self._lookup = open_lookup(
                self.folder, self.manifest, self._packing, self._cache, full=self._check_cache
            )
        return self._lookup.rows(keys, view)

    def select(
        self, *, keys: Sequence[str] | None = None, classes: Sequence[str] | None = None
    ) -> LabelSelection:
        """Some samples or classes of the set, to read and look up; nothing is written.

        keys: in the order wanted. classes: names in the order wanted; soft targets are softmax over
        these alone. Raises DataError for a key that the set lacks; ParameterError for a class that
        it lacks, for what stands twice, and for classes of a `topk` set, which does not have them.
        """
        return select(self, keys, classes)

    def to_arrow(self) -> pa.Table:
        """All rows as one table with real list columns; holds all of them in memory."""
        return pa.concat_tables([block.to_arrow() for block in self.batches(ARROW_ROWS)])

    def read_source(self, segment: Segment) -> LabelBlock:
        """The labels of a row range of one source shard, in the source's order.

        With views, all of a sample stand together: `views` label rows a source row. Raises
        DataError when the set holds no labels for a row, as for one that is left out, or is not
        aligned with its source.
        """
        if not self.manifest.aligned:
            raise DataError(
                f"{self.folder}: is not aligned with its source, so it cannot be read by source "
                "row; look its labels up by key"
            )
        first, end = segment.first, segment.first + segment.rows
        blocks: list[LabelBlock] = []
        pieces = self._pieces.get(segment.source, [])
        for piece in pieces[max(0, bisect_right(pieces, first, key=attrgetter("first")) - 1) :]:
            if first >= end or not piece.first <= first < piece.first + piece.rows:
                break
            rows = min(end, piece.first + piece.rows) - first
            offset = piece.offset + (first - piece.first) * self.views
            blocks += self._shard(piece.shard).read(offset, rows * self.views)
            first += rows
        if first < end:
            raise DataError(
                f"{self.folder}: has no labels for {segment.source} row {first}; "
                "run 'softlabel infer' over this source"
            )
        return concat_blocks(blocks)

    @property
    def _in_tars(self) -> bool:
        return self._packing.layout in ("sidecar", "merged")

    def _shard(self, shard: ManifestShard) -> ShardReader:
        reader = self._readers.get(shard.name)
        if reader is None:
            reader = open_shard(self.folder, shard.name, self._packing, shard.sha256)
            if not self._in_tars:
                self._readers.clear()
            self._readers[shard.name] = reader
        return reader


def open_labelset(
    folder: str | Path,
    check: Literal["manifest", "full"] = "manifest",
    cache: str | Path | None = None,
) -> LabelSet:
    """Open a complete label set.

    check: `manifest` reads the manifest and lists the folder, no shard's rows; `full` also reads
    every receipt and every byte, of the cache of `lookup` too when that is opened; a damaged cache
    is built again. cache: a folder for that cache, where it cannot lie beside the label set.

    Raises ParameterError when the folder does not exist, DataError when the set is unfinished or
    a shard is missing or has another size than its receipt says, and at the first fault that a
    full check finds.
    """
    if check not in ("manifest", "full"):
        raise ParameterError(f"open: check must be 'manifest' or 'full', got {check!r}")
    folder = Path(folder)
    manifest = read_manifest(folder)
    names, sizes = _listed(folder)
    for shard in manifest.shards:
        name = shard_file(shard.name, manifest.layout)
        if sizes.get(name) != shard.bytes or f"{shard.name}.json" not in names:
            raise DataError(
                f"{folder / name}: is missing, without receipt, or not {shard.bytes} bytes long; "
                f"{_remedy(folder, manifest)}"
            )
    if manifest.rejects is not None and REJECTS_FILE not in names:
        # Says what to do.
        read_rejects(folder, manifest)
    if check == "full":
        _check_everything(folder, manifest)
    place = None if cache is None else Path(cache)
    return LabelSet(folder, manifest, place, check_cache=check == "full")


def _listed(folder: Path) -> tuple[set[str], dict[str, int]]:
    """The names of all files in `folder`, and the sizes of those that are not JSON."""
    names, sizes = set(), {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                names.add(entry.name)
                if not entry.name.endswith(".json"):
                    sizes[entry.name] = entry.stat().st_size
    return names, sizes


def _check_everything(folder: Path, manifest: Manifest) -> None:
    """Raise DataError for the first thing that `softlabel verify` would find without reading rows.

    Own metadata is read last: only whole files say of which set they are.
    """
    for problem in _problems(folder, manifest):
        place = folder
        message = problem.message
        remedy = f"run 'softlabel verify --labels {folder}' for all that is wrong"
        if problem.shard is not None:
            remedy = _remedy(folder, manifest)
            receipt = problem.kind == "receipt"
            name = f"{problem.shard}.json"
            place /= name if receipt else shard_file(problem.shard, manifest.layout)
            message = message.removeprefix(f"{problem.shard}: ")
        raise DataError(f"{place}: {message}; {remedy}")


def _problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    yield from integrity.check_folder(folder, manifest)
    yield from integrity.check_head(folder, manifest)
    yield from integrity.check_rejects(folder, manifest)
    packing = folder_packing(folder, manifest)
    for shard in manifest.shards:
        yield from integrity.check_receipt(folder, manifest, shard)
        yield from integrity.check_bytes(folder, manifest, shard)
        yield from integrity.check_schema(folder, packing, shard)


def _remedy(folder: Path, manifest: Manifest) -> str:
    return (
        f"run 'softlabel verify --repair --labels {folder}', then 'softlabel "
        f"{manifest.making.verb}' again"
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a complete set. Raises ParameterError, and DataError where it is damaged."""
    if folder.exists() and not folder.is_dir():
        raise ParameterError(f"{folder}: is a file; a label set is a folder, pass that")
    if not folder.is_dir():
        raise ParameterError(f"{folder}: no such label set; make it with 'softlabel infer'")
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise DataError(f"{folder}: {_why_no_manifest(folder)}")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: {_why_unreadable(folder, error)}") from error
    if manifest.identity.digest() != manifest.identity_sha256:
        raise DataError(
            f"{path}: its identity does not match its own digest; the file was edited; "
            f"delete it and run {_command(folder)} again"
        )
    return manifest


def _why_unreadable(folder: Path, error: ValidationError) -> str:
    """What a newer softlabel wrote is not damaged, and must not be deleted."""
    first = error.errors()[0]
    if first["type"] in ("literal_error", "extra_forbidden"):
        name = ".".join(str(part) for part in first["loc"])
        return (
            f"says {name} = {first['input']!r}, which this softlabel does not know; read it with "
            "the release that wrote it"
        )
    return (
        f"is damaged ({first['msg']}); delete it and run {_command(folder)} again: finished shards "
        "are kept"
    )


def _command(folder: Path) -> str:
    """The command that made a set without a manifest to ask."""
    try:
        plan = Plan.model_validate_json((folder / PLAN_FILE).read_bytes())
    except (OSError, ValidationError):
        return "the command that made the set"
    return f"'{plan.making.command}'"


def _why_no_manifest(folder: Path) -> str:
    try:
        plan = Plan.model_validate_json((folder / PLAN_FILE).read_bytes())
    except OSError:
        return f"is no label set (no {MANIFEST_FILE}); make one with 'softlabel infer'"
    except ValidationError as error:
        return f"{PLAN_FILE} is damaged ({error.errors()[0]['msg']}); remove the folder"
    return f"the label set is unfinished; run the same '{plan.making.command}' again to complete it"
