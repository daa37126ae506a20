"""The label set on one core: encoding, writing, streaming, lookup and opening, against others.

usage: python benchmarks/labelset.py WORK [--megabytes 128] [--rounds 5] [--only NAME]

Everything runs on one core of the processor, threads of libraries included. Ratios are taken
within a round, whose two sides follow each other, and their median over the rounds is printed:
above 1 means that softlabel is faster. Files lie in WORK and in the page cache; nothing is synced
while the clock runs. Both sides write and verify page checksums; softlabel also hashes all it
writes (SHA-256). Prints Markdown.
"""

from __future__ import annotations

import os

# Before NumPy and the others size their pools.
os.environ |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset
from label_worlds import BATCH, SHARD, World, make_world, write_set, write_sparse_set

from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.packing import payload_bytes
from softlabel.pipeline.shards.parquet import ROW_GROUP_BYTES, ROW_OVERHEAD, ParquetWriter
from softlabel.pipeline.shards.parquet_columns import shard_schema, to_batch
from softlabel.pipeline.teachers.devices import cpu_name
from softlabel.schemas.labelset import CodecName, Layout

# What a row takes beside its payload, about; and the rows of the widest set at least.
KEY_BYTES = 32
LEAST_ROWS = 16384
# The slow sides of a comparison take fewer rows, and are compared by the row.
LISTS_SHARE = 4
# Logits that are encoded in a round, so that many classes take no longer than few.
ENCODED_VALUES = 2**26
WEBDATASET_ROWS = 2048
LOOKUPS = 200
MANY_SHARDS = 10_000
PARQUET = {"compression": "none", "use_dictionary": False, "write_statistics": False}


def main() -> None:
    arguments = _arguments()
    for set_threads in (pa.set_cpu_count, pa.set_io_thread_count, torch.set_num_threads):
        set_threads(1)
    writing, reading, finding = [], [], []
    for make in _configurations():
        world = make(arguments.megabytes * 10**6)
        if arguments.only and arguments.only not in world.name:
            continue
        work = arguments.work / "labels"
        writing.append(_writing(world, arguments.work, arguments.rounds))
        write_set(world, work, "packed", world.rows)
        reading.append(_reading(world, work, arguments.rounds))
        finding.append(_finding(world, work, arguments.rounds))
        shutil.rmtree(work)
    print(f"{cpu_name()}, one core; pyarrow {pa.__version__}, NumPy {np.__version__}, ", end="")
    print(f"torch {torch.__version__}, webdataset {webdataset.__version__}; ", end="")
    print(f"{arguments.rounds} rounds, batches of {BATCH}")
    _print("Encoding and writing", WRITING, writing)
    _print("Streaming", READING, reading)
    _print("Lookup of 256 random keys", FINDING, finding)
    if not arguments.only:
        _print("Opening", OPENING, [_opening(arguments.work, arguments.rounds)])


WRITING = (
    "set",
    "payload bytes",
    "encode µs/row",
    "encode + write µs/row",
    "aim",
    "write / pyarrow",
    "write / lists",
)
READING = ("set", "rows/s", "GB/s", "/ pyarrow", "torch / pyarrow", "/ lists", "/ webdataset")
FINDING = ("set", "µs a batch", "/ memory map and dict", "/ memory map by row")
OPENING = ("set", "seconds", "aim")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--megabytes", type=int, default=128, help="of a set, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="only the sets whose names hold this")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments


def _configurations() -> list[Callable[[int], World]]:
    """The sets, made one at a time, for so many bytes each: fixed costs must not speak."""
    return [
        *(
            partial(_sized, codec, classes)
            for classes in (10, 100, 1000)
            for codec in ("dense-f16", "dense-u8", "dense-f32")
        ),
        partial(_sized, "topk", 1000, k=10),
        partial(_sized, "topk", 50257, k=10),
        partial(_sized, "topk", 50257, k=64),
        partial(_sized, "factored", 1000, width=192),
    ]


