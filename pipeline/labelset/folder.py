"""The folder of a label set while it is made: claim it, see what is finished, close it.

Only the holder of the folder's lease calls these.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.labelset.keys import duplicate_key, miscounted_keys, place
from softlabel.pipeline.labelset.rejects import RejectedRows, rejects_bytes, summary
from softlabel.pipeline.publish import (
    file_sha256,
    make_folder,
    publish_bytes,
    remove_temporaries,
    sync_folder,
    temporary_name,
)
from softlabel.pipeline.shards.layouts import open_shard
from softlabel.pipeline.shards.packing import folder_packing
from softlabel.schemas.errors import DataError, IdentityError, ParameterError
from softlabel.schemas.labelset import (
    FLOAT32,
    HEAD_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    REJECTS_FILE,
    ExecutionRecord,
    Identity,
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
    shard_file,
)
from softlabel.schemas.params.shared import IfDifferent

# Beside the folder: a complete set until the new one stands, and an unfinished one on its way out.
REPLACED = ".replaced"
DISCARDED = ".discarded"


def standing_plan(
    folder: Path, wanted: Plan, if_different: IfDifferent, overwrite: bool
) -> Plan | None:
    """The plan in the folder that a run of `wanted` goes on with; None where it starts afresh.

    Raises IdentityError, naming what differs, where the folder holds labels of another identity
    and they shall not be replaced.
    """
    standing = read_plan(folder)
    if standing is None or overwrite:
        return None
    if standing.making.verb != wanted.making.verb and if_different == "error":
        raise IdentityError(
            f"{folder}: holds labels made by softlabel {standing.making.verb}; make them again "
            f"with '{standing.making.command}', choose another --output, or pass "
            "--if-different replace"
        )
    different = different_fields(standing.identity, wanted.identity)
    if not different and (standing.layout, standing.making) == (wanted.layout, wanted.making):
        return standing
    if if_different == "error" and not different:
        raise IdentityError(
            f"{folder}: holds these labels in layout {standing.layout}, as "
            f"'{standing.making.command}' makes them; choose another --output, or pass "
            "--if-different replace"
        )
    if if_different == "error":
        raise IdentityError(
            f"{folder}: holds labels of another identity (different: {', '.join(different)}); "
            "choose another --output, or pass --if-different replace"
        )
    return None


def claim(folder: Path, plan: Plan) -> None:
    """Set aside what the folder holds and publish `plan`, before the first batch."""
    if read_plan(folder) is not None:
        _set_aside(folder)
    make_folder(folder)
    publish_bytes(folder / PLAN_FILE, canonical_json(plan))
    sync_folder(folder.parent)


def publish_head(folder: Path, head: Head) -> None:
    """Put the head of a factored set into the claimed folder, where it does not stand whole."""
    path = folder / HEAD_FILE
    if not path.is_file() or file_sha256(path) != head.digest():
        publish_bytes(path, head.to_bytes())


def check_same_making(folder: Path, standing: Plan, wanted: Plan) -> None:
    """Raise IdentityError where missing shards would be made otherwise than the others were."""
    assert standing.execution is not None
    assert wanted.execution is not None
    different = different_fields(standing.execution, wanted.execution)
    if different:
        changes = "; ".join(
            f"{name} was {getattr(standing.execution, name)!r}, "
            f"is {getattr(wanted.execution, name)!r}"
            for name in different
        )
        raise IdentityError(
            f"{folder}: was begun under another execution record ({changes}); "
            "go on as it was begun, pass --allow-mixed, or --overwrite"
        )
    if standing.shards != wanted.shards:
        raise IdentityError(
            f"{folder}: was begun with other shard boundaries; pass the --shard-rows it was "
            "begun with, --allow-mixed to keep its boundaries, or --overwrite"
        )


def read_plan(folder: Path) -> Plan | None:
    """The plan in `folder`, None where the folder is absent or empty.

    Raises ParameterError where the folder holds something that is no label set.
    """
    if folder.exists() and not folder.is_dir():
        raise ParameterError(f"{folder}: is a file; choose another --output")
    if not folder.exists():
        return None
    path = folder / PLAN_FILE
    if not path.exists():
        # A run killed at its very first step leaves the plan under its temporary name.
        if any(entry != temporary_name(path) for entry in folder.iterdir()):
            raise ParameterError(
                f"{folder}: holds files and no {PLAN_FILE}, so it is no label set; "
                "choose another --output"
            )
        return None
    try:
        return Plan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path}: is damaged ({error.errors()[0]['msg']}); remove the folder and run again"
        ) from error


def finished_shards(folder: Path, plan: Plan) -> dict[str, Receipt]:
    """The receipts of the shards that are whole: right identity, size and SHA-256.

    Where a manifest stands, a receipt must also be the one that it was made from.
    """
    identity = plan.identity.digest()
    recorded = _recorded_receipts(folder)
    receipts = {}
    for shard in plan.shards:
        found = read_receipt(folder, shard.name)
        if found is None:
            continue
        receipt, digest = found
        path = folder / shard_file(shard.name, plan.layout)
        if (
            (receipt.shard, receipt.identity_sha256, receipt.rows)
            == (shard.name, identity, shard.rows - _left_out(shard, receipt, plan.identity.views))
            and recorded.get(shard.name) in (None, digest)
            and path.is_file()
            and path.stat().st_size == receipt.bytes
            and file_sha256(path) == receipt.sha256
        ):
            receipts[shard.name] = receipt
    return receipts


def read_receipt(folder: Path, name: str) -> tuple[Receipt, str] | None:
    """The receipt of the shard `name` and the SHA-256 of its file, None where it is no record."""
    try:
        data = (folder / f"{name}.json").read_bytes()
        return Receipt.model_validate_json(data), sha256_of(data)
    except (FileNotFoundError, IsADirectoryError, ValidationError):
        return None


def replaced_folder(folder: Path) -> Path:
    """Where a complete set lies while another one is made in its folder."""
    return _beside(folder, REPLACED)


def reopen(folder: Path) -> None:
    """Withdraw the manifest of a set that turned out to have a broken shard."""
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    sync_folder(folder)


def remove_shards(folder: Path, names: Sequence[str]) -> None:
    """Delete these shards with their receipts, and the manifest: `infer` redoes exactly them."""
    reopen(folder)
    for name in names:
        for suffix in ("json", "parquet", "tar"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    sync_folder(folder)


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
    for suffix in (REPLACED, DISCARDED):
        if _beside(folder, suffix).exists():
            shutil.rmtree(_beside(folder, suffix))
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


def _left_out(shard: ShardPlan, receipt: Receipt, views: int) -> int:
    """Label rows that the shard lacks because their samples were left out.

    The plan of a set that is made from another has no place for those in the first place.
    """
    gone = RejectedRows(receipt.rejects or ())
    return views * sum(gone.count(segment) for segment in shard.segments)


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


def different_fields(
    standing: Identity | ExecutionRecord, wanted: Identity | ExecutionRecord
) -> list[str]:
    """Names of the fields in which the two differ, as messages spell them."""
    return [
        name.removesuffix("_sha256")
        for name in type(standing).model_fields
        if getattr(standing, name) != getattr(wanted, name)
    ]


def _set_aside(folder: Path) -> None:
    """Move a complete set beside the folder; an unfinished one is worth nothing and goes.

    It goes by a rename first: a folder that lost its plan half-way would be nobody's.
    """
    complete = (folder / MANIFEST_FILE).exists()
    target = _beside(folder, REPLACED if complete else DISCARDED)
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)
    sync_folder(folder.parent)
    if not complete:
        shutil.rmtree(target)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _recorded_receipts(folder: Path) -> dict[str, str]:
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}
    return {shard.name: shard.receipt_sha256 for shard in manifest.shards}


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
