"""What views cost: processor time a picture for decoding, framing and augmenting.

usage: python benchmarks/views.py [--pictures N]

JPEG pictures of 500x375 for a teacher of 224x224, decoded by one thread. Each recipe is timed with
one and with four views a picture, and its transforms also as torchvision runs them by itself,
drawing from torch's global generator: the difference is what a generator a view costs. Then two
threads make views as `infer` has them do, in turn with two processes that hand nothing back: what
the interpreter's lock costs.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from softlabel.pipeline.sources.augmenting import apply, build
from softlabel.pipeline.sources.pictures import Decoder, decoded, framed
from softlabel.pipeline.sources.views import Views, augmentation_here
from softlabel.pipeline.teachers.devices import cpu_name
from softlabel.schemas.augment import (
    AnyTransform,
    ColorJitter,
    HorizontalFlip,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
)
from softlabel.schemas.teacher import Framing

FRAMING = Framing(height=224, width=224, channels=3, resize=256, interpolation="bicubic")
RECIPES: dict[str, tuple[AnyTransform, ...]] = {
    "crop, flip": (RandomResizedCrop(), HorizontalFlip()),
    "crop, flip, RandAugment, erasing": (
        RandomResizedCrop(),
        HorizontalFlip(),
        RandAugment(),
        RandomErasing(),
    ),
    "crop, flip, colour jitter": (
        RandomResizedCrop(),
        HorizontalFlip(),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    ),
}
ROUNDS = 5
TURNS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=64)
    count = parser.parse_args().pictures
    torch.set_num_threads(1)
    pictures = [_jpeg(seed) for seed in range(count)]
    images = [decoded(picture, 3) for picture in pictures]
    keys = pa.array([f"{number:04d}.jpg" for number in range(count)])
    alone = Decoder(0)
    print(f"{cpu_name()}, torch {torch.__version__}; milliseconds of one processor a picture")
    print(f"decode            {_timed(lambda: [decoded(p, 3) for p in pictures], count):6.2f}")
    print(f"frame             {_timed(lambda: [framed(i, FRAMING) for i in images], count):6.2f}")
    print(f"{'recipe':<34}{'1 view':>8}{'4 views':>9}{'augment':>9}{'global':>8}")
    for name, transforms in RECIPES.items():
        cells = []
        for each in (1, 4):
            views = Views(augmentation_here(transforms), 0, each, FRAMING)
            numbers = np.tile(np.arange(each), (count, 1))
            cells.append(
                _timed(lambda v=views, n=numbers: v.make_all(pictures, keys, n, alone), count)
            )
        steps = build(transforms, (224, 224))
        cells.append(
            _timed(lambda s=steps: [apply(s, i, row) for row, i in enumerate(images)], count)
        )
        cells.append(_timed(lambda s=steps: [_by_itself(s, image) for image in images], count))
        print(f"{name:<34}{cells[0]:>8.2f}{cells[1]:>9.2f}{cells[2]:>9.2f}{cells[3]:>8.2f}")

    print(f"{'recipe':<34}{'threads':>9}  of the rate of processes")
    for name in RECIPES:
        print(f"{name:<34}{_threads_to_processes(name, pictures):>9.2f}")


def _threads_to_processes(name: str, pictures: list[bytes]) -> float:
    """How fast two threads are where two processes are 1, by the clock, in the median."""
    halves = pictures[::2], pictures[1::2]
    start, end = multiprocessing.Barrier(3), multiprocessing.Barrier(3)
    workers = [
        multiprocessing.Process(target=_make_often, args=(name, half, start, end))
        for half in halves
    ]
    for worker in workers:
        worker.start()
    ratios = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        _make(name, pictures, 2)
        threads = time.perf_counter() - begin
        begin = time.perf_counter()
        start.wait()
        end.wait()
        ratios.append((time.perf_counter() - begin) / threads)
    for worker in workers:
        worker.join()
    return statistics.median(ratios)


def _make_often(name: str, pictures: list[bytes], start: Barrier, end: Barrier) -> None:
    for _ in range(TURNS):
        start.wait()
        _make(name, pictures, 0)
        end.wait()


def _make(name: str, pictures: list[bytes], threads: int) -> None:
    views = Views(augmentation_here(RECIPES[name]), 0, 1, FRAMING)
    keys = pa.array([f"{number:04d}.jpg" for number in range(len(pictures))])
    views.make_all(pictures, keys, np.zeros((len(pictures), 1), np.int64), Decoder(threads))


def _by_itself(steps: list[Callable[[Image.Image], Image.Image]], image: Image.Image) -> None:
    for step in steps:
        image = step(image)


def _jpeg(seed: int) -> bytes:
    """A picture with detail at all scales."""
    random = np.random.default_rng(seed)
    total = np.zeros((375, 500, 3))
    for cells in (4, 16, 64, 256):
        small = Image.fromarray(random.integers(0, 256, (cells, cells, 3), np.uint8))
        total += np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC)) / 4
    file = io.BytesIO()
    Image.fromarray(total.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _timed(work: Callable[[], object], count: int) -> float:
    """Processor time in milliseconds a picture, the least of several rounds."""
    spent = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        work()
        spent.append(time.process_time() - begin)
    return 1e3 * min(spent) / count


if __name__ == "__main__":
    main()
