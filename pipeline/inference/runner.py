"""The inference loop: read, run the teacher, encode and write, at the same time.

Reading, the teacher and encoding each have a thread, writing has the caller's; the queues between
them are bounded, so a slow disk slows the run and memory stays constant. A step that fails ends
those before it first, so that nothing works on when the error is told.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.codecs.codec import (
    CHUNK_VALUES,
    ShiftedRows,
    encode_rows,
    features_to_half,
    shift_rows,
)
from softlabel.pipeline.inference.plan import batches
from softlabel.pipeline.inference.usable import Slots, read_slots
from softlabel.pipeline.labelset.keys import duplicate_key, miscounted_keys, place
from softlabel.pipeline.prefetch import prefetch
from softlabel.pipeline.publish import publish_bytes
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.layouts import writing_shard
from softlabel.pipeline.shards.packing import Packing, folder_packing
from softlabel.pipeline.shards.tally import Reference, Tally, measured_rows
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.packed import PackedOutput, Packer, PackTeacher
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Plan, Receipt, Reject, ShardPlan, canonical_json
from softlabel.schemas.params.shared import OnBadSample
from softlabel.schemas.sample import Logits, RunTeacher, TeacherOutput

QUEUE_BATCHES = 4
# A few rows cost what NumPy's calls cost: so many batches at most are packed in one go.
GATHERED_BATCHES = 8


@dataclass
class BusyTime:
    """Seconds that each step of the pipeline worked; the largest one bounded the run."""

    decode: float = 0.0
    teacher: float = 0.0
    encode: float = 0.0
    write: float = 0.0

    def bound(self) -> str:
        """The step that worked longest."""
        return max(vars(self), key=lambda name: float(getattr(self, name)))


@dataclass(frozen=True, slots=True)
class _Said:
    """What the teacher said of samples: their keys, hard labels and views, and its output.

    labels: of all positions. lengths: of sequences, else None.
    """

    keys: pa.StringArray
    labels: pa.Int32Array
    views: npt.NDArray[np.uint16] | None
    lengths: npt.NDArray[np.uint32] | None
    output: TeacherOutput | PackedOutput


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the teacher said of a batch; said: None where no sample of it can be used.

    keys: of all its samples, whose pictures are let go of. rejects: those that are left out.
    """

    shard: ShardPlan
    keys: pa.StringArray
    rejects: Collection[Reject]
    said: _Said | None


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Rows ready to be written, and the tally of their shard, which has counted them.

    keys: of all samples of the batch, rejects: of those that are left out. block: None where no
    sample can be used.
    """

    shard: ShardPlan
    keys: pa.StringArray
    rejects: Collection[Reject]
    block: LabelBlock | None
    tally: Tally


def label_shards(
    plan: Plan,
    batch_size: int,
    shards: Iterable[ShardPlan],
    source: Source,
    run_teacher: RunTeacher,
    folder: Path,
    on_batch: Callable[[int], None],
    on_bad: OnBadSample = "stop",
    packer: Packer | None = None,
) -> BusyTime:
    """Label `shards` of `plan` one after the other and publish each with its receipt.

    `run_teacher` gives its logits in the order of the identity's classes. `on_batch` hears of
    every written batch's label rows. on_bad: what to do with one that cannot be used; skipped ones
    stand in their shard's receipt. packer: packs on the device what comes after a shard's measured
    rows, whose logits are needed here. Raises DataError for a sample that cannot be used, for
    non-finite logits and for a key that appears twice in a shard.
    """
    busy = BusyTime()
    packing = folder_packing(folder, plan)
    read = prefetch(_read(shards, source, batch_size, on_bad, busy), QUEUE_BATCHES, "read")
    pack = None if packer is None else packer(packing.codec)
    measured = measured_rows(len(plan.shards), plan.identity.grid)
    ran = prefetch(_run(read, run_teacher, pack, measured, busy), QUEUE_BATCHES, "teacher")
    encoded = prefetch(_encode(ran, packing, measured, busy), QUEUE_BATCHES, "encode")
    with contextlib.closing(encoded):
        current = next(encoded, None)
        while current is not None:
            receipt, current = _write_shard(
                packing, current, encoded, source, folder, busy, on_batch
            )
            publish_bytes(folder / f"{receipt.shard}.json", canonical_json(receipt))
    return busy


def _read(
    shards: Iterable[ShardPlan],
    source: Source,
    batch_size: int,
    on_bad: OnBadSample,
    busy: BusyTime,
) -> Iterator[tuple[ShardPlan, Slots]]:
    for shard in shards:
        for segments in batches(shard, batch_size, source.views):
            begin = time.perf_counter()
            slots = read_slots(source, segments, on_bad)
            busy.decode += time.perf_counter() - begin
            yield shard, slots


def _run(
    read: Generator[tuple[ShardPlan, Slots], None, None],
    run_teacher: RunTeacher,
    pack: PackTeacher | None,
    measured: int,
    busy: BusyTime,
) -> Iterator[_Batch]:
    current, seen = None, 0
    with contextlib.closing(read):
        for shard, slots in read:
            current, seen = shard, seen if shard is current else 0
            begin = time.perf_counter()
            packs = pack is not None and seen >= measured
            usable = slots.run(pack) if pack is not None and packs else slots.run(run_teacher)
            busy.teacher += time.perf_counter() - begin
            said = None
            if usable is not None:
                samples, output = usable
                said = _Said(
                    samples.keys, samples.flat_labels, samples.views, samples.lengths, output
                )
                seen += len(samples.flat_labels)
            yield _Batch(shard, slots.samples.keys, slots.left_out(), said)


def _encode(
    ran: Generator[_Batch, None, None], packing: Packing, measured: int, busy: BusyTime
) -> Iterator[_Encoded]:
    shard: ShardPlan | None = None
    with contextlib.closing(ran):
        for gathered in _gathered(ran):
            begin = time.perf_counter()
            if gathered[0].shard is not shard:
                shard = gathered[0].shard
                tally = Tally(packing.identity.temperatures, measured)
            said = [batch.said for batch in gathered if batch.said is not None]
            block = _labelled(_joined(said), packing) if said else None
            first = 0
            # Each batch as the teacher said it: a product with the head rounds by its rows.
            for one in said:
                assert block is not None
                part = block.slice(first, len(one.keys))
                if isinstance(one.output, PackedOutput):
                    tally.count(part)
                else:
                    tally.add(part, _as_said(one.output.logits))
                first += len(one.keys)
            busy.encode += time.perf_counter() - begin
            keys = pa.concat_arrays([batch.keys for batch in gathered])
            rejects = [reject for batch in gathered for reject in batch.rejects]
            yield _Encoded(shard, keys, rejects, block, tally)


def _gathered(ran: Iterator[_Batch]) -> Iterator[list[_Batch]]:
    """Consecutive batches of one shard that are small enough to be packed together."""
    held: list[_Batch] = []
    for batch in ran:
        if held and not _fit_together(held, batch):
            yield held
            held = []
        held.append(batch)
    if held:
        yield held


def _fit_together(held: list[_Batch], batch: _Batch) -> bool:
    values = sum(_values(one) for one in (*held, batch))
    same = held[0].shard is batch.shard
    return same and len(held) < GATHERED_BATCHES and values <= CHUNK_VALUES


def _values(batch: _Batch) -> int:
    """Logits that are still to be packed; what the device packed goes on alone."""
    if batch.said is None:
        return 0
    output = batch.said.output
    return CHUNK_VALUES + 1 if isinstance(output, PackedOutput) else output.logits.size


def _joined(parts: list[_Said]) -> _Said:
    first, *others = parts
    if not others:
        return first
    outputs = [part.output for part in parts if isinstance(part.output, TeacherOutput)]
    features = [output.features for output in outputs if output.features is not None]
    views = [part.views for part in parts if part.views is not None]
    lengths = [part.lengths for part in parts if part.lengths is not None]
    return _Said(
        pa.concat_arrays([part.keys for part in parts]),
        pa.concat_arrays([part.labels for part in parts]),
        np.concatenate(views) if views else None,
        np.concatenate(lengths) if lengths else None,
        TeacherOutput(
            np.concatenate([output.logits for output in outputs]),
            np.concatenate(features) if features else None,
        ),
    )


def _labelled(said: _Said, packing: Packing) -> LabelBlock:
    with naming_the_key(said.keys, said.lengths):
        packed = _packed(said.output, packing)
    rows, features = packed.rows, packed.features
    return LabelBlock(
        said.keys,
        said.labels,
        rows.top1,
        rows.shift,
        rows.columns,
        packing.codec,
        views=said.views,
        lengths=said.lengths,
        features=features,
    )


def _packed(output: TeacherOutput | PackedOutput, packing: Packing) -> PackedOutput:
    """Raises ValueError with the row's number in `args[1]` where the codec cannot hold one."""
    if isinstance(output, PackedOutput):
        output.refuse()
        return output
    rows = encode_rows(packing.codec, output.logits, output.features)
    if output.features is None or packing.identity.features is None:
        return PackedOutput(packing.codec, rows)
    return PackedOutput(packing.codec, rows, features_to_half(output.features))


