"""Whether `infer`'s steps overlap: each one slowed in turn, the wall time against that step's own.

    python benchmarks/overlap.py

A step that is slowed sleeps 30 ms a batch, the others 5 ms; 60 batches of 64 digits-sized rows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.codecs.codec import encode_rows
from softlabel.pipeline.inference import runner
from softlabel.pipeline.inference.plan import plan_shards
from softlabel.pipeline.publish import publish_bytes
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.labelset import PLAN_FILE, Identity, Plan, canonical_json
from softlabel.schemas.sample import TeacherOutput
from softlabel.schemas.teacher import Preprocess

SLOW, FAST = 0.030, 0.005
BATCHES, ROWS = 60, 64
SHAPE = (8, 8, 1)
CLASSES = tuple("0123456789")
STEPS = ("decode", "teacher", "encode", "write")


class Shard:
    """Rows that are made as they are read, after a nap."""

    name, rows, bytes, stated = "part-00000", BATCHES * ROWS, 1, None

    def __init__(self, nap: float) -> None:
        self._nap = nap

    def read(self, first: int, rows: int) -> Iterator[ShardRows]:
        """All rows in one piece."""
        time.sleep(self._nap)
        keys = pa.array([f"n{row}" for row in range(first, first + rows)], pa.string())
        yield ShardRows(keys, np.zeros((rows, *SHAPE), np.uint8), pa.nulls(rows, pa.int32()))

    def keys(self) -> pa.StringArray:
        """Unused here."""
        return pa.array([], pa.string())

    def sha256(self) -> str:
        """Of nothing."""
        return "0" * 64

    def reopen(self) -> Shard:
        """The same."""
        return self

    def close(self) -> None:
        """Nothing is open."""


def main() -> None:
    """Print one line a slowed step."""
    print("slowed    wall s   its own s   wall / own   named as the bound")
    for step in STEPS:
        wall, own, bound = run({name: SLOW if name == step else FAST for name in STEPS})
        print(f"{step:8}  {wall:6.2f}  {own:10.2f}  {wall / own:11.3f}   {bound}")


def run(naps: dict[str, float]) -> tuple[float, float, str]:
    """Wall time, the slowest step's own time, and the step that the end line names."""
    source = Source(Path("made"), [Shard(naps["decode"])], CLASSES, SHAPE)
    plan = Plan(
        identity=Identity(
            teacher_sha256=("0" * 64,),
            preprocess=Preprocess(
                height=SHAPE[0], width=SHAPE[1], channels=1, mean=(0.5,), std=(0.5,)
            ),
            classes=CLASSES,
            output="logits",
            output_kind="logits",
            source=source.files,
            temperatures=(1.0, 2.0, 4.0, 8.0),
            codec="dense-f16",
        ),
        shards=plan_shards(source.files, ROWS, BATCHES * ROWS),
    )

    def teacher(pixels: npt.NDArray[np.uint8]) -> TeacherOutput:
        time.sleep(naps["teacher"])
        return TeacherOutput(np.eye(10, dtype=np.float32)[np.arange(len(pixels)) % 10])

    restore = slowed(naps)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            publish_bytes(folder / PLAN_FILE, canonical_json(plan))
            begin = time.perf_counter()
            busy = runner.label_shards(
                plan, ROWS, plan.shards, source, teacher, folder, lambda rows: None
            )
            wall = time.perf_counter() - begin
    finally:
        restore()
    return wall, max(vars(busy).values()), busy.bound()


def slowed(naps: dict[str, float]) -> Callable[[], None]:
    """Put naps into encoding and writing; returns what takes them out again."""
    encode, writing = encode_rows, runner.writing_shard

    def slow_encode(*arguments: Any) -> Any:
        time.sleep(naps["encode"])
        return encode(*arguments)

    def slow_writing(*arguments: Any) -> Any:
        return _Napping(writing(*arguments), naps["write"])

    runner.encode_rows = slow_encode
    runner.writing_shard = slow_writing  # type: ignore[assignment]

    def restore() -> None:
        runner.encode_rows = encode
        runner.writing_shard = writing

    return restore


class _Napping:
    """A shard's writer whose `append` takes a nap."""

    def __init__(self, inner: Any, nap: float) -> None:
        self._inner = inner
        self._nap = nap

    def __enter__(self) -> Any:
        writer = self._inner.__enter__()
        append = writer.append

        def slow(block: Any) -> None:
            time.sleep(self._nap)
            append(block)

        writer.append = slow
        return writer

    def __exit__(self, *raised: Any) -> Any:
        return self._inner.__exit__(*raised)


if __name__ == "__main__":
    main()
