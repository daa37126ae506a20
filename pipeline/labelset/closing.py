"""Completing a label set: the manifest of its receipts, once each key is there once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.labelset.folder import remove_replaced
from softlabel.pipeline.labelset.keys import duplicate_key, miscounted_keys, place
from softlabel.pipeline.labelset.rejects import RejectedRows, rejects_bytes, summary
from softlabel.pipeline.labelset.standing import finished_shards
from softlabel.pipeline.publish import (
    publish_bytes,
    remove_temporaries,
    sync_folder,
)
from softlabel.pipeline.shards.layouts import open_shard
from softlabel.pipeline.shards.packing import folder_packing
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import (
    FLOAT32,
    MANIFEST_FILE,
    REJECTS_FILE,
    Manifest,
    ManifestShard,
    MeasuredFidelity,
    Plan,
    Receipt,
    Reference,
    Reject,
    Rejects,
    Segment,
    ShardPlan,
    Statistics,
    canonical_json,
    sha256_of,
)


def close(folder: Path, plan: Plan, reference: Reference = FLOAT32) -> Manifest:
    """Publish the manifest once every shard stands, then delete what was set aside.

    reference: what the fidelity was measured against. Raises DataError where one key names samples
    of two shards, and where all samples were left out. A set that is merged, or converted and
    aligned, follows one whose keys were looked at; one that is converted and not aligned may
    follow what changed since it was begun.
    """
    written, receipts = _read_receipts(folder, plan)
    rejects = _rejects(receipts)
    if rejects and not any(receipt.rows for receipt in receipts.values()):
        raise DataError(
            f"{folder}: no sample of the source could be used, all {len(rejects)} were left out; "
            f"the first is {rejects[0].key!r}: {rejects[0].reason}"
        )
    if plan.making.verb == "infer" or (plan.making.verb == "convert" and not plan.aligned):
        _refuse_duplicates(folder, plan, receipts)
    remove_temporaries(folder)
    _publish_rejects(folder, rejects)
    manifest = _manifest(plan, written, receipts, reference, summary(rejects))
    publish_bytes(folder / MANIFEST_FILE, canonical_json(manifest))
    remove_replaced(folder)
    return manifest


def close_together(folder: Path, plan: Plan) -> Manifest | None:
    """Publish the manifest where every shard is whole; None where one is missing.

    For one of several writers, which takes its turn with the others: whoever comes after the last
    shard does, and finds the same bytes.
    """
    lacking = any(not (folder / f"{shard.name}.json").exists() for shard in plan.shards)
    if lacking or len(finished_shards(folder, plan)) < len(plan.shards):
        return None
    return close(folder, plan)


def described(folder: Path, plan: Plan) -> Manifest:
    """What a manifest of these shards says, all of which stand; nothing is published."""
    written, receipts = _read_receipts(folder, plan)
    return _manifest(plan, written, receipts, FLOAT32, summary(_rejects(receipts)))


def _read_receipts(folder: Path, plan: Plan) -> tuple[dict[str, bytes], dict[str, Receipt]]:
    written = {shard.name: (folder / f"{shard.name}.json").read_bytes() for shard in plan.shards}
    return written, {name: Receipt.model_validate_json(data) for name, data in written.items()}


def _rejects(receipts: Mapping[str, Receipt]) -> list[Reject]:
    return [reject for receipt in receipts.values() for reject in receipt.rejects or ()]


def _publish_rejects(folder: Path, rejects: Sequence[Reject]) -> None:
    path = folder / REJECTS_FILE
    if rejects:
        publish_bytes(path, rejects_bytes(rejects))
    elif path.exists():
        path.unlink()
        sync_folder(folder)


def _segments(shard: ShardPlan, receipt: Receipt) -> tuple[Segment, ...]:
    if receipt.rejects is None:
        return shard.segments
    return RejectedRows(receipt.rejects).left(shard.segments)


def _manifest(
    plan: Plan,
    written: Mapping[str, bytes],
    receipts: Mapping[str, Receipt],
    reference: Reference,
    rejects: Rejects | None,
) -> Manifest:
    """The manifest of a set whose receipts are these files."""
    measured = [receipt.fidelity for receipt in receipts.values()]
    rows = sum(fidelity.rows for fidelity in measured)
    return Manifest(
        identity_sha256=plan.identity.digest(),
        identity=plan.identity,
        making=plan.making,
        layout=plan.layout,
        aligned=plan.aligned,
        limit=plan.limit,
        prior=plan.prior,
        rows=sum(receipt.rows for receipt in receipts.values()),
        rejects=rejects,
        statistics=Statistics(
            labelled=sum(receipt.statistics.labelled for receipt in receipts.values()),
            correct=sum(receipt.statistics.correct for receipt in receipts.values()),
        ),
        reference=reference,
        fidelity=tuple(
            MeasuredFidelity(
                temperature=temperature,
                # Sequences may all be empty, and then nothing is lost.
                kl_mean=sum(fidelity.kl_sum[index] for fidelity in measured) / max(1, rows),
                rows=rows,
            )
            for index, temperature in enumerate(plan.identity.temperatures)
        ),
        shards=tuple(
            ManifestShard(
                name=shard.name,
                rows=receipts[shard.name].rows,
                bytes=receipts[shard.name].bytes,
                sha256=receipts[shard.name].sha256,
                receipt_sha256=sha256_of(written[shard.name]),
                segments=_segments(shard, receipts[shard.name]),
            )
            for shard in plan.shards
        ),
    )


def _refuse_duplicates(folder: Path, plan: Plan, receipts: Mapping[str, Receipt]) -> None:
    """Raise DataError where one key names two samples, left out or not."""
    packing = folder_packing(folder, plan)

    def columns() -> Iterator[pa.StringArray]:
        for shard in plan.shards:
            keys = open_shard(folder, shard.name, packing).keys().combine_chunks()
            # A sample's views stand together.
            own = keys.take(pa.array(np.arange(0, len(keys), plan.identity.views)))
            gone = [reject.key for reject in receipts[shard.name].rejects or ()]
            yield pa.concat_arrays([own, pa.array(gone, pa.string())]) if gone else own

    twice = miscounted_keys(columns)
    if not twice:
        return
    key = twice[0]
    places = [
        _place(shard, receipts[shard.name], row)
        for shard, keys in zip(plan.shards, columns(), strict=True)
        for row in np.flatnonzero(pc.equal(keys, key).to_numpy(zero_copy_only=False)).tolist()
    ]
    if not plan.aligned:
        raise DataError(
            f"{folder}: key {key!r} was written twice ({' and '.join(places[:2])}): what the "
            "set is made from changed since it was begun; run the same command with --overwrite"
        )
    raise duplicate_key(key, " and ".join(places[:2]))


def _place(shard: ShardPlan, receipt: Receipt, row: int) -> str:
    """Where a sample comes from: those of the shard are followed by those that it leaves out."""
    if not shard.segments:
        return f"{shard.name} sample {row}"
    segments = _segments(shard, receipt)
    samples = sum(segment.rows for segment in segments)
    if row < samples:
        return place(segments, row)
    assert receipt.rejects is not None
    reject = receipt.rejects[row - samples]
    return f"{reject.source} row {reject.row}"