def _as_said(logits: Logits) -> Reference:
    """What the teacher said, which is the same at every temperature."""
    return lambda T: logits


def _write_shard(
    packing: Packing,
    first: _Encoded,
    encoded: Iterator[_Encoded],
    source: Source,
    folder: Path,
    busy: BusyTime,
    on_batch: Callable[[int], None],
) -> tuple[Receipt, _Encoded | None]:
    """Write the shard that `first` begins; return its receipt and the next shard's first batch."""
    shard = first.shard
    keys: list[pa.StringArray] = []
    rejects: list[Reject] = []
    current: _Encoded | None = first
    with writing_shard(folder, shard.name, packing) as writer:
        while current is not None and current.shard is shard:
            begin = time.perf_counter()
            if current.block is not None:
                writer.append(current.block)
            busy.write += time.perf_counter() - begin
            # A sample's views stand together.
            keys.append(current.keys.take(pa.array(np.arange(0, len(current.keys), source.views))))
            rejects += current.rejects
            on_batch(len(current.keys))
            current = next(encoded, None)
        _refuse_duplicates(shard, keys)
        begin = time.perf_counter()
        file = writer.finish()
    busy.write += time.perf_counter() - begin
    digests = tuple(source.digest(name) for name in _source_names(shard))
    identity = packing.identity_sha256
    return first.tally.receipt(shard, identity, file, digests, rejects=rejects), current


