"""What is wrong with a label set's rows, and against its source: a small function a kind of fault.

A detector yields problems and raises nothing for a fault of its kind. Faults of a shard name it,
so that `--repair` can remove exactly that shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from softlabel.pipeline.codecs.dense import DenseU8
from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.codecs.numerics import id_dtype, log_softmax, log_sums
from softlabel.pipeline.labelset.integrity import shard_problem
from softlabel.pipeline.labelset.keys import few, miscounted_keys
from softlabel.pipeline.shards.block import LabelBlock, in_pieces
from softlabel.pipeline.shards.layouts import open_shard
from softlabel.pipeline.shards.packing import Packing
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import (
    REJECTS_FILE,
    Identity,
    Manifest,
    ManifestShard,
    Receipt,
    Reject,
    Segment,
)
from softlabel.schemas.reports.label_sets import Problem

# A stored float16 is within 2^-11 of its value; over C of them, and two float32 sums.
LSE_TOLERANCE = 5e-3


def check_values(folder: Path, packing: Packing, shard: ManifestShard) -> Iterator[Problem]:
    """Every row decodes to finite soft targets that agree with its shift, top-1 and log-sums."""
    try:
        reader = open_shard(folder, shard.name, packing)
        for block in in_pieces(reader.read(0, reader.rows), len(packing.identity.classes)):
            rows = np.repeat(np.arange(len(block)), np.diff(block.starts()))
            for message, bad in _bad_values(block, packing.identity):
                if bad.any():
                    keys = block.keys.take(pa.array(np.unique(rows[bad]))).to_pylist()
                    yield shard_problem("values", shard, f"{message} for {few(keys)}")
    except (DataError, KeyError) as error:
        yield shard_problem("values", shard, f"its rows cannot be read: {error}")


def check_coverage(
    folder: Path, packing: Packing, shard: ManifestShard, source: Source
) -> Iterator[Problem]:
    """The shard's keys are those of its source rows, in order, each once a view."""
    views = packing.identity.views
    try:
        reader = open_shard(folder, shard.name, packing)
        stored = reader.keys().combine_chunks()
        samples = source.keys(shard.segments)
        wanted = samples.take(pa.array(np.arange(len(samples)).repeat(views)))
    except (DataError, KeyError) as error:
        yield shard_problem("coverage", shard, f"its keys cannot be compared: {error}")
        return
    if stored.equals(wanted):
        return
    missing = pc.filter(wanted, pc.invert(pc.is_in(wanted, stored))).to_pylist()
    extra = pc.filter(stored, pc.invert(pc.is_in(stored, wanted))).to_pylist()
    if missing:
        yield shard_problem("coverage", shard, f"lacks {len(missing)} keys: {few(missing)}")
    if extra:
        yield shard_problem("coverage", shard, f"holds {len(extra)} foreign keys: {few(extra)}")
    if pc.count_distinct(stored).as_py() * views != len(stored):
        times = "twice" if views == 1 else f"other than {views} times"
        yield shard_problem("coverage", shard, f"holds a key {times}")
    elif not missing and not extra:
        yield shard_problem("coverage", shard, "holds its keys in another order than the source")


def check_unlabelled(
    manifest: Manifest, source: Source, rejects: Sequence[Reject] = ()
) -> Iterator[Problem]:
    """Every row of the source belongs to a shard of the aligned set, but those in `rejects`.

    Of a set with a limit, others may be missing too.
    """
    if manifest.limit is not None:
        return
    labelled = Counter(reject.source for reject in rejects)
    for shard in manifest.shards:
        for part in shard.segments:
            labelled[part.source] += part.rows
    for file in source.files:
        lacking = file.rows - labelled[file.name]
        if lacking > 0:
            message = f"{source.place(file.name)} has {lacking} samples without labels"
            yield Problem(kind="coverage", shard=None, message=message)


def check_rejected(
    folder: Path, packing: Packing, manifest: Manifest, rejects: Sequence[Reject], source: Source
) -> Iterator[Problem]:
    """What is left out are samples of the source, by key and row, and none of them has a label."""
    by_source: dict[str, list[Reject]] = {}
    for reject in rejects:
        by_source.setdefault(reject.source, []).append(reject)
    rows = {file.name: file.rows for file in source.files}
    for name, those in by_source.items():
        whole = Segment(source=name, first=0, rows=rows.get(name, 0))
        keys = source.keys([whole]) if name in rows else ()
        wrong = [r.key for r in those if r.row >= len(keys) or keys[r.row].as_py() != r.key]
        if wrong:
            message = f"{REJECTS_FILE} lists {few(wrong)}, which {name} does not hold there"
            yield Problem(kind="coverage", shard=None, message=message)
    gone = pa.array([reject.key for reject in rejects], pa.string())
    for shard in manifest.shards:
        try:
            stored = open_shard(folder, shard.name, packing).keys().combine_chunks()
        except (DataError, KeyError):
            continue  # another check's to tell
        both = stored.filter(pc.is_in(stored, gone)).to_pylist()
        if both:
            yield shard_problem("coverage", shard, f"labels {few(both)}, listed as left out")


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
    folder: Path, manifest: Manifest, shard: ManifestShard, source: Source
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
                message=f"{source.place(recorded.name)} changed since {shard.name} labelled it",
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
    if block.features is not None:
        yield "a feature is not finite", ~np.asarray(np.isfinite(block.features).all(axis=1))
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
