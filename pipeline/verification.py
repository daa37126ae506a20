"""Finding what is wrong with a label set: one detector a kind of fault, each a small function.

A detector yields problems and raises nothing for a fault of its kind. Faults of a shard name it,
so that `--repair` can remove exactly that shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from softlabel.pipeline.block import LabelBlock, in_pieces
from softlabel.pipeline.dense import DenseU8
from softlabel.pipeline.factored import Factored
from softlabel.pipeline.keys import few, miscounted_keys
from softlabel.pipeline.numerics import id_dtype, log_softmax, log_sums
from softlabel.pipeline.packing import Packing, folder_packing
from softlabel.pipeline.parquet_columns import shard_schema
from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.shards import open_shard, shard_path
from softlabel.pipeline.sources.parquet import ParquetSource
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import (
    HEAD_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    Identity,
    Manifest,
    ManifestShard,
    Receipt,
    sha256_of,
    shard_file,
)
from softlabel.schemas.reports import Problem

# A stored float16 is within 2^-11 of its value; over C of them, and two float32 sums.
LSE_TOLERANCE = 5e-3


def check_folder(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """The folder holds the plan, the manifest, the shards and their receipts, and nothing else."""
    known = {PLAN_FILE, MANIFEST_FILE}
    if manifest.identity.head_sha256 is not None:
        known.add(HEAD_FILE)
    for shard in manifest.shards:
        known |= {shard_file(shard.name, manifest.layout), f"{shard.name}.json"}
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            yield Problem(kind="folder", shard=None, message=f"{path.name} does not belong here")
    if not (folder / PLAN_FILE).exists():
        yield Problem(kind="folder", shard=None, message=f"{PLAN_FILE} is missing")


def check_head(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """The head of a factored set stands and is the one of its identity."""
    try:
        folder_packing(folder, manifest)
    except DataError as error:
        yield Problem(kind="head", shard=None, message=str(error))


def check_receipt(folder: Path, manifest: Manifest, shard: ManifestShard) -> Iterator[Problem]:
    """The receipt stands, is the one that the manifest was made from, and fits its shard."""
    path = folder / f"{shard.name}.json"
    try:
        data = path.read_bytes()
        receipt = Receipt.model_validate_json(data)
    except FileNotFoundError:
        yield _problem("receipt", shard, "the receipt is missing")
        return
    except ValidationError:
        yield _problem("receipt", shard, "the receipt is damaged")
        return
    if sha256_of(data) != shard.receipt_sha256:
        yield _problem("receipt", shard, "the receipt is not the one in the manifest")
    if receipt.identity_sha256 != manifest.identity_sha256:
        yield _problem("receipt", shard, "the receipt is of another label set")


def check_bytes(folder: Path, manifest: Manifest, shard: ManifestShard) -> Iterator[Problem]:
    """The shard's file has the size and the SHA-256 that the manifest says."""
    path = folder / shard_file(shard.name, manifest.layout)
    if not path.exists():
        yield _problem("bytes", shard, "the file is missing")
    elif path.stat().st_size != shard.bytes:
        size = path.stat().st_size
        yield _problem("bytes", shard, f"the file has {size} bytes, not {shard.bytes}")
    elif file_sha256(path) != shard.sha256:
        yield _problem("bytes", shard, "the file's SHA-256 is not the one in the manifest")


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
        yield _problem("schema", shard, f"it is no Parquet file: {' '.join(str(error).split())}")
        return
    if not schema.equals(expected, check_metadata=True):
        yield _problem("schema", shard, "columns or metadata are not those of this label set")
    if rows != shard.rows:
        yield _problem("schema", shard, f"it has {rows} rows, not {shard.rows}")


def _check_tar(folder: Path, packing: Packing, shard: ManifestShard) -> Iterator[Problem]:
    try:
        rows = open_shard(folder, shard.name, packing).rows
    except DataError as error:
        yield _problem("schema", shard, f"its header or members cannot be read: {error}")
        return
    if rows != shard.rows:
        yield _problem("schema", shard, f"it has {rows} rows, not {shard.rows}")


