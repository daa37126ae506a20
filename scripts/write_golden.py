"""Write the golden label sets of tests/golden/: small sets of every codec and layout.

They hold format version 1 still: tests/unit/shards/test_golden.py reads them with whatever the code
has become. So they are written once, and never again for version 1. A set that is missing is
added; one that stands is left alone, but with --replace, which is for the time before a format is
released.

    python scripts/write_golden.py [--replace] [NAME ...]

Each folder has the label set as `labels/`, and `expected.json` with what a reader must find:
keys, hard labels, and soft targets computed here from the teacher's logits by the formulas of
docs/format.md, in float64 and without the reader that is under test. SHA256SUMS lists every file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import math
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.codecs.codec import encode_rows
from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.codecs.numerics import kl_sums
from softlabel.pipeline.labelset.closing import close
from softlabel.pipeline.labelset.folder import claim, publish_head
from softlabel.pipeline.publish import publish_bytes
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.layouts import writing_shard
from softlabel.pipeline.shards.packing import Packing, make_packing
from softlabel.schemas.labelset import (
    CodecName,
    ExecutionRecord,
    Fidelity,
    Identity,
    Layout,
    Plan,
    Receipt,
    Segment,
    ShardPlan,
    SourceDigest,
    SourceFile,
    Statistics,
    canonical_json,
)
from softlabel.schemas.params import ConvertParams
from softlabel.schemas.teacher import Preprocess
from softlabel.stages import convert

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
SUMS = "SHA256SUMS"

CODECS: tuple[CodecName, ...] = ("dense-f32", "dense-f16", "dense-u8", "topk", "factored")
LAYOUTS: tuple[Layout, ...] = ("packed", "lists", "sidecar", "merged")
RECORDED = (1.0, 2.0, 4.0)
ASKED = (1.0, 2.5, 4.0)
CLASSES = ("ant", "bee", "cat", "dog", "eel", "höhlenbär")
K = 3
PRIOR = (0.0, -0.5, -1.25, -2.0, -0.125, -3.5)
DIGITS = 7

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

# Values that float16 and float32 hold, so that the product below is the same on every machine.
HEAD = Head(
    np.asarray(
        [[2, -1, 0.5], [2, 1, -0.25], [-1.5, 1, 1], [0, 0.75, -2], [-1, -2, 0.125], [0.25, 0.5, 3]],
        np.float32,
    ),
    np.asarray([0.5, 0.5, -0.25, 1, -2, 0.125], np.float32),
)
# The last: the second class is ahead, and in float16 the first, so that top1 must settle it.
INNER = np.asarray(
    [[1.1, -2.3, 0.7], [-0.4, 3.1, 1.9], [0.01, 0.02, -4.7], [9, 1.0003, 2.6672]], np.float32
)
FEATURES = np.asarray([[0.5, -1.25], [3, 65504], [-6e-8, 0], [0.1, 7]], np.float16)
LABELS = (0, None, 3, 1)
PLAIN_LOGITS = np.asarray(
    [
        [1.25, -3.1, 0.77, 4.2, 4.1999, -0.6],
        [-2.5, 7, 1e-3, 6.99, 7, -40.25],
        [12.5, -9000, 3.1, 2.7, -70000, 12.4999],
        [0.5, 8.25, 1.75, -2.2, -3.3, -5.5],
    ],
    np.float32,
)
MASKED = (3, slice(3, None))


@dataclass(frozen=True)
class Golden:
    """What one golden set is to hold."""

    codec: CodecName
    layout: Layout
    views: bool = False
    positions: bool = False
    features: bool = False
    prior: bool = False

    @property
    def name(self) -> str:
        """The set's folder."""
        kinds = ("views", "positions", "features", "prior")
        return "-".join([self.codec, self.layout, *(kind for kind in kinds if getattr(self, kind))])


