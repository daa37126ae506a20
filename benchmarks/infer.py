"""`infer` end to end against a bare `session.run` loop on the same batches, in one process.

usage: python benchmarks/infer.py WORK --data FOLDER_OF_IDX_FILES [--rounds 3] [--batch-size 256]

The bare loop holds every batch in memory, keeps nothing of the result and pads its last batch as
`infer` does. The two alternate, so that a machine whose speed drifts hurts both; printed are the
medians and the ratio of each round. `infer` reads the source from disk, encodes, writes and syncs
the label set, checks its keys and publishes the manifest.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime

from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.devices import cpu_name, cpu_threads
from softlabel.pipeline.teachers.session import TeacherSession
from softlabel.pipeline.teachers.teacher import open_teacher
from softlabel.schemas.labelset import Segment
from softlabel.schemas.params import ExportParams, InferParams, PrepareParams, TrainParams
from softlabel.schemas.sample import Array
from softlabel.stages import export, infer, prepare, train_student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=16, help="of the convolutional teacher")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    arguments = parser.parse_args()
    params = _world(arguments)
    source = open_source(params.source)
    teacher = open_teacher(params.teacher[0], params, source.shape)
    session = TeacherSession(teacher, params.device, params.batch_size)
    batches = _preload(source, params.batch_size)
    session.run(batches[0])
    rounds = []
    for _ in range(arguments.rounds):
        bare = _bare_pass(session, batches)
        shutil.rmtree(params.output, ignore_errors=True)
        begin = time.perf_counter()
        report = infer.run(params)
        rounds.append((bare, report.seconds, time.perf_counter() - begin, report))
    _print(arguments, source.rows, rounds)


def _world(arguments: argparse.Namespace) -> InferParams:
    """Fashion-MNIST as a source, and a teacher trained on a small part of it."""
    work: Path = arguments.work
    if not (work / "data/train").exists():
        prepare.run(PrepareParams(format="idx", path=arguments.data, output=work / "data"))
    teacher = work / f"teacher-{arguments.width}.onnx"
    if not teacher.exists():
        trained = work / f"teacher-{arguments.width}"
        train_student.run(
            TrainParams(
                model="softlabel.pipeline.small_models:conv_net",
                model_args={"width": arguments.width, "depth": 3},
                source=work / "data/test",
                epochs=1,
                logger="none",
                output=trained,
            )
        )
        export.run(ExportParams(model=str(trained / "student.json"), output=teacher))
    return InferParams(
        teacher=teacher,
        source=work / "data/train",
        output=work / "labels",
        batch_size=arguments.batch_size,
        device=arguments.device,
    )


def _preload(source: Source, batch_size: int) -> list[Array]:
    batches = []
    for file in source.files:
        for first in range(0, file.rows, batch_size):
            rows = min(batch_size, file.rows - first)
            segment = Segment(source=file.name, first=first, rows=rows)
            batches.append(np.array(source.read([segment]).inputs))
    return batches


def _bare_pass(session: TeacherSession, batches: list[Array]) -> float:
    begin = time.perf_counter()
    for batch in batches:
        session.run(batch)
    return time.perf_counter() - begin


def _print(arguments: argparse.Namespace, rows: int, rounds: list[tuple[float, ...]]) -> None:
    report = rounds[-1][3]
    assert isinstance(report, infer.InferReport)
    print(f"{report.device} ({report.provider}), {cpu_threads()} threads, {cpu_name()}")
    print(f"onnxruntime {onnxruntime.__version__}, {rows:,} rows, batch {arguments.batch_size}")
    bare, whole, called = (statistics.median(r[i] for r in rounds) for i in range(3))
    ratios = [r[0] / r[1] for r in rounds]
    print("| what | seconds | rows/s | share of the bare pass |\n|---|---|---|---|")
    for what, seconds, share in (
        ("bare session.run", bare, 1.0),
        ("infer, label set", whole, statistics.median(ratios)),
        ("infer, with session start", called, bare / called),
    ):
        print(f"| {what} | {seconds:.2f} | {rows / seconds:,.0f} | {share:.3f} |")
    print("ratios by round:", ", ".join(f"{ratio:.3f}" for ratio in ratios))
    print("busy seconds:", {name: round(value, 2) for name, value in report.busy.items()})


if __name__ == "__main__":
    main()