def check_values(folder: Path, packing: Packing, shard: ManifestShard) -> Iterator[Problem]:
    """Every row decodes to finite soft targets that agree with its shift, top-1 and log-sums."""
    try:
        reader = open_shard(folder, shard.name, packing)
        for block in in_pieces(reader.read(0, reader.rows), len(packing.identity.classes)):
            rows = np.repeat(np.arange(len(block)), np.diff(block.starts()))
            for message, bad in _bad_values(block, packing.identity):
                if bad.any():
                    keys = block.keys.take(pa.array(np.unique(rows[bad]))).to_pylist()
                    yield _problem("values", shard, f"{message} for {few(keys)}")
    except (DataError, KeyError) as error:
        yield _problem("values", shard, f"its rows cannot be read: {error}")


def check_coverage(
    folder: Path, manifest: Manifest, shard: ManifestShard, source: ParquetSource
) -> Iterator[Problem]:
    """The shard's keys are those of its source rows, in order, each once a view."""
    views = manifest.identity.views
    try:
        reader = open_shard(folder, shard.name, folder_packing(folder, manifest))
        stored = reader.keys().combine_chunks()
        samples = source.keys(shard.segments)
        wanted = samples.take(pa.array(np.arange(len(samples)).repeat(views)))
    except (DataError, KeyError) as error:
        yield _problem("coverage", shard, f"its keys cannot be compared: {error}")
        return
    if stored.equals(wanted):
        return
    missing = pc.filter(wanted, pc.invert(pc.is_in(wanted, stored))).to_pylist()
    extra = pc.filter(stored, pc.invert(pc.is_in(stored, wanted))).to_pylist()
    if missing:
        yield _problem("coverage", shard, f"lacks {len(missing)} keys: {few(missing)}")
    if extra:
        yield _problem("coverage", shard, f"holds {len(extra)} foreign keys: {few(extra)}")
    if pc.count_distinct(stored).as_py() * views != len(stored):
        times = "twice" if views == 1 else f"other than {views} times"
        yield _problem("coverage", shard, f"holds a key {times}")
    elif not missing and not extra:
        yield _problem("coverage", shard, "holds its keys in another order than the source")


def check_unlabelled(manifest: Manifest, source: ParquetSource) -> Iterator[Problem]:
    """Every row of the source belongs to a shard of the aligned set."""
    labelled: dict[str, int] = {}
    for shard in manifest.shards:
        for part in shard.segments:
            labelled[part.source] = labelled.get(part.source, 0) + part.rows
    for file in source.files:
        lacking = file.rows - labelled.get(file.name, 0)
        if lacking > 0:
            message = f"{source.path / file.name} has {lacking} samples without labels"
            yield Problem(kind="coverage", shard=None, message=message)


def check_keys(folder: Path, manifest: Manifest, packing: Packing) -> Iterator[Problem]:
    """Each key stands in as many rows as a sample has views; 8 bytes a row are held."""

    views = manifest.identity.views

    def columns() -> Iterator[pa.StringArray]:
        for shard in manifest.shards:
            yield open_shard(folder, shard.name, packing).keys().combine_chunks()

    try:
        wrong = miscounted_keys(columns, views)
    except (DataError, KeyError):
        return  # what cannot be read is another check's to tell
    if wrong:
        times = "a key stands twice" if views == 1 else f"a key does not stand {views} times"
        yield Problem(kind="keys", shard=None, message=f"{times}: {few(wrong)}")


