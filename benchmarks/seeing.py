"""Time and memory of `evaluate`, `calibrate`, `report`, `inspect`, and of NumPy all in memory.

usage: python benchmarks/seeing.py WORK [--rows 320000] [--classes 1000] [--no-numpy]

WORK receives two worlds, of a quarter of the rows and of all: a source of one-pixel pictures, a
dense-f16 label set of made-up logits and a student of one hidden unit, so that measuring and not
the student takes the time; 3 kB a row for 1,000 classes. Each command runs in a process of its own,
the two sizes and NumPy one after the other; peak memory is that of the process. NumPy does what the
command does to one model, with all rows in memory, and needs 20 bytes a logit for it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from label_worlds import BATCH, SHARD, World, make_world

from softlabel.pipeline.labelset.closing import close
from softlabel.pipeline.labelset.folder import claim
from softlabel.pipeline.publish import make_folder, publish_bytes
from softlabel.pipeline.shards.layouts import writing_shard
from softlabel.pipeline.shards.tally import Tally
from softlabel.pipeline.small_models import mlp
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.parquet import write_source_shard
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.models import weights_bytes
from softlabel.schemas.labelset import (
    Plan,
    Segment,
    ShardPlan,
    SourceDigest,
    canonical_json,
    sha256_of,
)
from softlabel.schemas.model import report_json
from softlabel.schemas.reports import TrainReport
from softlabel.schemas.reports.training import EpochRecord, StudentCard
from softlabel.schemas.sample import SampleBlock

# Seconds of wall and processor, and the peak of resident memory, of what follows in argv.
TIMED = """
import resource, sys, time
begin = time.perf_counter()
{code}
wall = time.perf_counter() - begin
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(int(line.split()[1]) for line in open("{status}") if line.startswith("VmHWM:"))
print(f"{{wall:.1f}} {{used.ru_utime + used.ru_stime:.1f}} {{peak / 1024:.0f}}")
"""
STATUS = Path("/proc/self/status")
COMMAND = "from softlabel import cli; assert cli.run(sys.argv[1:]) == 0"
LOADED = """
import numpy as np, pyarrow.parquet as pq
classes, rows = int(sys.argv[2]), int(sys.argv[3])
table = pq.read_table(sys.argv[1], columns=["logits", "label"]).combine_chunks()
y = table["label"].to_numpy().astype(np.int64)
flat = np.frombuffer(table["logits"].chunk(0).buffers()[1], np.float16)
z = flat[: rows * classes].reshape(rows, classes).astype(np.float32)
every = np.arange(rows)
del table, flat
def softmax(z, T):
    p = np.exp(z / np.float32(T))
    p /= p.sum(axis=1, keepdims=True)
    return p
def ece(best, hit):
    bins = np.minimum((best * 15).astype(int), 14)
    return np.abs(np.bincount(bins, hit, 15) - np.bincount(bins, best, 15)).sum() / len(best)
"""
FIGURES = """
def figures(T):
    p = softmax(z, T)
    own, best, hit = p[every, y], p.max(axis=1), p.argmax(axis=1) == y
    order = np.argsort(-best)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1).mean()
    brier = ((p**2).sum(axis=1) - 2 * own + 1).mean()
    risk = (np.cumsum(~hit[order]) / np.arange(1, rows + 1)).mean()
    classwise = 0.0
    for label in range(classes):
        index = np.minimum((p[:, label] * 15).astype(int), 14)
        gaps = np.bincount(index, y == label, 15) - np.bincount(index, p[:, label], 15)
        classwise += np.abs(gaps).sum() / rows / classes
    return hit.mean(), -np.log(own).mean(), brier, ece(best, hit), risk, entropy, classwise
"""
IN_MEMORY = {
    "evaluate": LOADED + FIGURES + "figures(1.0)",
    "calibrate": LOADED
    + FIGURES
    + """
from scipy.optimize import minimize_scalar
half = rows // 2
mine, own = z[:half], z[every[:half], y[:half]]
def nll(T):
    return float((np.log(np.exp(mine / np.float32(T)).sum(axis=1)) - own / T).mean())
T = minimize_scalar(nll, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-6}).x
z, y, rows, every = z[half:], y[half:], rows - half, every[: rows - half]
print(figures(1.0), figures(T))
""",
    "report": LOADED
    + """
p = softmax(z, 4.0)
means = np.zeros((classes, classes), np.float32)
np.add.at(means, y, p)
means /= np.bincount(y, minlength=classes).clip(1)[:, None]
apart = np.empty(rows)
for first in range(0, rows, 4096):
    part = slice(first, first + 4096)
    apart[part] = np.abs(p[part] - means[y[part]]).sum(axis=1) / 2
