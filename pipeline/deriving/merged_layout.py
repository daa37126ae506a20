"""The layout `merged`: the source's own tars once more, each sample with its stored labels."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.deriving.conversion import Converter
from softlabel.pipeline.deriving.rewriting import read_receipts, total_fidelity
from softlabel.pipeline.labelset.folder import remove_shards
from softlabel.pipeline.labelset.keys import KeySet, miscounted_keys
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.labelset.making import writing_folder
from softlabel.pipeline.labelset.portions import RowReader, shard_name
from softlabel.pipeline.labelset.standing import read_plan, read_receipt
from softlabel.pipeline.publish import publishing
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.hashing import HashingReader
from softlabel.pipeline.shards.layouts import shard_path
from softlabel.pipeline.shards.packing import Packing
from softlabel.pipeline.shards.tally import Tally, measured_rows
from softlabel.pipeline.shards.tar import TarWriter
from softlabel.pipeline.shards.tar_members import Group, tar_groups
from softlabel.schemas.errors import DataError, EnvironmentFault, ParameterError
from softlabel.schemas.labelset import Plan, Receipt, Reject, ShardPlan, SourceDigest

# What is held of the source at a time: samples, or bytes of their members.
MOST_SAMPLES = 256
MOST_BYTES = 16 * 2**20


class TarSource:
    """The source's tars, by a folder or a pattern, in the order of their names.

    digests: what each tar was when `shards` read it. rejects: samples of each that the label set
    leaves out. Raises ParameterError where there are none.
    """

    def __init__(self, where: Path) -> None:
        pattern = f"{glob.escape(str(where))}/*.tar" if where.is_dir() else str(where)
        self.paths = [Path(name) for name in sorted(glob.glob(pattern))]
        if not self.paths:
            raise ParameterError(f"source: {where} names no .tar file; give their folder")
        for path in self.paths:
            if path.is_dir():
                raise ParameterError(
                    f"source: {path} is a folder and no tar; move it away, or give a pattern that "
                    "names the tars alone"
                )
        self.digests: list[SourceDigest] = []
        self.rejects: list[list[Reject]] = []

    def shards(self, labels: LabelSet) -> tuple[ShardPlan, ...]:
        """One label shard a tar; reads all tars once.

        Raises DataError, naming the key, where a sample has no label or a label no sample, or a
        key stands in two tars, EnvironmentFault where a tar cannot be read.
        """
        columns = []
        left_out = {reject.key: reject for reject in labels.rejects}
        for path in self.paths:
            try:
                with HashingReader(path) as file:
                    keys = [key for key, _ in tar_groups(path, file)]
                    self.digests.append(_digest(path, file))
            except OSError as error:
                raise EnvironmentFault(
                    f"{path}: cannot be read ({error.strerror or error}); mend this and run the "
                    "same command again"
                ) from error
            self.rejects.append([left_out.pop(key) for key in keys if key in left_out])
            gone = {reject.key for reject in self.rejects[-1]}
            columns.append(pa.array([key for key in keys if key not in gone], pa.string()))
        # Somebody took them out of the tars already.
        self.rejects[0] += left_out.values()
        _check_same_keys(self.paths, columns, labels)
        return tuple(
            ShardPlan(name=shard_name(index), rows=len(column) * labels.views, segments=())
            for index, column in enumerate(columns)
        )


class MergedWriting:
    """Writes the tars of the source with the labels of a set, looked up by key.

    packing: of the new set. Raises DataError where a receipt of the set is damaged.
    """

    def __init__(
        self, labels: LabelSet, packing: Packing, converter: Converter, source: TarSource
    ) -> None:
        self._labels = labels
        self._packing = packing
        self._converter = converter
        self._paths = {shard_name(index): path for index, path in enumerate(source.paths)}
        self._digests = {shard_name(index): tar for index, tar in enumerate(source.digests)}
        self._rejects = {shard_name(index): those for index, those in enumerate(source.rejects)}
        self._known = None if self.repacks else total_fidelity(read_receipts(labels))

    @property
    def repacks(self) -> bool:
        """Whether rows are packed anew, not copied."""
        return self._converter.codec is not None

    def forget_changed(self, output: Path, plan: Plan) -> None:
        """Delete those finished shards of `plan` in `output` whose tar is no longer the same.

        Neither plan nor identity tells of the tars' other members: only receipts do.
        """
        with writing_folder(output) as (folder, _):
            if read_plan(folder) != plan:
                return
            found = {shard.name: read_receipt(folder, shard.name) for shard in plan.shards}
            changed = [
                name
                for name, item in found.items()
                if item and item[0].source != self._source(name)
            ]
            if changed:
                remove_shards(folder, changed)

    def write_shard(
        self, shard: ShardPlan, folder: Path, on_rows: Callable[[int], None]
    ) -> Receipt:
        """Write one shard. Raises DataError where the tar changed, or a key cannot be a name."""
        path = self._paths[shard.name]
        identity = self._packing.identity
        rows = measured_rows(len(self._paths), identity.grid) if self.repacks else 0
        tally = Tally(identity.temperatures, rows)
        with (
            HashingReader(path) as source,
            publishing(shard_path(folder, shard.name, self._packing)) as file,
        ):
            writer = TarWriter(file, self._packing)
            for groups in _batches(self._labelled(shard.name, tar_groups(path, source))):
                block = self._labels_of([key for key, _ in groups])
                converted = self._converter.convert(block)
                tally.add(converted, partial(self._converter.reference, block))
                writer.append(converted, [members for _, members in groups])
                on_rows(len(block))
            written = writer.finish()
            if (_digest(path, source),) != self._source(shard.name):
                raise DataError(f"{path}: changed while it was read; run the command again")
        known = self._known
        if known is not None and shard.name != shard_name(0):
            known = known.model_copy(update={"rows": 0, "kl_sum": (0.0,) * len(known.kl_sum)})
        source_of = self._source(shard.name)
        return tally.receipt(
            shard,
            self._packing.identity_sha256,
            written,
            source_of,
            known,
            self._rejects[shard.name],
        )

    def _labelled(self, name: str, groups: Iterator[Group]) -> Iterator[Group]:
        """Without the samples that the set leaves out."""
        gone = {reject.key for reject in self._rejects[name]}
        return (group for group in groups if group[0] not in gone)

    def _source(self, name: str) -> tuple[SourceDigest, ...]:
        return (self._digests[name],)

    def _labels_of(self, keys: Sequence[str]) -> LabelBlock:
        views = self._labels.views
        every = pa.array(keys, pa.string()).take(pa.array(np.arange(len(keys)).repeat(views)))
        return self._labels.lookup(every, np.tile(np.arange(views), len(keys)))


def _digest(path: Path, file: HashingReader) -> SourceDigest:
    size, sha256 = file.finish()
    return SourceDigest(name=path.name, bytes=size, sha256=sha256)


def _batches(groups: Iterator[Group]) -> Iterator[list[Group]]:
    batch: list[Group] = []
    size = 0
    for group in groups:
        batch.append(group)
        size += sum(len(data) for _, data in group[1])
        if len(batch) == MOST_SAMPLES or size >= MOST_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check_same_keys(
    paths: Sequence[Path], columns: Sequence[pa.StringArray], labels: LabelSet
) -> None:
    twice = miscounted_keys(lambda: columns)
    if twice:
        key = pa.scalar(twice[0])
        places = [str(p) for p, c in zip(paths, columns, strict=True) if pc.is_in(key, c).as_py()]
        raise DataError(f"key {twice[0]!r} stands in {' and '.join(places)}; make keys unique")
    reader = RowReader(labels)

    def labelled() -> Iterator[pa.StringArray]:
        for shard in labels.manifest.shards:
            yield reader.shard(shard).keys().combine_chunks()

    found = KeySet(columns)
    for keys in labelled():
        lost = found.others(keys)
        if len(lost):
            raise DataError(
                f"{labels.folder}: key {lost[0].as_py()!r} has a label and no sample in the tars; "
                "give all tars of its source"
            )
    known = KeySet(labelled())
    for path, column in zip(paths, columns, strict=True):
        lost = known.others(column)
        if len(lost):
            raise DataError(
                f"{path}: sample {lost[0].as_py()!r} has no label in {labels.folder}; label these "
                "tars, or give those that were labelled"
            )
