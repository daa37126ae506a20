"""Opening a label set and reading its rows, in its own order or for given source rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from softlabel.pipeline.block import LabelBlock, concat_blocks
from softlabel.pipeline.packing import folder_packing
from softlabel.pipeline.shards import ShardReader, open_shard
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import (
    MANIFEST_FILE,
    PLAN_FILE,
    Manifest,
    ManifestShard,
    Segment,
    shard_file,
)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of one source shard, and where in which label shard they lie."""

    first: int
    rows: int
    shard: ManifestShard
    offset: int


class LabelSet:
    """A complete label set. Reads of one LabelSet belong to one thread.

    folder: where it lies. manifest: what it holds. identity: SHA-256 over all that decides a
    label's value. classes: names in the order of the logits.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._packing = folder_packing(folder, manifest)
        self._reader: tuple[str, ShardReader] | None = None
        self._pieces: dict[str, list[_Piece]] = {}
        for shard in manifest.shards:
            offset = 0
            for part in shard.segments:
                piece = _Piece(part.first, part.rows, shard, offset)
                self._pieces.setdefault(part.source, []).append(piece)
                offset += part.rows

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

    def __len__(self) -> int:
        return self.manifest.rows

    def check_temperature(self, T: float) -> None:
        """Raise ParameterError where this set cannot give soft targets at `T`."""
        lowest = min(self.temperatures)
        if self.manifest.identity.codec == "topk" and T < lowest:
            raise ParameterError(
                f"temperature {T:g} is below {lowest:g}, the smallest that the topk label set "
                f"{self.folder} recorded; use {lowest:g} or more, or label again with "
                f"--temperatures {T:g}"
            )

    def batches(self, rows: int) -> Iterator[LabelBlock]:
        """All rows in stored order, `rows` at a time; the last block may be smaller."""
        pending: list[LabelBlock] = []
        waiting = 0
        for shard in self.manifest.shards:
            first = 0
            while first < shard.rows:
                taken = min(rows - waiting, shard.rows - first)
                pending += self._shard(shard).read(first, taken)
                first, waiting = first + taken, waiting + taken
                if waiting == rows:
                    yield concat_blocks(pending)
                    pending, waiting = [], 0
        if pending:
            yield concat_blocks(pending)

    def read_source(self, segment: Segment) -> LabelBlock:
        """The labels of a row range of one source shard, in the source's order.

        Raises DataError when the set holds no labels for a row of it.
        """
        first, end = segment.first, segment.first + segment.rows
        blocks: list[LabelBlock] = []
        for piece in self._pieces.get(segment.source, []):
            if piece.first <= first < piece.first + piece.rows and first < end:
                rows = min(end, piece.first + piece.rows) - first
                reader = self._shard(piece.shard)
                blocks += reader.read(piece.offset + first - piece.first, rows)
                first += rows
        if first < end:
            raise DataError(
                f"{self.folder}: has no labels for {segment.source} row {first}; "
                "run 'softlabel infer' over this source"
            )
        return concat_blocks(blocks)

    def _shard(self, shard: ManifestShard) -> ShardReader:
        if self._reader is None or self._reader[0] != shard.name:
            self._reader = (shard.name, open_shard(self.folder, shard.name, self._packing))
        return self._reader[1]


def open_labelset(folder: str | Path) -> LabelSet:
    """Open a complete label set: reads the manifest and lists the folder, no shard's rows.

    Raises ParameterError when the folder does not exist, DataError when the set is unfinished or
    a shard is missing or has another size than its receipt says.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    sizes = {entry.name: entry.stat().st_size for entry in folder.iterdir() if entry.is_file()}
    for shard in manifest.shards:
        name = shard_file(shard.name, manifest.layout)
        if sizes.get(name) != shard.bytes or f"{shard.name}.json" not in sizes:
            raise DataError(
                f"{folder / name}: is missing, without receipt, or not {shard.bytes} bytes long; "
                f"run 'softlabel verify --repair --labels {folder}', then 'softlabel "
                f"{manifest.making.verb}' again"
            )
    return LabelSet(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a complete set. Raises ParameterError, and DataError where it is damaged."""
    if not folder.is_dir():
        raise ParameterError(f"{folder}: no such label set; make it with 'softlabel infer'")
    path = folder / MANIFEST_FILE
    if not path.exists():
        unfinished = (folder / PLAN_FILE).exists()
        raise DataError(
            f"{folder}: "
            + (
                "the label set is unfinished; run the same 'softlabel infer' again to complete it"
                if unfinished
                else f"is no label set (no {MANIFEST_FILE}); make one with 'softlabel infer'"
            )
        )
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path}: is damaged ({error.errors()[0]['msg']}); delete it and run "
            "'softlabel infer' again: finished shards are kept"
        ) from error
    if manifest.identity.digest() != manifest.identity_sha256:
        raise DataError(
            f"{path}: its identity does not match its own digest; the file was edited; "
            "delete it and run 'softlabel infer' again"
        )
    return manifest