def golden_sets() -> list[Golden]:
    """Every codec in every layout, plain and with all that rows can have; and each of it alone."""
    sets = []
    for layout in LAYOUTS:
        for codec in CODECS:
            sets.append(Golden(codec, layout))
            sets.append(Golden(codec, layout, True, True, codec != "factored"))
        sets.append(Golden("dense-f16", layout, views=True))
        sets.append(Golden("dense-f16", layout, positions=True))
        sets.append(Golden("dense-f16", layout, features=True))
        sets.append(Golden("topk", layout, prior=True))
    return sets


def main() -> int:
    """Write what is missing, then the list of digests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replace", action="store_true", help="write sets that stand once more")
    parser.add_argument("names", nargs="*", help="sets to write; default: all")
    given = parser.parse_args()
    for golden in golden_sets():
        folder = GOLDEN / golden.name
        if given.names and golden.name not in given.names:
            continue
        if folder.exists() and not given.replace:
            print(f"{golden.name}: stands, left alone")
            continue
        shutil.rmtree(folder, ignore_errors=True)
        write_golden(folder, golden)
        print(f"{golden.name}: written")
    (GOLDEN / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests()))
    return 0


def digests() -> list[tuple[str, str]]:
    """Name and SHA-256 of every golden file."""
    files = sorted(path for path in GOLDEN.rglob("*") if path.is_file() and path.name != SUMS)
    return [
        (path.relative_to(GOLDEN).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    ]


def write_golden(folder: Path, golden: Golden) -> None:
    """The label set and what a reader must find in it."""
    packing = packing_of(golden)
    block, logits = rows_of(golden, packing)
    folder.mkdir(parents=True)
    if golden.layout == "merged":
        with tempfile.TemporaryDirectory() as place:
            write_labels(Path(place, "labels"), packing, block, logits)
            write_tar(Path(place, "source.tar"), dict.fromkeys(block.keys.to_pylist()))
            merge = ConvertParams(
                labels=Path(place, "labels"),
                output=folder / "labels",
                layout="merged",
                source=Path(place, "*.tar"),
            )
            convert.run(merge)
    else:
        write_labels(folder / "labels", packing, block, logits)
    text = json.dumps(expected(golden, block, logits), indent=1, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


def packing_of(golden: Golden) -> Packing:
    """Identity, layout and codec; what is to be merged is packed before."""
    identity = Identity(
        teacher_sha256=(hashlib.sha256(b"teacher").hexdigest(),),
        preprocess=Preprocess(height=2, width=3, channels=1, mean=(0.5,), std=(0.25,)),
        classes=CLASSES,
        class_map=(1, 0, 2, 3, 4, 5),
        output="logits",
        output_kind="logits",
        source=(SourceFile(name="part-00000.parquet", rows=samples_of(golden), bytes=4321),),
        views=2 if golden.views else 1,
        seed=7 if golden.views else 0,
        temperatures=RECORDED,
        codec=golden.codec,
        k=K if golden.codec == "topk" else None,
        tail=("prior" if golden.prior else "uniform") if golden.codec == "topk" else None,
        head_sha256=HEAD.digest() if golden.codec == "factored" else None,
        features=FEATURES.shape[1] if golden.features else None,
        positions=golden.positions,
    )
    return make_packing(
        identity,
        "packed" if golden.layout == "merged" else golden.layout,
        prior=PRIOR if golden.prior else None,
        head=HEAD if golden.codec == "factored" else None,
    )


def samples_of(golden: Golden) -> int:
    """Four positions are two samples of two views, three sequences, or four samples."""
    return 2 if golden.views else 3 if golden.positions else 4


def rows_of(golden: Golden, packing: Packing) -> tuple[LabelBlock, Floats]:
    """The rows, and the teacher's logits `[4, C]`."""
    logits = PLAIN_LOGITS.copy()
    if golden.codec == "factored":
        exact = INNER.astype(np.float64) @ HEAD.weight.T + HEAD.bias
        logits = exact.astype(np.float32)
    elif golden.codec != "dense-u8":
        logits[MASKED] = -np.inf
    packed = encode_rows(packing.codec, logits, INNER if golden.codec == "factored" else None)
    # A tar of the source names its samples itself, and has no dot in a name.
    keys = ["a/one", "zwei", "three 3", "4"]
    if golden.layout != "merged":
        keys = ["img/001.jpeg", "__zwei__", "50% ä/\\", "4"]
    keys = keys[: samples_of(golden)]
    lengths = {(True, True): (1, 0, 2, 1), (False, True): (2, 0, 2)}
    sizes = lengths.get((golden.views, golden.positions))
    return (
        LabelBlock(
            keys=pa.array([key for key in keys for _ in range(2 if golden.views else 1)]),
            labels=pa.array(LABELS, pa.int32()),
            top1=packed.top1,
            shift=packed.shift,
            payload=packed.columns,
            codec=packing.codec,
            views=np.asarray([0, 1, 0, 1], np.uint16) if golden.views else None,
            lengths=None if sizes is None else np.asarray(sizes, np.uint32),
            features=FEATURES if golden.features else None,
        ),
        logits,
    )


