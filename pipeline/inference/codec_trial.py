"""Trying codecs on what a teacher says: bytes a sample as written, what is lost, and speed.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.codec import encode_rows, features_to_half
from softlabel.pipeline.codecs.numerics import Floats, log_softmax
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.layouts import ShardWriter, shard_path, writing_shard
from softlabel.pipeline.shards.packing import Packing
from softlabel.schemas.sample import SampleBlock, TeacherOutput

Losses = npt.NDArray[np.float64]
# Rows are compared in chunks of so many values: float64 copies of them must stay small.
CHUNK_VALUES = 2**19


@dataclass
class Trial:
    """What one packing made of the rows it was given.

    bytes_a_row: of a shard, as written, without what a shard takes when it is empty
    (`bytes_a_shard`). kl: KL(softmax(z/T) || softmax(stored/T)) of each row in nats, and tv: half
    the sum of absolute differences of the two, a list of `[N]` a temperature. agreed: of the
    `positions`, which are the rows but of sequences, those whose decoded arg-max is the teacher's.
    refused: why the codec cannot store these rows.
    """

    packing: Packing
    kl: dict[float, list[Losses]]
    tv: dict[float, list[Losses]]
    rows: int = 0
    positions: int = 0
    agreed: int = 0
    encode_seconds: float = 0.0
    write_seconds: float = 0.0
    bytes_a_row: float = 0.0
    bytes_a_shard: int = 0
    refused: str | None = None


def try_packings(
    packings: Sequence[Packing],
    batches: Iterable[tuple[SampleBlock, TeacherOutput]],
    folder: Path,
) -> list[Trial]:
    """Write `batches` in every packing to a shard in `folder`, and compare what is read back.

    Compared at the packings' own temperatures. The memory taken does not depend on the number of
    batches.
    """
    trials = [_new_trial(packing, folder, index) for index, packing in enumerate(packings)]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(writing_shard(folder, f"trial-{index}", packing))
            for index, packing in enumerate(packings)
        ]
        for samples, output in batches:
            for trial, writer in zip(trials, writers, strict=True):
                if trial.refused is None:
                    _add(trial, writer, samples, output)
        for trial, writer in zip(trials, writers, strict=True):
            _finish(trial, writer)
    return trials


def divergences(logits: Floats, stored: Floats, T: float) -> tuple[Losses, Losses]:
    """KL in nats and total variation at T of every row, float64 `[N]` each."""
    kl, tv = np.empty(len(logits)), np.empty(len(logits))
    step = max(1, CHUNK_VALUES // logits.shape[1])
    for first in range(0, len(logits), step):
        part = slice(first, first + step)
        full = log_softmax(logits[part].astype(np.float64) / T)
        kept = log_softmax(stored[part].astype(np.float64) / T)
        mass = np.exp(full)
        # A masked class has no mass on either side; its -inf - -inf must not count.
        with np.errstate(invalid="ignore"):
            terms = np.where(mass == 0, 0.0, mass * (full - kept))
        kl[part] = np.maximum(terms.sum(axis=1), 0)
        tv[part] = np.abs(mass - np.exp(kept)).sum(axis=1) / 2
    return kl, tv


def _new_trial(packing: Packing, folder: Path, index: int) -> Trial:
    name = f"empty-{index}"
    with writing_shard(folder, name, packing) as writer:
        size, _ = writer.finish()
    shard_path(folder, name, packing).unlink()
    temperatures = packing.identity.temperatures
    return Trial(
        packing, {T: [] for T in temperatures}, {T: [] for T in temperatures}, bytes_a_shard=size
    )


def _add(trial: Trial, writer: ShardWriter, samples: SampleBlock, output: TeacherOutput) -> None:
    codec = trial.packing.codec
    begin = time.perf_counter()
    try:
        rows = encode_rows(codec, output.logits, output.features)
        features = _stored_features(trial.packing, output)
    except ValueError as error:
        trial.refused = f"{error.args[0]} (key {samples.keys[error.args[1]].as_py()!r})"
        return
    encoded = time.perf_counter()
    block = LabelBlock(
        samples.keys,
        samples.flat_labels,
        rows.top1,
        rows.shift,
        rows.columns,
        codec,
        samples.views,
        samples.lengths,
        features,
    )
    writer.append(block)
    trial.encode_seconds += encoded - begin
    trial.write_seconds += time.perf_counter() - encoded
    trial.rows += len(block)
    trial.positions += len(block.top1)
    for index, T in enumerate(trial.kl):
        stored = block.logits(T)
        if index == 0:
            trial.agreed += int((stored.argmax(axis=1) == output.logits.argmax(axis=1)).sum())
        kl, tv = divergences(output.logits, stored, T)
        trial.kl[T].append(kl)
        trial.tv[T].append(tv)


def _stored_features(packing: Packing, output: TeacherOutput) -> npt.NDArray[np.float16] | None:
    if packing.identity.features is None:
        return None
    assert output.features is not None
    return features_to_half(output.features)


def _finish(trial: Trial, writer: ShardWriter) -> None:
    if trial.refused is not None:
        writer.abandon()
        return
    begin = time.perf_counter()
    size, _ = writer.finish()
    trial.write_seconds += time.perf_counter() - begin
    trial.bytes_a_row = (size - trial.bytes_a_shard) / trial.rows
