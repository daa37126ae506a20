"""Writing the shards of a converted set, one after the other, from the rows of its parent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from softlabel.pipeline.deriving.conversion import Converter
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.labelset.portions import Portion, RowReader
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.layouts import writing_shard
from softlabel.pipeline.shards.packing import Packing
from softlabel.pipeline.shards.tally import Tally, measured_rows
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import (
    Fidelity,
    Receipt,
    Reject,
    ShardPlan,
    SourceDigest,
    sha256_of,
)


class Rewriting:
    """Copies or repacks the rows of a label set into the shards of another.

    packing: of the new set. rows: numbers of the rows that are kept, ascending; None for all.
    Raises DataError where a receipt of the set is damaged.
    """

    def __init__(
        self,
        labels: LabelSet,
        packing: Packing,
        converter: Converter,
        portions: Sequence[Portion],
        rows: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._reader = RowReader(labels)
        self._packing = packing
        self._converter = converter
        self._portions = {portion.shard.name: portion for portion in portions}
        self._chosen = rows
        receipts = read_receipts(labels)
        self._digests = source_digests(receipts)
        groups = _by_shard(receipts, portions)
        self._fidelity = None if self.repacks else _carried(receipts, groups)
        # A list of keys asks for these and says nothing of others.
        self._rejects = {} if rows is not None else rejects_of(groups)

    @property
    def repacks(self) -> bool:
        """Whether rows are packed anew, not copied."""
        return self._converter.codec is not None

    def write_shard(
        self, shard: ShardPlan, folder: Path, on_rows: Callable[[int], None]
    ) -> Receipt:
        """Write one shard. Raises DataError, naming a key, where the new codec cannot hold it."""
        identity = self._packing.identity
        rows = measured_rows(len(self._portions), identity.grid)
        tally = Tally(identity.temperatures, rows)
        with writing_shard(folder, shard.name, self._packing) as writer:
            for block in self._rows(self._portions[shard.name]):
                self._write(block, writer.append, tally)
                on_rows(len(block))
            file = writer.finish()
        return tally.receipt(
            shard,
            self._packing.identity_sha256,
            file,
            digests_of(shard, self._digests),
            None if self._fidelity is None else self._fidelity[shard.name],
            self._rejects.get(shard.name, ()),
        )

    def _rows(self, portion: Portion) -> Iterator[LabelBlock]:
        first = portion.first
        for block in self._reader.read(portion.first, portion.stop):
            stop = first + len(block)
            if self._chosen is None:
                yield block
            else:
                begin, end = np.searchsorted(self._chosen, [first, stop])
                if begin < end:
                    yield block.take(self._chosen[begin:end] - first)
            first = stop

    def _write(self, block: LabelBlock, append: Callable[[LabelBlock], None], tally: Tally) -> None:
        converted = self._converter.convert(block)
        if self.repacks:
            tally.add(converted, partial(self._converter.reference, block))
        else:
            tally.count(converted)
        append(converted)


def read_receipts(labels: LabelSet) -> list[Receipt]:
    """The receipts of a set's shards. Raises DataError where one is not the manifest's."""
    receipts = []
    for shard in labels.manifest.shards:
        path = labels.folder / f"{shard.name}.json"
        try:
            data = path.read_bytes()
            receipt = Receipt.model_validate_json(data)
        except (FileNotFoundError, IsADirectoryError, ValidationError):
            receipt = None
        if receipt is None or sha256_of(data) != shard.receipt_sha256:
            raise DataError(
                f"{path}: is missing or not the receipt in the manifest; run 'softlabel verify "
                f"--repair --labels {labels.folder}', then '{labels.manifest.making.command}'"
            )
        receipts.append(receipt)
    return receipts


def source_digests(receipts: Sequence[Receipt]) -> dict[str, SourceDigest]:
    """What each source shard was when it was labelled, by its name."""
    return {digest.name: digest for receipt in receipts for digest in receipt.source}


def digests_of(shard: ShardPlan, known: Mapping[str, SourceDigest]) -> tuple[SourceDigest, ...]:
    """Those of the source shards that `shard` labels, as far as they are known."""
    names = dict.fromkeys(segment.source for segment in shard.segments)
    return tuple(known[name] for name in names if name in known)


def total_fidelity(receipts: Sequence[Receipt]) -> Fidelity:
    """What was measured over all shards together."""
    sums = np.sum([receipt.fidelity.kl_sum for receipt in receipts], axis=0)
    rows = sum(receipt.fidelity.rows for receipt in receipts)
    return Fidelity(rows=rows, kl_sum=tuple(sums.tolist()))


def rejects_of(groups: Mapping[str, Sequence[Receipt]]) -> dict[str, list[Reject]]:
    """The samples that each new shard leaves out: those of the old ones that belong to it."""
    return {
        name: [reject for receipt in group for reject in receipt.rejects or ()]
        for name, group in groups.items()
    }


def _carried(
    receipts: Sequence[Receipt], groups: Mapping[str, Sequence[Receipt]]
) -> dict[str, Fidelity]:
    """What was measured over the old shards that belong to each new one."""
    nothing = (0.0,) * len(receipts[0].fidelity.kl_sum)
    return {
        name: total_fidelity(group) if group else Fidelity(rows=0, kl_sum=nothing)
        for name, group in groups.items()
    }


def _by_shard(receipts: Sequence[Receipt], portions: Sequence[Portion]) -> dict[str, list[Receipt]]:
    """The receipt of each old shard, with the new shard that its first row falls into."""
    parts: list[list[Receipt]] = [[] for _ in portions]
    stops = [portion.stop for portion in portions]
    start = 0
    for receipt in receipts:
        # Shards without rows may stand at the set's end, where no row follows them.
        part = min(int(np.searchsorted(stops, start, side="right")), len(parts) - 1)
        parts[part].append(receipt)
        start += receipt.rows
    names = [portion.shard.name for portion in portions]
    return dict(zip(names, parts, strict=True))