def write_labels(folder: Path, packing: Packing, block: LabelBlock, logits: Floats) -> None:
    """A complete set as `infer` leaves it; that of plain dense-f16 has two shards."""
    identity = packing.identity
    plain = not (identity.views > 1 or identity.positions or identity.features)
    cuts = [0, 3, 4] if identity.codec == "dense-f16" and plain else [0, len(block)]
    source = identity.source[0]
    shards = tuple(
        ShardPlan(
            name=f"part-{number:05d}",
            rows=end - first,
            segments=(
                Segment(
                    source=source.name,
                    first=first // identity.views,
                    rows=(end - first) // identity.views,
                ),
            ),
        )
        for number, (first, end) in enumerate(itertools.pairwise(cuts))
    )
    plan = Plan(
        identity=identity,
        execution=ExecutionRecord(
            provider="CPUExecutionProvider",
            device="x86_64",
            precision="float32",
            batch_size=4,
            threads=1,
            onnxruntime="1.31.1",
        ),
        layout=packing.layout,
        prior=PRIOR if identity.tail == "prior" else None,
        shards=shards,
    )
    claim(folder, plan)
    if identity.codec == "factored":
        publish_head(folder, HEAD)
    starts = block.starts()
    for shard, (first, end) in zip(shards, itertools.pairwise(cuts), strict=True):
        piece = block.slice(first, end - first)
        write_shard(folder, packing, shard, piece, logits[starts[first] : starts[end]])
    close(folder, plan)


def write_shard(
    folder: Path, packing: Packing, shard: ShardPlan, block: LabelBlock, logits: Floats
) -> None:
    """One shard and its receipt."""
    with writing_shard(folder, shard.name, packing) as writer:
        writer.append(block)
        size, digest = writer.finish()
    labels = block.labels.fill_null(-1).to_numpy(zero_copy_only=False)
    source = packing.identity.source[0]
    receipt = Receipt(
        shard=shard.name,
        identity_sha256=packing.identity_sha256,
        rows=shard.rows,
        bytes=size,
        sha256=digest,
        source=(
            SourceDigest(
                name=source.name, bytes=source.bytes, sha256=hashlib.sha256(b"source").hexdigest()
            ),
        ),
        statistics=Statistics(
            labelled=int((labels >= 0).sum()), correct=int((labels == block.top1).sum())
        ),
        fidelity=Fidelity(
            rows=len(labels),
            kl_sum=kl_sums(logits, [block.logits(T) for T in RECORDED], RECORDED),
        ),
    )
    publish_bytes(folder / f"{shard.name}.json", canonical_json(receipt))


