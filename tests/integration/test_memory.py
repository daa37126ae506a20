"""Memory does not grow with the rows: what 4N take at the most is what N take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from softlabel.pipeline.codecs.codec import shift_rows
from softlabel.pipeline.shards import parquet as parquet_shards
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.packing import make_packing
from softlabel.pipeline.small_models import mlp
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.parquet import write_source_shard
from softlabel.pipeline.teachers.models import weights_bytes
from softlabel.schemas.labelset import sha256_of
from softlabel.schemas.model import report_json
from softlabel.schemas.reports.training import StudentCard
from softlabel.schemas.sample import SampleBlock, TeacherOutput
from tests.unit.blocks import packing_of, write_set
from tests.unit.builders import write_labels

CLASSES = 1000
NAMES = tuple(f"c{number}" for number in range(CLASSES))
# N rows are several shards of two dozen row groups each: they have filled every queue, and what a
# shard leaves behind when the next one is opened stands already.
SHARD_ROWS = 6_250
SHARDS = 4
# How many groups a thread is ahead hangs on what else the machine does: few bytes beside the rest.
GROUP_BYTES = 2**20
ALLOWED = 1.1
RUNS = 3

# ru_maxrss begins at what the parent held when it forked; this begins anew with the program.
STATUS = Path("/proc/self/status")
PEAK = f"""
(line,) = [line for line in open({str(STATUS)!r}) if line.startswith("VmHWM:")]
print(line.split()[1])
"""
SMALL_GROUPS = f"""
from softlabel.pipeline.shards import parquet as parquet_shards
parquet_shards.ROW_GROUP_BYTES = {GROUP_BYTES}
"""
READ = """
import sys, softlabel
labels = softlabel.open(sys.argv[1])
rows = sum(len(block.payload["logits"]) for block in labels.batches(256))
assert rows == len(labels)
"""
KEEP = """
import sys, softlabel
labels = softlabel.open(sys.argv[1])
kept = [block.payload["logits"].copy() for block in labels.batches(256)]
"""
# What is mapped counts as the process's although it is the kernel's to take back, so what the
# process holds itself is looked at all the time.
WATCH = """
import sys, threading, time, softlabel
held = []
def look():
    while True:
        with open("/proc/self/status") as status:
            held.extend(line.split()[1] for line in status if line.startswith("RssAnon:"))
        time.sleep(0.002)
threading.Thread(target=look, daemon=True).start()
"""
LOOKUP = """
import glob, shutil
for cache in glob.glob(sys.argv[1] + ".lookup-*"):
    shutil.rmtree(cache)
