"""What stored labels cost and save in training, and the loader against plain ones.

usage: python benchmarks/train.py WORK [--rounds 3] [--pictures 4096] [--arrays N] [--only PART]

Made-up pictures of 1,000 classes: arrays of 32x32, and JPEG of 96x96 in WebDataset tars and
Parquet; a random convolutional teacher labels each by `infer` in `dense-f16`. Ratios are taken
within a round, whose sides follow each other, and their median over the rounds is printed. Of
processor time the least of the rounds is taken: other work beside the benchmark only adds. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

import softlabel
from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.small_models import conv_net
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.teachers.devices import cpu_name
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.spans import Steps
from softlabel.pipeline.training.targets import stored_targets
from softlabel.schemas.params import ExportParams, InferParams
from softlabel.stages import export, infer

CLASSES = 1000
BATCH = 256
ARRAY_SIDE, PICTURE_SIDE = 32, 96
TAR_ROWS = 512
TEACHER = {"channels": 3, "width": 32, "depth": 3}
TINY = {"channels": 3, "width": 8, "depth": 2}

# What is mapped is not counted: the kernel takes it back when it likes.
HELD = """
import sys, threading, time, softlabel
held = []
def look():
    while True:
        with open("/proc/self/status") as status:
            held.extend(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))
        time.sleep(0.002)
threading.Thread(target=look, daemon=True).start()
for batch in softlabel.torch.DistillationDataset(*sys.argv[1:], batch_size=256, shuffle_rows=16384):
    pass
