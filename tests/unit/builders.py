"""Small sources and label sets whose keys, pictures and logits all tell the sample's number.

So a test can ask of any row whether its parts belong together, without a table of its own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.codecs.codec import Columns, ShiftedRows, shift_rows
from softlabel.pipeline.codecs.make import make_codec
from softlabel.pipeline.inference.plan import plan_shards
from softlabel.pipeline.inference.runner import label_shards
from softlabel.pipeline.labelset.closing import close
from softlabel.pipeline.publish import publish_bytes
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.parquet import write_source_shard
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.labelset import (
    PLAN_FILE,
    ExecutionRecord,
    Identity,
    Plan,
    canonical_json,
)
from softlabel.schemas.sample import SampleBlock, TeacherOutput
from softlabel.schemas.teacher import Preprocess

CLASSES = ("ant", "bee", "cat", "dog")
TEMPERATURES = (1.0, 4.0)
SHAPE = (2, 3, 1)
SHIFT = 5.0


class Half(NamedTuple):
    """Rows packed by `dense-f16`, with the parts that tests look at by name."""

    rows: ShiftedRows
    columns: Columns
    payload: npt.NDArray[np.float16]
    lse: npt.NDArray[np.float32]
    shift: npt.NDArray[np.float32]
    top1: npt.NDArray[np.unsignedinteger]


def encode_half(logits: npt.NDArray[np.float32], temperatures: Sequence[float]) -> Half:
    codec = make_codec("dense-f16", logits.shape[1], temperatures)
    rows = shift_rows(logits)
    columns = codec.encode(rows)
    return Half(rows, columns, columns["logits"], columns["lse"], rows.shift, rows.top1)


def samples(rows: int, first: int = 0, unlabelled: int | None = None) -> SampleBlock:
    """Samples number `first` and on, all with a hard label but every so-many-th where asked."""
    numbers = np.arange(first, first + rows)
    pixels = np.zeros((rows, 6), np.uint8)
    pixels[:, :4] = numbers.astype("<u4").view(np.uint8).reshape(rows, 4)
    keys = pa.array([f"n{number}" for number in numbers], pa.string())
    bare = None if unlabelled is None else numbers % unlabelled == 0
    labels = pa.array((numbers % len(CLASSES)).astype(np.int32), mask=bare)
    return SampleBlock(keys, pixels.reshape(rows, *SHAPE), labels)


def teach(pixels: npt.NDArray[np.uint8]) -> TeacherOutput:
    return TeacherOutput(teacher(pixels))


def teacher(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Logits `[N, 4]` that tell the number of each picture and survive float16."""
    numbers = numbers_of_pixels(pixels)
    columns = [0 * numbers, -1 - numbers % 1000, -1 - numbers // 1000, -1 - numbers % 7]
    return np.asarray(np.stack(columns, axis=1) + SHIFT, np.float32)


def numbers_of_keys(keys: pa.StringArray) -> list[int]:
    return [int(key.removeprefix("n")) for key in keys.to_pylist()]


def numbers_of_pixels(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    flat = np.ascontiguousarray(pixels.reshape(len(pixels), 6)[:, :4])
    return flat.view("<u4")[:, 0].astype(np.int64)


def numbers_of_logits(shifted: npt.NDArray[Any]) -> list[int]:
    wide = shifted.astype(np.int64)
    return ((-1 - wide[:, 1]) + 1000 * (-1 - wide[:, 2])).tolist()  # type: ignore[no-any-return]


def write_source(
    folder: Path,
    shard_rows: tuple[int, ...],
    classes: tuple[str, ...] = CLASSES,
    first: int = 0,
    unlabelled: int | None = None,
) -> Source:
    """A source of consecutive numbers, cut into shards of `shard_rows`."""
    folder.mkdir(parents=True)
    for index, rows in enumerate(shard_rows):
        block = samples(rows, first, unlabelled)
        write_source_shard(folder / f"part-{index:05d}.parquet", block, classes)
        first += rows
    return open_source(folder)


def make_plan(source: Source, batch_size: int = 4, shard_rows: int = 65536) -> Plan:
    return Plan(
        identity=make_identity(source),
        execution=ExecutionRecord(
            provider="CPUExecutionProvider",
            device="a test",
            precision="float32",
            batch_size=batch_size,
            threads=1,
            onnxruntime="0",
        ),
        shards=plan_shards(source.files, batch_size, shard_rows),
    )


def make_identity(source: Source) -> Identity:
    height, width, channels = source.shape
    return Identity(
        teacher_sha256=("0" * 64,),
        preprocess=Preprocess(
            height=height, width=width, channels=channels, mean=(0.5,), std=(0.5,)
        ),
        classes=source.classes,
        class_map=None,
        output="logits",
        output_kind="logits",
        source=source.files,
        temperatures=TEMPERATURES,
        codec="dense-f16",
    )


def write_labels(
    folder: Path,
    source: Source,
    batch_size: int = 4,
    shard_rows: int = 65536,
    teach: Callable[[npt.NDArray[np.uint8]], TeacherOutput] = teach,
    **identity: object,
) -> Path:
    """A complete label set of `source` by `teacher` or another, made as `infer` makes it.

    identity: fields of the identity that shall be others than those of `make_identity`.
    """
    plan = make_plan(source, batch_size, shard_rows)
    plan = plan.model_copy(update={"identity": plan.identity.model_copy(update=identity)})
    folder.mkdir(parents=True)
    publish_bytes(folder / PLAN_FILE, canonical_json(plan))
    label_shards(plan, batch_size, plan.shards, source, teach, folder, lambda rows: None)
    close(folder, plan)
    return folder