shown = np.argsort(-apart)[:12]
few = z[:: max(1, rows // 8192)]
for T in np.geomspace(0.5, 20, 51):
    q = softmax(few, T)
    entropy = -(q * np.log(np.where(q > 0, q, 1))).sum(axis=1)
    np.histogram(entropy, 24, (0, np.log(classes))), np.histogram(q.max(axis=1), 20, (0, 1))
""",
}


def main() -> None:
    """Write the worlds and print a line a command and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rows", type=int, default=320_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--numpy", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    worlds = {}
    for rows in (arguments.rows // 4, arguments.rows):
        worlds[rows] = arguments.work.resolve() / str(rows)
        _write_world(worlds[rows], rows, arguments.classes)
    print("| what | rows | seconds | of processor | peak memory, MiB |")
    print("|---|---|---|---|---|", flush=True)
    for name in ("evaluate", "evaluate with labels", "calibrate", "inspect", "report"):
        for work in worlds.values():
            _line(name, work, COMMAND, _call(name, work))
        if name in IN_MEMORY and arguments.numpy:
            for rows, work in worlds.items():
                shard = str(work / "labels" / f"{SHARD}.parquet")
                called = [shard, str(arguments.classes), str(rows)]
                _line(f"NumPy for {name}", work, IN_MEMORY[name], called)


def _call(name: str, work: Path) -> list[str]:
    data, labels = ["--source", str(work / "data")], ["--labels", str(work / "labels")]
    evaluate = ["evaluate", "--models", str(work / "student"), *data]
    measured = str(work / "evaluate")
    shown = ["--models", str(work / "student"), "--evaluation", measured]
    calls = {
        "evaluate": [*evaluate, "--output", measured],
        "evaluate with labels": [*evaluate, *labels, "--output", measured],
        "calibrate": ["calibrate", *labels, "--output", str(work / "calibration.json")],
        "inspect": ["inspect", *labels],
        "report": ["report", *shown, *labels, *data, "--output", str(work / "report.html")],
    }
    return calls[name]


def _line(name: str, work: Path, code: str, arguments: list[str]) -> None:
    """Run the code there, where no params.yaml is, and print what it took."""
    command = [sys.executable, "-c", TIMED.format(code=code, status=STATUS), *arguments]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    wall, processor, peak = done.stdout.split()[-3:]
    print(f"| {name} | {int(work.name):,} | {wall} | {processor} | {peak} |", flush=True)


def _write_world(work: Path, rows: int, classes: int) -> None:
    world = make_world("dense-f16", classes, rows)
    world = replace(world, labels=pa.array(_drawn(world, rows), pa.int32()))
    pixels = np.zeros((rows, 1, 1, 1), np.uint8)
    make_folder(work / "data")
    block = SampleBlock(world.keys, pixels, world.labels)
    write_source_shard(work / "data" / "part-00000.parquet", block, world.identity.classes)
    source = open_source(work / "data")
    _write_labels(work / "labels", world, source, rows)
    _write_student(work / "student", source)


def _drawn(world: World, rows: int) -> np.ndarray:
    """Hard labels drawn from the softmax of 0.7 z, so that a temperature above 1 fits."""
    random = np.random.default_rng(1)
    pool = [world.logits[start : start + BATCH] for start in range(0, 16 * BATCH, BATCH)]
    pool = [part for part in pool if len(part) == BATCH]
    drawn = [
        (0.7 * pool[number % len(pool)] + random.gumbel(size=pool[0].shape)).argmax(axis=1)
        for number in range(len(pool))
    ]
    batches = -(-rows // BATCH)
    return np.concatenate([drawn[number % len(drawn)] for number in range(batches)])[:rows]


def _write_labels(folder: Path, world: World, source: Source, rows: int) -> None:
    world = replace(world, identity=world.identity.model_copy(update={"source": source.files}))
    packing = world.packing()
    (file,) = source.files
    shard = ShardPlan(
        name=SHARD, rows=rows, segments=(Segment(source=file.name, first=0, rows=rows),)
    )
    plan = Plan(identity=world.identity, execution=None, shards=(shard,))
    claim(folder, plan)
    tally = Tally(world.identity.temperatures, BATCH)
    with writing_shard(folder, SHARD, packing) as writer:
        for block in world.blocks(packing, rows):
            writer.append(block)
            tally.add(block, block.logits)
        written = writer.finish()
    digests = (SourceDigest(name=file.name, bytes=file.bytes, sha256="0" * 64),)
    receipt = tally.receipt(shard, packing.identity_sha256, written, digests)
    publish_bytes(folder / f"{SHARD}.json", canonical_json(receipt))
    close(folder, plan)


def _write_student(folder: Path, source: Source) -> None:
    weights = weights_bytes(mlp(len(source.classes), inputs=1, hidden=1))
    card = StudentCard(
        run="student",
        seed=0,
        model="softlabel.pipeline.small_models:mlp",
        model_args={"inputs": 1, "hidden": 1},
        weights="student.safetensors",
        weights_sha256=sha256_of(weights),
        classes=source.classes,
        height=1,
        width=1,
        channels=1,
        mean=(0.5,),
        std=(0.5,),
        parameters=2 + 2 * len(source.classes),
        loss="hard",
        temperature=None,
        soft_weight=None,
        label_smoothing=0.0,
        labels_identity_sha256=None,
    )
    make_folder(folder)
    publish_bytes(folder / card.weights, weights)
    publish_bytes(folder / "student.json", report_json(card))
    epoch = EpochRecord(epoch=0, learning_rate=0.1, loss=1.0, hard=1.0, train_accuracy=0.5)
    report = TrainReport(
        output=folder,
        run=card.run,
        seed=card.seed,
        loss=card.loss,
        parameters=card.parameters,
        samples=1,
        steps=1,
        device="none",
        seconds=0.0,
        labels_identity_sha256=None,
        history=(epoch,),
    )
    publish_bytes(folder / "train.json", report_json(report))


if __name__ == "__main__":
    main()
