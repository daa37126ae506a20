"""Growing a label set with its source: what stands is copied under the new identity.

The identity names every source shard, and each label shard states it, so a copy is written anew;
the teacher runs over what the source has more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from softlabel.pipeline.inference.plan import plan_shards
from softlabel.pipeline.labelset.folder import replaced_folder
from softlabel.pipeline.labelset.standing import (
    check_same_making,
    different_fields,
    finished_shards,
    read_plan,
    read_receipt,
)
from softlabel.pipeline.publish import publish_bytes
from softlabel.pipeline.shards.layouts import open_shard, writing_shard
from softlabel.pipeline.shards.packing import folder_packing
from softlabel.schemas.errors import DataError, IdentityError
from softlabel.schemas.labelset import (
    MANIFEST_FILE,
    Making,
    Plan,
    Receipt,
    ShardPlan,
    canonical_json,
)

EXTENDED = Making(verb="infer", command="softlabel infer --extend")


@dataclass(frozen=True, slots=True)
class Grown:
    """The plan that goes on with a source that grew, and the complete set that it goes on from.

    folder: where that set lies once its own was claimed. standing: its plan; None where nothing of
    it is left to copy. receipts: of its shards, by name.
    """

    folder: Path
    standing: Plan | None
    plan: Plan
    receipts: Mapping[str, Receipt]

    def carries(self, shard: ShardPlan) -> bool:
        """Whether the set holds this shard already."""
        return self.standing is not None and shard in self.standing.shards


def grown(folder: Path, wanted: Plan, shard_rows: int, *, allow_mixed: bool) -> Grown | None:
    """What a run that would make `wanted` afresh does where it shall extend what stands there.

    None where nothing stands. The shards that stand come first, those of the source's new shards
    behind them. Raises IdentityError where the labels there are others than those of an earlier
    state of the source, made in the same way, and whole.
    """
    place = folder if read_plan(folder) is not None else replaced_folder(folder)
    standing = read_plan(place)
    if standing is None:
        return None
    if standing.identity == wanted.identity:
        # A run of this very plan, which may have been cut off: what it replaces lies beside.
        place = replaced_folder(folder)
        before = read_plan(place)
        if before is not None and different_fields(before.identity, wanted.identity) != ["source"]:
            before = None
        plan = standing.model_copy(update={"execution": wanted.execution})
        return Grown(place, before, plan, _receipts(place, before))
    receipts = _whole(place, standing, wanted)
    if not allow_mixed:
        check_same_making(place, standing, wanted.model_copy(update={"shards": standing.shards}))
    known = set(standing.identity.source)
    new = [file for file in wanted.identity.source if file not in known]
    assert wanted.execution is not None
    size = wanted.execution.batch_size
    views, first = wanted.identity.views, len(standing.shards)
    added = plan_shards(new, size, shard_rows, views, first=first)
    update = {
        "making": EXTENDED,
        "prior": standing.prior,
        "shards": (*standing.shards, *added),
    }
    return Grown(replaced_folder(folder), standing, wanted.model_copy(update=update), receipts)


def carry_over(
    old: Grown, shard: ShardPlan, folder: Path, plan: Plan, on_rows: Callable[[int], None]
) -> Receipt:
    """Publish a shard of the old set in `folder` as one of `plan`, with the receipt given back.

    Raises DataError where the old shard is damaged.
    """
    assert old.standing is not None
    before = old.receipts.get(shard.name)
    if before is None:
        raise DataError(
            f"{old.folder}: the receipt of {shard.name} is gone; run 'softlabel infer --overwrite'"
        )
    reader = open_shard(
        old.folder, shard.name, folder_packing(old.folder, old.standing), before.sha256
    )
    packing = folder_packing(folder, plan)
    with writing_shard(folder, shard.name, packing) as writer:
        for block in reader.read(0, reader.rows):
            writer.append(block)
            on_rows(len(block))
        size, digest = writer.finish()
    update = {"identity_sha256": packing.identity_sha256, "bytes": size, "sha256": digest}
    receipt = before.model_copy(update=update)
    publish_bytes(folder / f"{shard.name}.json", canonical_json(receipt))
    return receipt


def _receipts(folder: Path, plan: Plan | None) -> dict[str, Receipt]:
    """Those that are found in the folder, unchecked."""
    shards = () if plan is None else plan.shards
    found = {shard.name: read_receipt(folder, shard.name) for shard in shards}
    return {name: receipt[0] for name, receipt in found.items() if receipt is not None}


def _whole(folder: Path, standing: Plan, wanted: Plan) -> dict[str, Receipt]:
    """The receipts of a finished set that `wanted` extends. Raises IdentityError."""
    different = different_fields(standing.identity, wanted.identity)
    if standing.layout != wanted.layout:
        different.append("layout")
    if different != ["source"]:
        raise IdentityError(
            f"{folder}: holds labels of another identity (different: {', '.join(different)}), and "
            "only its source may have grown; choose another --output, or label afresh with "
            "--if-different replace and no --extend"
        )
    if standing.making.verb != "infer" or standing.limit is not None:
        raise IdentityError(
            f"{folder}: was made by '{standing.making.command}', and only what infer labelled "
            "whole is extended; label with 'softlabel infer' into another --output"
        )
    gone = [file.name for file in standing.identity.source if file not in wanted.identity.source]
    if gone:
        raise IdentityError(
            f"{folder}: source shard {gone[0]} changed or is gone since it was labelled, the "
            "source did not only grow; label afresh with --if-different replace and no --extend"
        )
    whole = finished_shards(folder, standing)
    if not (folder / MANIFEST_FILE).exists() or len(whole) < len(standing.shards):
        raise IdentityError(
            f"{folder}: is not whole, and only a finished set is extended; finish it with the "
            "source as it was, or label afresh with --overwrite"
        )
    return whole