labels = softlabel.open(sys.argv[1])
keys = [f"n{row:07d}" for row in range(0, len(labels), len(labels) // 100)]
assert labels.lookup(keys).keys.to_pylist() == keys
print(max(map(int, held)))
"""
LOAD = """
source, labels = (f"{sys.argv[1]}/{name}" for name in ("pictures.npy", "labels"))
dataset = softlabel.torch.DistillationDataset(source, labels, shuffle_rows=4096)
assert sum(len(batch.keys) for batch in dataset) == len(softlabel.open(labels))
print(max(map(int, held)))
"""
CONVERT = """
import shutil, sys
from softlabel import cli
shutil.rmtree(sys.argv[1] + sys.argv[2], ignore_errors=True)
code = cli.run(["convert", "--labels", sys.argv[1], "--output", sys.argv[1] + sys.argv[2]]
               + sys.argv[3:])
assert code == 0
"""
INSPECT = """
import sys
from softlabel import cli
assert cli.run(["inspect", "--labels", sys.argv[1], "--json"]) == 0
"""
VERIFY = """
import sys
from softlabel import cli
assert cli.run(["verify", "--labels", sys.argv[1], "--json"]) == 0
"""
CALIBRATE = """
import sys
from softlabel import cli
assert cli.run(["calibrate", "--labels", sys.argv[1], "--output", sys.argv[1] + ".json"]) == 0
"""
EVALUATE = """
import sys
from softlabel import cli
data = ["--source", sys.argv[1] + "-source", "--models", "student"]
assert cli.run(["evaluate", *data, "--output", sys.argv[1] + "-figures"]) == 0
"""
REPORT = """
import sys
from softlabel import cli
assert cli.run(["report", "--labels", sys.argv[1], "--output", sys.argv[1] + ".html"]) == 0
"""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STATUS.exists(), reason="the peak is read from Linux's /proc"),
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Label sets of N and of 4N rows, of 100 and 400 MB, sources as long, and a student."""
    folder = tmp_path_factory.mktemp("memory")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_shards, "ROW_GROUP_BYTES", GROUP_BYTES)
        made = write(folder / "one", SHARDS), write(folder / "four", 4 * SHARDS)
    write_sources(folder / "one-source", SHARDS)
    write_sources(folder / "four-source", 4 * SHARDS)
    write_student(folder / "student")
    yield made
    shutil.rmtree(folder)


def write(folder: Path, shards: int) -> Path:
    base = packing_of("dense-f32").identity
    packing = make_packing(base.model_copy(update={"classes": NAMES}))
    random = np.random.default_rng(0)
    rows = shift_rows(random.normal(0, 4, (SHARD_ROWS, CLASSES)).astype(np.float32))
    payload = packing.codec.encode(rows)
    labels = pa.array(np.where(random.random(SHARD_ROWS) < 0.6, rows.top1, 0), pa.int32())

    def shard(number: int) -> LabelBlock:
        first = number * SHARD_ROWS
        keys = pa.array([f"n{row:07d}" for row in range(first, first + SHARD_ROWS)], pa.string())
        return LabelBlock(keys, labels, rows.top1, rows.shift, payload, packing.codec)

    return write_set(folder, packing, [shard(number) for number in range(shards)])


def write_sources(folder: Path, shards: int) -> None:
    """Pictures of one pixel."""
    folder.mkdir()
    for number in range(shards):
        rows = range(number * SHARD_ROWS, (number + 1) * SHARD_ROWS)
        pixels = np.zeros((len(rows), 1, 1, 1), np.uint8)
        keys = pa.array([f"n{row:07d}" for row in rows])
        block = SampleBlock(keys, pixels, pa.array(np.arange(len(rows)) % CLASSES, pa.int32()))
        write_source_shard(folder / f"part-{number:05d}.parquet", block, NAMES)


def write_student(folder: Path) -> None:
    weights = weights_bytes(mlp(CLASSES, inputs=1, hidden=1))
    card = StudentCard(
        run="student",
        seed=0,
        model="softlabel.pipeline.small_models:mlp",
        model_args={"inputs": 1, "hidden": 1},
        weights="student.safetensors",
        weights_sha256=sha256_of(weights),
        classes=NAMES,
        height=1,
        width=1,
        channels=1,
        mean=(0.5,),
        std=(0.5,),
        parameters=2 + 2 * CLASSES,
        loss="hard",
        temperature=None,
        soft_weight=None,
        label_smoothing=0.0,
        labels_identity_sha256=None,
    )
    folder.mkdir()
    (folder / card.weights).write_bytes(weights)
    (folder / "student.json").write_bytes(report_json(card))


def peak(program: str, *arguments: str) -> int:
    """What the program prints last: the most memory that its process held, in kB."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_GROUPS + program, *arguments],
        cwd=Path(arguments[0]).parent,
        # What Arrow's allocator is given back goes back to the system, or it would count as held.
        env={**os.environ, "MIMALLOC_PURGE_DELAY": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def expect_constant(sets: tuple[Path, Path], program: str, *arguments: str) -> None:
    """Compare what each needs: the least of up to three peaks.

    A thread that gets further ahead on a busy machine holds a few MB more, in one run or another.
    """
    peaks: list[tuple[int, ...]] = []
    while len(peaks) < RUNS:
        peaks.append(tuple(peak(program, str(folder), *arguments) for folder in sets))
        one, four = (min(column) for column in zip(*peaks, strict=True))
        if four <= ALLOWED * one:
            return
    raise AssertionError(f"{four} kB for 4N rows, {one} kB for N")


def test_the_measure_sees_growth(sets: tuple[Path, Path]) -> None:
    """What keeps every batch is found out, so the others pass for a reason."""
    with pytest.raises(AssertionError, match="kB for 4N rows"):
        expect_constant(sets, KEEP + PEAK)


@pytest.mark.parametrize(
    "program",
    [
        READ + PEAK,
        WATCH + LOOKUP,
        INSPECT + PEAK,
        VERIFY + PEAK,
        CALIBRATE + PEAK,
        EVALUATE + PEAK,
        REPORT + PEAK,
    ],
    ids=["batches", "lookup", "inspect", "verify", "calibrate", "evaluate", "report"],
)
def test_reading(sets: tuple[Path, Path], program: str) -> None:
    expect_constant(sets, program)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-lists", "--layout", "lists"),
        ("-half", "--codec", "dense-f16"),
        ("-sidecar", "--layout", "sidecar"),
        ("-small", "--shard-rows", "7000"),
    ],
    ids=["lists", "dense-f16", "sidecar", "shard-rows"],
)
def test_converting(sets: tuple[Path, Path], arguments: tuple[str, ...]) -> None:
    expect_constant(sets, CONVERT + PEAK, *arguments)


def test_loading(tmp_path: Path) -> None:
    """Pictures and labels joined: of 4N samples as many wait as of N."""
    rows = SHARDS * SHARD_ROWS
    one, four = labelled(tmp_path / "one", rows), labelled(tmp_path / "four", 4 * rows)
    expect_constant((one, four), WATCH + LOAD)
    for folder in (one, four):
        shutil.rmtree(folder)


def labelled(folder: Path, rows: int) -> Path:
    """A source of so many pictures with its labels, 2.8 kB a sample."""
    folder.mkdir()
    np.save(folder / "pictures.npy", np.zeros((rows, 28, 28), np.uint8))
    np.save(folder / "pictures.labels.npy", np.zeros(rows, np.uint8))
    source = open_source(folder / "pictures.npy").naming([f"c{n}" for n in range(CLASSES)])
    write_labels(folder / "labels", source, 1024, 2 * SHARD_ROWS, said)
    return folder


def said(pixels: npt.NDArray[np.uint8]) -> TeacherOutput:
    return TeacherOutput(np.zeros((len(pixels), CLASSES), np.float32))