def write_tar(path: Path, keys: Iterable[str]) -> None:
    """A source as others write it: two members a sample."""
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for suffix, data in ((".jpg", f"picture of {key}".encode()), (".cls", b"2")):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def expected(golden: Golden, block: LabelBlock, logits: Floats) -> dict[str, Any]:
    """What a reader must find: one soft target a position at each asked temperature."""
    found: dict[str, Any] = {"keys": block.keys.to_pylist(), "labels": list(LABELS)}
    if block.views is not None:
        found["views"] = block.views.tolist()
    if block.lengths is not None:
        found["lengths"] = block.lengths.tolist()
    if block.features is not None:
        found["features"] = block.features.astype(float).tolist()
    found["top1"] = [int(np.flatnonzero(row == row.max())[0]) for row in logits]
    found["shift"] = [float(row.max()) for row in logits]
    found["targets"] = {
        f"{T:g}": [[_rounded(p) for p in row] for row in targets(golden, logits, T)] for T in ASKED
    }
    return found


def targets(golden: Golden, logits: Floats, T: float) -> Doubles:
    """softmax over what the codec keeps of each row, at T, in float64."""
    d = (logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    match golden.codec:
        case "dense-f32":
            kept = d.astype(np.float64)
        case "dense-f16":
            kept = _half(d)
        case "dense-u8":
            kept = np.stack([_byte(row) for row in d])
        case "topk":
            prior = PRIOR if golden.prior else (0.0,) * len(CLASSES)
            kept = np.stack([_topk(row, prior, T) for row in d])
        case "factored":
            inner = INNER.astype(np.float16).astype(np.float64)
            kept = inner @ HEAD.weight.T.astype(np.float64) + HEAD.bias
            turned = np.flatnonzero(kept.argmax(axis=1) != logits.argmax(axis=1))
            if turned.tolist() != [3]:
                raise ValueError(f"rows {turned} are settled by top1, and not the last alone")
            kept[3, logits[3].argmax()] = kept[3].max()
    mass = np.exp((kept - kept.max(axis=1, keepdims=True)) / T)
    return np.asarray(mass / mass.sum(axis=1, keepdims=True))


def _half(d: Floats) -> Doubles:
    kept = np.where(np.isneginf(d), d, np.maximum(d, -65504)).astype(np.float16).astype(np.float64)
    return np.where((kept == 0) & (d < 0), -(2.0**-24), kept)


def _byte(d: Floats) -> Doubles:
    spread = -float(d.min())
    steps = 255 * np.sqrt(-d.astype(np.float64) / spread)
    if (np.abs(steps % 1 - 0.5) < 1e-3).any():
        raise ValueError("a value stands between two steps: its rounding is nobody's to foretell")
    q = np.maximum(np.rint(steps), 1)
    q[int(np.argmax(d))] = 0
    return np.asarray(-spread * (q / 255) ** 2)


def _topk(d: Floats, prior: Sequence[float], T: float) -> Doubles:
    """The kept logits, and for the others the prior, lifted to the tail's mass by bisection."""
    order = sorted(range(len(d)), key=lambda number: (-d[number], number))
    kept, rest = order[:K], order[K:]
    values = _half(d)
    ceiling = values[kept].min()
    mass = _tail_log_sum(d[rest].astype(np.float64), T)
    if mass == -math.inf:
        values[rest] = -math.inf
        return values
    low, high = -1e6, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        lifted = [min(prior[number] + middle, ceiling) for number in rest]
        total = math.fsum(math.exp(value / T) for value in lifted)
        low, high = (middle, high) if total < math.exp(mass) else (low, middle)
    values[rest] = [min(prior[number] + low, ceiling) for number in rest]
    return values


def _tail_log_sum(tail: Doubles, T: float) -> float:
    """The log-sum of the classes left out, between recorded temperatures on the chord in 1/T."""

    def recorded(at: float) -> float:
        highest = float(tail.max())
        if highest == -math.inf:
            return highest
        return highest / at + math.log(math.fsum(math.exp((d - highest) / at) for d in tail))

    below = max(at for at in RECORDED if at <= T)
    above = [at for at in RECORDED if at > T]
    if below == T:
        return recorded(T)
    far, end = (1 / min(above), recorded(min(above))) if above else (0.0, math.log(len(tail)))
    near = recorded(below)
    if near == -math.inf:
        return near
    weight = (1 / T - far) / (1 / below - far)
    return (1 - weight) * end + weight * near


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


if __name__ == "__main__":
    sys.exit(main())