def _sized(codec: CodecName, classes: int, size: int, **settings: int) -> World:
    small = make_world(codec, classes, 1, **settings)
    row_bytes = KEY_BYTES + payload_bytes(small.packing().codec)
    return make_world(codec, classes, max(LEAST_ROWS, size // row_bytes), **settings)


def _writing(world: World, work: Path, rounds: int) -> list[str]:
    """Encoding; writing what is encoded, against pyarrow and against fixed-size lists."""
    packing, lists = world.packing(), world.packing("lists")
    blocks = list(world.blocks(packing, world.rows))
    encoded_rows = min(world.rows, ENCODED_VALUES // len(world.identity.classes))
    few = blocks[: max(1, len(blocks) // LISTS_SHARE)]
    schema = shard_schema(packing)
    table = pa.Table.from_batches([to_batch(block, packing, schema) for block in blocks], schema)
    table = table.combine_chunks()
    group = _group_rows(world)
    file = work / "file.parquet"

    def encode() -> None:
        for _ in world.fresh_blocks(packing, encoded_rows):
            pass

    def both() -> None:
        with open(file, "wb") as opened:
            writer = ParquetWriter(opened, packing)
            for block in world.fresh_blocks(packing, encoded_rows):
                writer.append(block)
            writer.finish()

    def write(blocks: Sequence[LabelBlock], layout: Layout) -> Callable[[], None]:
        def run() -> None:
            with open(file, "wb") as opened:
                writer = ParquetWriter(opened, packing if layout == "packed" else lists)
                for block in blocks:
                    writer.append(block)
                writer.finish()

        return run

    def bare() -> None:
        pq.write_table(table, file, row_group_size=group, write_page_checksum=True, **PARQUET)

    steps = (encode, both, write(blocks, "packed"), bare, write(few, "packed"), write(few, "lists"))
    seconds = _rounds(steps, rounds)
    encode_micro, both_micro = (
        statistics.median(column) / encoded_rows * 1e6 for column in seconds[:2]
    )
    file.unlink()
    return [
        world.name,
        f"{payload_bytes(packing.codec):,}",
        f"{encode_micro:.2f}",
        f"{both_micro:.2f}",
        _write_aim(world),
        _ratio(seconds[3], seconds[2]) + " (aim 0.8)",
        _ratio(seconds[5], seconds[4]) + " (aim 8)",
    ]


def _write_aim(world: World) -> str:
    """The aims are for a thousand classes."""
    if len(world.identity.classes) != 1000:
        return ""
    return {"dense-f16": "5", "dense-u8": "5", "topk": "15"}.get(world.identity.codec, "")


def _group_rows(world: World) -> int:
    """Rows that softlabel puts into a row group, as pyarrow shall."""
    return max(1, ROW_GROUP_BYTES // (ROW_OVERHEAD + payload_bytes(world.packing().codec)))


def _reading(world: World, folder: Path, rounds: int) -> list[str]:
    """One pass over the set, against pyarrow's over the same row groups, and over other layouts."""
    few, lists, tars = (folder.with_name(name) for name in ("few", "lists", "tars"))
    lists_rows, tar_rows = world.rows // LISTS_SHARE, min(world.rows, WEBDATASET_ROWS)
    write_set(world, few, "packed", lists_rows)
    write_set(world, lists, "lists", lists_rows)
    write_set(world, tars, "sidecar", tar_rows)
    file = folder / f"{SHARD}.parquet"
    labels = open_labelset(folder)

    def bare() -> None:
        opened = pq.ParquetFile(file, page_checksum_verification=True)
        for group in range(opened.num_row_groups):
            opened.read_row_group(group)

    def tensors() -> None:
        for block in labels.batches(BATCH):
            for values in block.payload.values():
                torch.tensor(values)

    def groups() -> None:
        url = str(tars / f"{SHARD}.tar")
        for _ in webdataset.WebDataset(url, shardshuffle=False).decode():
            pass

    steps = (_stream(folder), bare, tensors, _stream(few), _stream(lists), groups)
    own, pyarrow, torched, own_few, listed, grouped = _rounds(steps, rounds)
    size = payload_bytes(world.packing().codec) * world.rows
    by_row = [seconds * world.rows / tar_rows for seconds in grouped]
    dense = world.identity.codec != "topk"
    for made in (few, lists, tars):
        shutil.rmtree(made)
    return [
        world.name,
        f"{world.rows / statistics.median(own):,.0f}",
        f"{size / statistics.median(own) / 1e9:.2f}",
        _ratio(pyarrow, own) + f" (aim {0.8 if dense else 0.5})",
        _ratio(pyarrow, torched) + f" (aim {0.6 if dense else 0.3})",
        _ratio(listed, own_few) + " (aim 4)",
        _ratio(by_row, own) + f" (aim {50 if dense else 200})",
    ]


def _stream(folder: Path) -> Callable[[], None]:
    labels = open_labelset(folder)

    def run() -> None:
        for block in labels.batches(BATCH):
            assert block.payload

    return run


def _finding(world: World, folder: Path, rounds: int) -> list[str]:
    """Random batches by key, against memory maps of the same columns in NumPy's own files."""
    labels = open_labelset(folder)
    maps = _memory_maps(folder, world.rows)
    numbers = {key: row for row, key in enumerate(world.keys.to_pylist())}
    random = np.random.default_rng(1)
    wanted = [random.integers(0, world.rows, BATCH) for _ in range(LOOKUPS)]
    asked = [world.keys.take(pa.array(rows)).to_pylist() for rows in wanted]
    labels.lookup(asked[0])

    def own() -> None:
        for keys in asked:
            labels.lookup(keys)

    def by_key() -> None:
        for keys in asked:
            rows = np.asarray([numbers[key] for key in keys])
            for column in maps:
                column[rows]

    def by_row() -> None:
        for rows in wanted:
            for column in maps:
                column[rows]

    seconds = _rounds((own, by_key, by_row), rounds)
    for file in folder.parent.glob("*.npy"):
        file.unlink()
    return [
        world.name,
        f"{statistics.median(seconds[0]) / LOOKUPS * 1e6:.0f}",
        _ratio(seconds[1], seconds[0]) + " (aim 0.5)",
        _ratio(seconds[2], seconds[0]),
    ]


def _memory_maps(folder: Path, rows: int) -> list[np.ndarray]:
    """Every value of a row but its key, a memory map a column."""
    maps: dict[str, np.ndarray] = {}
    first = 0
    for block in open_labelset(folder).batches(BATCH):
        values = block.payload | {"top1": block.top1, "shift": block.shift}
        values |= {"label": block.labels.to_numpy()}
        for name, part in values.items():
            if name not in maps:
                path = folder.with_name(f"{name}.npy")
                shape = (rows, *part.shape[1:])
                maps[name] = np.lib.format.open_memmap(path, "w+", part.dtype, shape)
            maps[name][first : first + len(block)] = part
        first += len(block)
    for column in maps.values():
        column.flush()  # type: ignore[attr-defined]
    return [np.load(folder.with_name(f"{name}.npy"), mmap_mode="r") for name in maps]


def _opening(work: Path, rounds: int) -> list[str]:
    folder = work / "many"
    write_sparse_set(folder, MANY_SHARDS)
    (seconds,) = _rounds((lambda: open_labelset(folder),), rounds)
    shutil.rmtree(folder)
    return [f"{MANY_SHARDS:,} shards", f"{statistics.median(seconds):.2f}", "1"]


def _rounds(steps: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each step in each round; the steps alternate, after one round that warms up."""
    seconds: list[list[float]] = [[] for _ in steps]
    for number in range(rounds + 1):
        for step, column in zip(steps, seconds, strict=True):
            begin = time.perf_counter()
            step()
            if number:
                column.append(time.perf_counter() - begin)
    return seconds


def _ratio(others: Sequence[float], own: Sequence[float]) -> str:
    ratio = statistics.median(b / a for a, b in zip(own, others, strict=True))
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.2f}"


def _print(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n")
    for line in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