print(max(held))
"""

DistillationDataset = softlabel.torch.DistillationDataset


class Inputs(NamedTuple):
    """One source with its labels, and the loaders that others would read it with."""

    name: str
    source: Path
    labels: Path
    plain: dict[str, Callable[[int], Iterable[Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=4096, help="JPEG pictures")
    parser.add_argument("--arrays", type=int, default=131072, help="pictures stored as arrays")
    parts = {"loaders": _print_loaders, "labels": _print_label_path, "steps": _print_steps}
    parts |= {"epochs": _print_epochs, "memory": _print_memory}
    parser.add_argument("--only", choices=parts, action="append")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arrays = _arrays(arguments.work, arguments.arrays)
    pictures = [_tars(arguments.work, arguments.pictures), _parquet(arguments.work)]
    print(f"{cpu_name()}, {torch.get_num_threads()} threads; torch {torch.__version__}; ", end="")
    print(f"webdataset {webdataset.__version__}; {arguments.rounds} rounds, batches of {BATCH}")
    for part in arguments.only or parts:
        parts[part]([arrays, *pictures], arguments.rounds)


def _print_loaders(worlds: list[Inputs], rounds: int) -> None:
    print("\n| inputs | loader | workers | samples/s | with labels / this | CPU us a sample |")
    print("|---|---|---|---|---|---|")
    for world in worlds:
        for workers in (0, 2):
            ways = {name: partial(make, workers) for name, make in world.plain.items()}
            for name, labels in (("without labels", None), ("with labels", world.labels)):
                dataset = DistillationDataset(world.source, labels, batch_size=BATCH)
                ways[f"softlabel {name}"] = partial(_batches, dataset, workers)
            _print_rows(world.name, workers, _timed(ways, rounds))


def _batches(dataset: Any, workers: int) -> Iterable[Any]:
    return DataLoader(dataset, batch_size=None, num_workers=workers)


class Pass(NamedTuple):
    """One pass over the inputs: samples, and seconds by the clock and of all processors."""

    rows: int
    seconds: float
    processors: float


def _timed(ways: dict[str, Callable[[], Iterable[Any]]], rounds: int) -> dict[str, list[Pass]]:
    """The passes of every round; the first of each way is not counted."""
    passes: dict[str, list[Pass]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            begin, used = time.perf_counter(), _processors()
            rows = sum(len(batch[0]) for batch in way())
            seconds = time.perf_counter() - begin
            passes[name].append(Pass(rows, seconds, _processors() - used))
    return {name: found[1:] for name, found in passes.items()}


def _processors() -> float:
    """Seconds that this process and the workers that have ended took of any processor."""
    return sum(os.times()[:4])


def _print_rows(inputs: str, workers: int, found: dict[str, list[Pass]]) -> None:
    own = [each.rows / each.seconds for each in found["softlabel with labels"]]
    for name, passes in found.items():
        rates = [each.rows / each.seconds for each in passes]
        ratio = statistics.median(mine / rate for mine, rate in zip(own, rates, strict=True))
        used = min(each.processors / each.rows for each in passes) * 1e6
        rate = statistics.median(rates)
        row = f"| {inputs} | {name} | {workers} | {rate:,.0f} | {ratio:.2f} | {used:,.0f} |"
        print(row, flush=True)


def _print_label_path(worlds: list[Inputs], rounds: int) -> None:
    """What the labels of a sample cost one thread, from the file to the tensor."""
    world = worlds[0]
    labels = open_labelset(world.labels)
    source = open_source(world.source, 0).naming(labels.classes)
    used: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds + 2):
        for labelled in used:
            joined = JoinedSamples(source.reopen(), labels.reopen() if labelled else None)
            begin = time.process_time()
            for batch in joined.batches(0, 0, 65536, Steps(joined.rows, 0, BATCH).spans()):
                if batch.block is not None:
                    stored_targets(batch.block, 1.0)
            used[labelled].append(time.process_time() - begin)
    cost = (min(used[True]) - min(used[False])) / source.rows * 1e6
    print(
        f"\nThe label's path: {cost:.2f} us of processor time a sample, dense-f16, pages checked."
    )


def _print_memory(worlds: list[Inputs], rounds: int) -> None:
    """What a process holds at the most that goes through N samples, and through 4N."""
    whole = worlds[0]
    work = whole.labels.parent
    rows = len(np.load(whole.source, mmap_mode="r")) // 4
    quarter = work / "quarter"
    quarter.mkdir(exist_ok=True)
    sides = {rows: _arrays(quarter, rows), 4 * rows: whole}
    print("\n| samples | most memory of the loading process, MB |")
    print("|---|---|")
    for rows, world in sides.items():
        command = [sys.executable, "-c", HELD, str(world.source), str(world.labels)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"| {rows:,} | {int(done.stdout) / 1024:.0f} |", flush=True)


def _print_steps(worlds: list[Inputs], rounds: int) -> None:
    import timm

    print("\n| student | batch | hard labels, ms a step | stored / hard | by processor time |")
    print("|---|---|---|---|---|")
    tiny = conv_net(CLASSES, **TINY)
    _print_step("tiny convolutional", worlds[0], tiny, BATCH, 30, rounds)
    _print_step(
        "ResNet-18", worlds[0], timm.create_model("resnet18", num_classes=CLASSES), 64, 12, rounds
    )


def _print_step(
    name: str, world: Inputs, model: nn.Module, batch: int, steps: int, rounds: int
) -> None:
    """The first steps of an epoch from stored labels and from hard labels alone."""
    soft = softlabel.torch.DistillationLoss()
    hard = softlabel.torch.DistillationLoss(loss="hard")
    sides = {"soft": (soft, world.labels), "hard": (hard, None)}
    walls: dict[str, list[float]] = {side: [] for side in sides}
    used: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, (criterion, labels) in sides.items():
            dataset = DistillationDataset(world.source, labels, batch_size=batch)
            taken = _steps(model, criterion, dataset)
            # What is read before the first step is the whole window's.
            next(taken)
            begin = time.process_time()
            walls[side].append(statistics.median(itertools.islice(taken, steps)))
            used[side].append(time.process_time() - begin)
    ratio = statistics.median(s / h for s, h in zip(walls["soft"], walls["hard"], strict=True))
    least = min(used["soft"]) / min(used["hard"])
    milliseconds = statistics.median(walls["hard"]) * 1e3
    print(f"| {name} | {batch} | {milliseconds:.0f} | {ratio:.3f} | {least:.3f} |", flush=True)


def _steps(
    model: nn.Module, criterion: nn.Module, batches: Any, teacher: nn.Module | None = None
) -> Iterator[float]:
    """The seconds of each step, from asking for its batch to having changed the weights."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    iterator = iter(batches)
    while True:
        begin = time.perf_counter()
        batch = next(iterator, None)
        if batch is None:
            return
        pixels = _floats(batch.pixels)
        targets = batch.targets
        if teacher is not None:
            with torch.no_grad():
                targets = teacher(pixels)
        loss = criterion(model(pixels), targets, batch.hard_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield time.perf_counter() - begin


def _floats(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - 0.5) / 0.5


def _print_epochs(worlds: list[Inputs], rounds: int) -> None:
    """An epoch from stored labels against one with the teacher in the loop."""
    world = worlds[0]
    student, teacher = conv_net(CLASSES, **TINY), _teacher().eval()
    criterion = softlabel.torch.DistillationLoss()
    ways: dict[str, Callable[[], Iterable[Any]]] = {
        "stored": lambda: _steps(student, criterion, _dataset(world, world.labels)),
        "online": lambda: _steps(student, criterion, _dataset(world, None), teacher),
        "teacher": lambda: _alone(teacher, _dataset(world, None)),
        "reading": lambda: _alone(nn.Identity(), _dataset(world, None)),
    }
    walls: dict[str, list[float]] = {name: [] for name in ways}
    used: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin, busy = time.perf_counter(), time.process_time()
            for _ in way():
                pass
            walls[name].append(time.perf_counter() - begin)
            used[name].append(time.process_time() - busy)
    print("\n| measured by | stored labels, s | teacher in the loop, s | gain | bound | share |")
    print("|---|---|---|---|---|---|")
    for kind, times in (("the clock", walls), ("processor time", used)):
        least = {name: min(seconds) for name, seconds in times.items()}
        alone = least["teacher"] - least["reading"]
        gain = least["online"] / least["stored"]
        bound = 1 + alone / (least["online"] - alone)
        row = f"| {kind} | {least['stored']:.1f} | {least['online']:.1f} | {gain:.2f} |"
        print(f"{row} {bound:.2f} | {gain / bound:.3f} |", flush=True)


def _dataset(world: Inputs, labels: Path | None) -> Any:
    return DistillationDataset(world.source, labels, batch_size=BATCH)


def _alone(model: nn.Module, dataset: Any) -> Iterator[None]:
    """A forward pass over each batch of an epoch."""
    for batch in dataset:
        with torch.no_grad():
            model(_floats(batch.pixels))
        yield


def _teacher() -> nn.Module:
    torch.manual_seed(0)
    return conv_net(CLASSES, **TEACHER)


def _labels(work: Path, source: Path, side: int) -> Path:
    """The teacher's labels of a source, made once."""
    folder = work / f"labels-{source.name}"
    weights, model = work / "teacher.safetensors", work / f"teacher-{side}.onnx"
    if not model.exists():
        save_file(_teacher().state_dict(), weights)
        export.run(
            ExportParams(
                model="softlabel.pipeline.small_models:conv_net",
                model_args=TEACHER,
                weights=weights,
                classes=_names(),
                height=side,
                width=side,
                channels=3,
                mean=(0.5,) * 3,
                std=(0.5,) * 3,
                output=model,
            )
        )
    infer.run(
        InferParams(
            teacher=model, source=source, output=folder, allow_bad_teacher=True, codec="dense-f16"
        )
    )
    return folder


def _names() -> tuple[str, ...]:
    return tuple(f"class-{number}" for number in range(CLASSES))


def _made_up(rows: int, side: int) -> np.ndarray:
    """Smooth pictures with some noise, uint8 `[rows, side, side, 3]`."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (rows, 4, 4, 3), np.uint8)
    grown = np.repeat(np.repeat(coarse, side // 4, axis=1), side // 4, axis=2)
    return grown // 2 + random.integers(0, 64, grown.shape, np.uint8)


def _arrays(work: Path, rows: int) -> Inputs:
    folder = work / "arrays"
    if not folder.exists():
        folder.mkdir()
        np.save(folder / "pictures.npy", _made_up(rows, ARRAY_SIDE))
        np.save(folder / "pictures.labels.npy", np.arange(rows) % CLASSES)
    source = folder / "pictures.npy"
    stored = Arrays(source, folder / "pictures.labels.npy")
    return Inputs(
        "arrays, 32x32",
        source,
        _labels(work, source, ARRAY_SIDE),
        {
            "DataLoader, a sample at a time": lambda workers: DataLoader(
                stored, BATCH, shuffle=True, num_workers=workers
            ),
            "DataLoader, a batch at a time": lambda workers: DataLoader(
                stored,
                None,
                sampler=BatchSampler(RandomSampler(stored), BATCH, False),
                num_workers=workers,
            ),
        },
    )


class Arrays(Dataset[Any]):
    """Mapped arrays by number, or by a list of numbers."""

    def __init__(self, pictures: Path, labels: Path) -> None:
        self._pictures = np.load(pictures, mmap_mode="r")
        self._labels = torch.from_numpy(np.load(labels))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: Any) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(np.array(self._pictures[row])), self._labels[row]


def _tars(work: Path, rows: int) -> Inputs:
    folder = work / "tars"
    if not folder.exists():
        folder.mkdir()
        encoded = [_jpeg(picture) for picture in _made_up(rows, PICTURE_SIDE)]
        for number, first in enumerate(range(0, rows, TAR_ROWS)):
            with tarfile.open(folder / f"train-{number:04d}.tar", "w") as tar:
                for row in range(first, min(first + TAR_ROWS, rows)):
                    _add(tar, f"{row:06d}.cls", str(row % CLASSES).encode())
                    _add(tar, f"{row:06d}.jpg", encoded[row])
        table = {
            "image": [
                {"bytes": data, "path": f"{row:06d}.jpg"} for row, data in enumerate(encoded)
            ],
            "label": [row % CLASSES for row in range(rows)],
        }
        pq.write_table(pa.table(table), work / "train.parquet", row_group_size=TAR_ROWS)
    urls = sorted(str(path) for path in folder.iterdir())

    def plain(workers: int) -> Any:
        return _batches(
            webdataset.WebDataset(urls, shardshuffle=len(urls))
            .shuffle(TAR_ROWS)
            .decode("rgb8")
            .to_tuple("jpg", "cls")
            .batched(BATCH),
            workers,
        )

    return Inputs(
        "JPEG 96x96 in tars", folder, _labels(work, folder, PICTURE_SIDE), {"webdataset": plain}
    )


def _parquet(work: Path) -> Inputs:
    path = work / "train.parquet"
    stored = Encoded(path)
    return Inputs(
        "JPEG 96x96 in Parquet",
        path,
        _labels(work, path, PICTURE_SIDE),
        {
            "DataLoader, a sample at a time": lambda workers: DataLoader(
                stored, BATCH, shuffle=True, num_workers=workers
            )
        },
    )


class Encoded(Dataset[Any]):
    """Encoded pictures of a Parquet file, held in memory and decoded one by one."""

    def __init__(self, path: Path) -> None:
        table = pq.read_table(path)
        self._data = [image["bytes"] for image in table["image"].to_pylist()]
        self._labels = table["label"].to_pylist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        picture = Image.open(io.BytesIO(self._data[row])).convert("RGB")
        return torch.from_numpy(np.array(picture)), self._labels[row]


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