def check_source(
    folder: Path, manifest: Manifest, shard: ManifestShard, source: ParquetSource
) -> Iterator[Problem]:
    """The source shards are the bytes that were labelled."""
    try:
        receipt = Receipt.model_validate_json((folder / f"{shard.name}.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return
    known = {file.name for file in source.files}
    for recorded in receipt.source:
        if recorded.name not in known:
            yield Problem(
                kind="source",
                shard=None,
                message=f"{source.path} lacks {recorded.name}, which {shard.name} labels",
            )
        elif source.digest(recorded.name) != recorded:
            yield Problem(
                kind="source",
                shard=None,
                message=f"{source.path / recorded.name} changed since {shard.name} labelled it",
            )


def mean_divergence(teacher: npt.NDArray[np.float32], stored: npt.NDArray[np.floating]) -> float:
    """Mean KL(softmax(teacher) || softmax(stored)) over rows, in nats, at T = 1."""
    full = log_softmax(teacher.astype(np.float64))
    kept = log_softmax(stored.astype(np.float64))
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(full), 0.0, np.exp(full) * (full - kept))
    return float(terms.sum(axis=1).mean())


def _bad_values(
    block: LabelBlock, identity: Identity
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    temperatures = identity.temperatures
    classes = len(identity.classes)
    labels = block.labels.fill_null(0).to_numpy(zero_copy_only=False)
    yield "a label is outside the classes", (labels < 0) | (labels >= classes)
    yield "the shift is not finite", ~np.isfinite(block.shift)
    unknown = np.asarray(block.top1 >= classes)
    yield "top1 is outside the classes", unknown
    if unknown.any():
        return
    if "ids" in block.payload:
        ids = np.sort(block.payload["ids"], axis=1)
        foreign = np.asarray(ids[:, -1] >= classes)
        yield "a kept class is outside the classes", foreign
        if foreign.any():
            return
        yield "a class is kept twice", np.asarray((ids[:, 1:] == ids[:, :-1]).any(axis=1))
        kept = block.payload["logits"]
        yield "the kept logits do not fall", np.asarray((kept[:, 1:] > kept[:, :-1]).any(axis=1))
    lowest = max(min(temperatures), 1.0)
    logits = block.logits(lowest)
    highest = logits.max(axis=1)
    yield "the largest logit is not 0", ~(highest == 0)
    top1 = logits.argmax(axis=1).astype(id_dtype(classes))
    yield "top1 is not the arg-max", top1 != block.top1
    if isinstance(block.codec, DenseU8):
        recorded = block.payload["lse"]
        low, high = (log_sums(part, temperatures) for part in block.codec.bounds(block.payload))
        inside = (low - LSE_TOLERANCE <= recorded) & (recorded <= high + LSE_TOLERANCE)
        yield "the log-sums are not those of the logits", ~np.asarray(inside.all(axis=1))
    elif "lse" in block.payload:
        recorded = block.payload["lse"]
        finite = np.where(np.isneginf(logits) | np.isfinite(logits), logits, np.float32(0))
        difference = np.abs(log_sums(finite, temperatures) - recorded)
        tolerance = np.full(len(block.top1), LSE_TOLERANCE)
        if isinstance(block.codec, Factored):
            slack = block.codec.slack(block.payload)
            yield from _bad_features(block, block.codec, slack)
            tolerance += 2 * slack / min(temperatures)
        yield "the log-sums are not those of the logits", ~(difference.max(axis=1) <= tolerance)
    if "tail_lse" in block.payload:
        most = np.log(classes - block.payload["ids"].shape[1]) + LSE_TOLERANCE
        yield "a tail is heavier than it can be", ~(block.payload["tail_lse"].max(axis=1) <= most)


def _bad_features(
    block: LabelBlock, codec: Factored, slack: npt.NDArray[np.float32]
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """The head over the features, before the stored top-1 settles the arg-max."""
    made = codec.head.logits(block.payload["features"])
    highest = made.max(axis=1)
    chosen = made[np.arange(len(made)), block.top1]
    yield "the shift is not the head's largest logit", ~(np.abs(highest - block.shift) <= slack)
    yield "top1 is not the head's arg-max", ~(highest - chosen <= 2 * slack)


def _problem(kind: str, shard: ManifestShard, message: str) -> Problem:
    return Problem(kind=kind, shard=shard.name, message=f"{shard.name}: {message}")