def shift_output(output: TeacherOutput) -> ShiftedRows:
    """What the codecs pack of a teacher's output. Raises ValueError as `shift_rows` does."""
    rows = shift_rows(output.logits)
    return rows if output.features is None else replace(rows, features=output.features)


@contextlib.contextmanager
def naming_the_key(
    keys: pa.StringArray, lengths: npt.NDArray[np.uint32] | None = None
) -> Iterator[None]:
    """Turn a codec's refusal of a row into a DataError that names its key.

    lengths: where rows are sequences, whose positions the codec sees.
    """
    try:
        yield
    except ValueError as error:
        reason, row = error.args
        if lengths is not None:
            row = int(np.searchsorted(np.cumsum(lengths, dtype=np.int64), row, side="right"))
        raise DataError(
            f"{reason} for key {keys[row].as_py()!r}; check the teacher and its "
            "preprocessing, or take another codec"
        ) from error


def _refuse_duplicates(shard: ShardPlan, keys: list[pa.StringArray]) -> None:
    twice = miscounted_keys(lambda: keys)
    if twice:
        rows = np.flatnonzero(pc.equal(pa.chunked_array(keys), twice[0]).to_numpy())
        places = " and ".join(place(shard.segments, int(row)) for row in rows[:2])
        raise duplicate_key(twice[0], places)


def _source_names(shard: ShardPlan) -> list[str]:
    return list(dict.fromkeys(segment.source for segment in shard.segments))
