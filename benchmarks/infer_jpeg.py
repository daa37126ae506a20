"""`infer` from JPEG against what bounds it and against the loops that people write.

usage: python benchmarks/infer_jpeg.py WORK --data FOLDER_OF_CIFAR10_JPEG_PARQUET [--pattern P]
       [--ray]

Pictures of 32x32 are scaled to 40 and cropped to 32. Rows of the table, in turn within each round:
the teacher alone on decoded pictures; decoding alone on all processors; `infer` from Parquet and
from WebDataset tars; a PyTorch loop over a DataLoader that ends in `torch.save`; a `session.run`
loop over a DataLoader that ends in `np.save`. Both loops decode with the same code in as many
worker processes as there are processors; they keep neither keys nor checksums. With --ray, where
Ray is installed, also its Data's `map_batches`, decoding in tasks and the teacher in an actor that
takes no processor from them, and `write_parquet`; its cluster is up before the clock runs, workers
and actor start with each run.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.pictures import decode
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.devices import cpu_name, cpu_threads
from softlabel.pipeline.teachers.models import PictureModel
from softlabel.pipeline.teachers.session import TeacherSession
from softlabel.pipeline.teachers.teacher import open_teacher
from softlabel.pipeline.training.student import load_student
from softlabel.schemas.labelset import Segment
from softlabel.schemas.params import ExportParams, InferParams, TrainParams
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import Framing
from softlabel.stages import export, infer, train_student

RESIZE, SIDE = 40, 32
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pattern", default="train-*.parquet", help="of the files to label")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=16, help="of the convolutional teacher")
    parser.add_argument("--ray", action="store_true", help="compare with Ray Data too")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    parquet = arguments.data / arguments.pattern
    files = sorted(arguments.data.glob(arguments.pattern))
    card, teacher = _teacher(work, arguments.data, arguments.width)
    tars = _tars(work / "tars", files)
    params = InferParams(teacher=teacher, source=parquet, output=work / "labels", batch_size=BATCH)
    opened = open_teacher(teacher, params, (SIDE, SIDE, 3))
    assert opened.spec.preprocess is not None
    framing = opened.spec.preprocess.framing
    source = open_source(parquet).framed(framing, "the teacher")
    session = TeacherSession(opened, params.device, BATCH)
    pixels = _decoded(source)
    pictures = Pictures(files, framing)
    student = load_student(card)[1]
    ways: dict[str, Callable[[], object]] = {
        "teacher alone, pictures decoded": lambda: [session.run(batch) for batch in pixels],
        "decoding alone, all processors": lambda: _decoded(source.reopen(), keep=False),
        "`infer` from Parquet": lambda: _infer(params),
        "`infer` from tars": lambda: _infer(params.model_copy(update={"source": tars})),
        "PyTorch, DataLoader, `torch.save`": lambda: _pytorch(pictures, student, work / "peer.pt"),
        "`session.run`, DataLoader, `np.save`": lambda: _onnx(pictures, session, work / "peer.npy"),
    }
    if arguments.ray:
        rays = RayRun(files, framing, teacher, params, work / "ray")
        ways["Ray Data, `map_batches`, `write_parquet`"] = rays
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    _print(source.rows, seconds)


class Pictures(Dataset[Array]):
    """The encoded pictures in memory, decoded one by one as a DataLoader asks."""

    def __init__(self, files: list[Path], framing: Framing) -> None:
        self._framing = framing
        tables = [pq.read_table(file, columns=["image"])["image"] for file in files]
        self._data = [item["bytes"] for table in tables for item in table.to_pylist()]

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> Array:
        return decode(self._data[row], self._framing).copy()


def _teacher(work: Path, data: Path, width: int) -> tuple[Path, Path]:
    folder, path = work / f"teacher-{width}", work / f"teacher-{width}.onnx"
    if not path.exists():
        train_student.run(
            TrainParams(
                model="softlabel.pipeline.small_models:conv_net",
                model_args={"width": width, "depth": 3, "channels": 3},
                source=data / "test-*.parquet",
                height=SIDE,
                width=SIDE,
                resize=RESIZE,
                interpolation="bicubic",
                epochs=1,
                logger="none",
                output=folder,
            )
        )
        export.run(ExportParams(model=str(folder / "student.json"), output=path))
    return folder / "student.json", path


def _tars(folder: Path, files: list[Path]) -> Path:
    """The same pictures as WebDataset tars of 5,000 samples."""
    if not folder.exists():
        folder.mkdir()
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        for number, first in enumerate(range(0, len(rows), 5000)):
            with tarfile.open(folder / f"train-{number:05d}.tar", "w") as tar:
                for row in range(first, min(first + 5000, len(rows))):
                    _add(tar, f"{row:06d}.cls", str(rows[row]["label"]).encode())
                    _add(tar, f"{row:06d}.jpg", rows[row]["image"]["bytes"])
    return folder


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _decoded(source: Source, *, keep: bool = True) -> list[Array]:
    batches = []
    for file in source.files:
        for first in range(0, file.rows, BATCH):
            rows = min(BATCH, file.rows - first)
            block = source.read([Segment(source=file.name, first=first, rows=rows)])
            if keep:
                batches.append(block.inputs)
    return batches


def _infer(params: InferParams) -> None:
    shutil.rmtree(params.output, ignore_errors=True)
    report = infer.run(params.model_copy(update={"allow_bad_teacher": True}))
    busy = ", ".join(f"{name} {value:.2f}" for name, value in report.busy.items())
    print(f"  {params.source.name}: {busy} s of {report.seconds:.2f}; bound: {report.bound}")


def _loader(pictures: Pictures) -> DataLoader[Array]:
    return DataLoader(pictures, BATCH, num_workers=cpu_threads())


def _pytorch(pictures: Pictures, model: PictureModel, path: Path) -> None:
    model.eval()
    with torch.no_grad():
        torch.save(torch.cat([model(batch) for batch in _loader(pictures)]), path)


def _onnx(pictures: Pictures, session: TeacherSession, path: Path) -> None:
    logits = [session.run(batch.numpy()).logits for batch in _loader(pictures)]
    np.save(path, np.concatenate(logits))


class RayRun:
    """The same work by Ray Data on this machine's processors."""

    def __init__(
        self, files: list[Path], framing: Framing, teacher: Path, params: InferParams, output: Path
    ) -> None:
        import ray

        ray.init(num_cpus=cpu_threads(), include_dashboard=False, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        self._files = [str(file) for file in files]
        self._framing, self._output = framing, output
        self._teacher = {"teacher": teacher, "params": params}

    def __call__(self) -> None:
        import ray

        shutil.rmtree(self._output, ignore_errors=True)
        decoded = ray.data.read_parquet(self._files).map_batches(
            _ray_decode, batch_size=BATCH, fn_kwargs={"framing": self._framing}
        )
        labelled = decoded.map_batches(
            RayTeacher,
            batch_size=BATCH,
            num_cpus=0,
            compute=ray.data.ActorPoolStrategy(size=1),
            fn_constructor_kwargs=self._teacher,
        )
        labelled.write_parquet(str(self._output))


class RayTeacher:
    """The session in an actor."""

    def __init__(self, teacher: Path, params: InferParams) -> None:
        opened = open_teacher(teacher, params, (SIDE, SIDE, 3))
        self._session = TeacherSession(opened, params.device, BATCH)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"label": batch["label"], "logits": self._session.run(batch["pixels"]).logits}


def _ray_decode(batch: dict[str, Any], framing: Framing) -> dict[str, Any]:
    pixels = np.stack([decode(item["bytes"], framing) for item in batch["image"]])
    return {"label": batch["label"], "pixels": pixels}


def _print(rows: int, seconds: dict[str, list[float]]) -> None:
    print(f"{cpu_name()}, {cpu_threads()} threads, onnxruntime {onnxruntime.__version__}")
    print(f"{rows:,} JPEG pictures, batch {BATCH}; bound: the slower of the first two rows")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first, second, *_ = seconds
    bounds = [max(pair) for pair in zip(seconds[first], seconds[second], strict=True)]
    together = [sum(pair) for pair in zip(seconds[first], seconds[second], strict=True)]
    print("| what | seconds | pictures/s | share of the bound | share of both in turn |")
    print("|---|---|---|---|---|")
    for name, values in seconds.items():
        share = statistics.median(b / v for b, v in zip(bounds, values, strict=True))
        both = statistics.median(b / v for b, v in zip(together, values, strict=True))
        rate = rows / medians[name]
        print(f"| {name} | {medians[name]:.2f} | {rate:,.0f} | {share:.3f} | {both:.3f} |")


if __name__ == "__main__":
    main()
