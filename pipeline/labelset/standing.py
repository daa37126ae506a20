"""What stands in a folder where a label set is made, and whether a run may go on with it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from softlabel.pipeline.labelset.rejects import RejectedRows
from softlabel.pipeline.publish import (
    file_sha256,
    temporary_name,
)
from softlabel.schemas.errors import DataError, IdentityError, ParameterError
from softlabel.schemas.labelset import (
    MANIFEST_FILE,
    PLAN_FILE,
    ExecutionRecord,
    Identity,
    Manifest,
    Plan,
    Receipt,
    ShardPlan,
    sha256_of,
    shard_file,
)
from softlabel.schemas.params.shared import IfDifferent


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
    recorded = recorded_receipts(folder)
    receipts = {}
    for shard in plan.shards:
        found = read_receipt(folder, shard.name)
        if found is None:
            continue
        receipt, digest = found
        path = folder / shard_file(shard.name, plan.layout)
        if (
            (receipt.shard, receipt.identity_sha256, receipt.rows)
            == (shard.name, identity, shard.rows - left_out(shard, receipt, plan.identity.views))
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


def recorded_receipts(folder: Path) -> dict[str, str]:
    """SHA-256 of each receipt by its shard, as the manifest has it; empty without one."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}
    return {shard.name: shard.receipt_sha256 for shard in manifest.shards}


def left_out(shard: ShardPlan, receipt: Receipt, views: int) -> int:
    """Label rows that the shard lacks because their samples were left out.

    The plan of a set that is made from another has no place for those in the first place.
    """
    gone = RejectedRows(receipt.rejects or ())
    return views * sum(gone.count(segment) for segment in shard.segments)


def different_fields(
    standing: Identity | ExecutionRecord, wanted: Identity | ExecutionRecord
) -> list[str]:
    """Names of the fields in which the two differ, as messages spell them."""
    return [
        name.removesuffix("_sha256")
        for name in type(standing).model_fields
        if getattr(standing, name) != getattr(wanted, name)
    ]
