"""Whether the files of a label set are the ones that its manifest names, unchanged.

A check yields problems and raises nothing for a fault of its kind. Faults of a shard name it, so
that `--repair` can remove exactly that shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from softlabel.pipeline.labelset.rejects import RejectedRows, read_rejects
from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.shards.layouts import open_shard, shard_path
from softlabel.pipeline.shards.packing import Packing, folder_packing
from softlabel.pipeline.shards.parquet_columns import shard_schema
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import (
    HEAD_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    REJECTS_FILE,
    Manifest,
    ManifestShard,
    Receipt,
    Reject,
    sha256_of,
    shard_file,
)
from softlabel.schemas.reports.label_sets import Problem


def check_folder(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """The folder holds the plan, the manifest, the shards and their receipts, and nothing else."""
    known = {PLAN_FILE, MANIFEST_FILE}
    if manifest.identity.head_sha256 is not None:
        known.add(HEAD_FILE)
    if manifest.rejects is not None:
        known.add(REJECTS_FILE)
    for shard in manifest.shards:
        known |= {shard_file(shard.name, manifest.layout), f"{shard.name}.json"}
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            yield Problem(kind="folder", shard=None, message=f"{path.name} does not belong here")
    if not (folder / PLAN_FILE).is_file():
        message = (
            f"{PLAN_FILE} is missing, without which no command goes on with this folder; restore "
            f"the file, or write the set anew with 'softlabel convert --labels {folder} --output "
            "NEW'"
        )
        yield Problem(kind="folder", shard=None, message=message)


def check_head(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """The head of a factored set stands and is the one of its identity."""
    try:
        folder_packing(folder, manifest)
    except DataError as error:
        yield Problem(kind="head", shard=None, message=str(error))


def check_rejects(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """What is left out is what the receipts say, in their order, and has no labels."""
    try:
        rejects = read_rejects(folder, manifest)
    except DataError as error:
        yield Problem(kind="rejects", shard=None, message=str(error))
        return
    told: list[Reject] = []
    for shard in manifest.shards:
        receipt = _receipt(folder, shard)
        if receipt is None:
            return  # another check tells of it
        told += receipt.rejects or ()
    if tuple(told) != rejects:
        message = f"{REJECTS_FILE} lists other samples than the receipts"
        yield Problem(kind="rejects", shard=None, message=message)
    rows = RejectedRows(rejects)
    for shard in manifest.shards:
        for segment in shard.segments:
            if rows.count(segment):
                message = f"rows of {segment.source} are labelled and listed in {REJECTS_FILE}"
                yield shard_problem("rejects", shard, message)


def _receipt(folder: Path, shard: ManifestShard) -> Receipt | None:
    try:
        return Receipt.model_validate_json((folder / f"{shard.name}.json").read_bytes())
    except (OSError, ValidationError):
        return None


def check_receipt(folder: Path, manifest: Manifest, shard: ManifestShard) -> Iterator[Problem]:
    """The receipt stands, is the one that the manifest was made from, and fits its shard."""
    path = folder / f"{shard.name}.json"
    try:
        data = path.read_bytes()
        receipt = Receipt.model_validate_json(data)
    except (FileNotFoundError, IsADirectoryError):
        yield shard_problem("receipt", shard, "the receipt is missing")
        return
    except ValidationError:
        yield shard_problem("receipt", shard, "the receipt is damaged")
        return
    if sha256_of(data) != shard.receipt_sha256:
        yield shard_problem("receipt", shard, "the receipt is not the one in the manifest")
    if receipt.identity_sha256 != manifest.identity_sha256:
        yield shard_problem("receipt", shard, "the receipt is of another label set")


def check_bytes(folder: Path, manifest: Manifest, shard: ManifestShard) -> Iterator[Problem]:
    """The shard's file has the size and the SHA-256 that the manifest says."""
    path = folder / shard_file(shard.name, manifest.layout)
    if not path.is_file():
        yield shard_problem("bytes", shard, "the file is missing")
    elif path.stat().st_size != shard.bytes:
        size = path.stat().st_size
        yield shard_problem("bytes", shard, f"the file has {size} bytes, not {shard.bytes}")
    elif file_sha256(path) != shard.sha256:
        yield shard_problem("bytes", shard, "the file's SHA-256 is not the one in the manifest")


def check_schema(folder: Path, packing: Packing, shard: ManifestShard) -> Iterator[Problem]:
    """Columns and metadata are those of this set, and the rows as many as planned."""
    if packing.layout in ("sidecar", "merged"):
        yield from _check_tar(folder, packing, shard)
        return
    path = shard_path(folder, shard.name, packing)
    expected = shard_schema(packing)
    try:
        schema = pq.read_schema(path)
        rows = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        yield shard_problem(
            "schema", shard, f"it is no Parquet file: {' '.join(str(error).split())}"
        )
        return
    if not schema.equals(expected, check_metadata=True):
        yield shard_problem("schema", shard, "columns or metadata are not those of this label set")
    if rows != shard.rows:
        yield shard_problem("schema", shard, f"it has {rows} rows, not {shard.rows}")


def _check_tar(folder: Path, packing: Packing, shard: ManifestShard) -> Iterator[Problem]:
    try:
        rows = open_shard(folder, shard.name, packing).rows
    except DataError as error:
        yield shard_problem("schema", shard, f"its header or members cannot be read: {error}")
        return
    if rows != shard.rows:
        yield shard_problem("schema", shard, f"it has {rows} rows, not {shard.rows}")


def shard_problem(kind: str, shard: ManifestShard, message: str) -> Problem:
    """A problem of one shard, which its message names too."""
    return Problem(kind=kind, shard=shard.name, message=f"{shard.name}: {message}")
