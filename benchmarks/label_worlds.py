"""Label sets of made-up logits for the benchmarks, written without a teacher.

Shapes: N rows, C classes, d features.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.codecs.codec import EncodedRows, encode_rows
from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.labelset.closing import close
from softlabel.pipeline.labelset.folder import claim, publish_head
from softlabel.pipeline.publish import publish_bytes
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.layouts import writing_shard
from softlabel.pipeline.shards.packing import Packing, make_packing
from softlabel.schemas.labelset import (
    CodecName,
    Fidelity,
    Identity,
    Layout,
    Making,
    Plan,
    Receipt,
    Segment,
    ShardPlan,
    SourceDigest,
    SourceFile,
    Statistics,
    canonical_json,
)
from softlabel.schemas.teacher import Preprocess

BATCH = 256
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
# Logits come round again after so many values: a teacher's output is fresh in the cache as well.
POOL_VALUES = 2**21
POOL_BATCHES = 16
SHARD = "part-00000"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class World:
    """One configuration: its logits, and keys and hard labels of `rows` rows."""

    name: str
    identity: Identity
    head: Head | None
    logits: Floats
    features: Floats | None
    keys: pa.StringArray
    labels: pa.Int32Array
    rows: int

    def packing(self, layout: Layout = "packed") -> Packing:
        """How its rows are stored in `layout`."""
        return make_packing(self.identity, layout, head=self.head)

    def fresh_blocks(self, packing: Packing, rows: int) -> Iterator[LabelBlock]:
        """The first `rows` rows in batches, each encoded when its turn comes."""
        for first in range(0, rows, BATCH):
            size = min(BATCH, rows - first)
            start = first % (len(self.logits) - BATCH + 1)
            yield self._block(packing, first, self.encode(packing, slice(start, start + size)))

    def blocks(self, packing: Packing, rows: int) -> Iterator[LabelBlock]:
        """The first `rows` rows in batches; their labels come round again after the first few."""
        pool = [
            self.encode(packing, slice(start, start + BATCH))
            for start in range(0, min(len(self.logits), POOL_BATCHES * BATCH) - BATCH + 1, BATCH)
        ]
        for number, first in enumerate(range(0, rows, BATCH)):
            block = self._block(packing, first, pool[number % len(pool)])
            yield block.slice(0, min(BATCH, rows - first))

    def encode(self, packing: Packing, taken: slice) -> EncodedRows:
        """What is stored of these logits."""
        features = None if self.features is None else self.features[taken]
        return encode_rows(packing.codec, self.logits[taken], features)

    def _block(self, packing: Packing, first: int, rows: EncodedRows) -> LabelBlock:
        count = min(len(rows.top1), self.rows - first)
        columns = {name: values[:count] for name, values in rows.columns.items()}
        return LabelBlock(
            self.keys.slice(first, count),
            self.labels.slice(first, count),
            rows.top1[:count],
            rows.shift[:count],
            columns,
            packing.codec,
        )


def make_world(
    codec: CodecName, classes: int, rows: int, k: int | None = None, width: int | None = None
) -> World:
    """A configuration whose logits look like a trained teacher's: a few classes stand out."""
    random = np.random.default_rng(0)
    pool = max(2 * BATCH, POOL_VALUES // classes)
    head = features = None
    if width is None:
        logits = random.normal(0, 2, (pool, classes)).astype(np.float32)
        logits[np.arange(pool), random.integers(0, classes, pool)] += 8
    else:
        weight = random.normal(0, 0.3, (classes, width)).astype(np.float32)
        head = Head(weight, np.zeros(classes, np.float32))
        features = np.maximum(random.normal(0, 1, (pool, width)), 0).astype(np.float32)
        logits = head.logits(features)
    extra = {"topk": f" {k}", "factored": f" d={width}"}.get(codec, "")
    return World(
        name=f"{codec}{extra}, C={classes:,}",
        identity=_identity(codec, classes, rows, k, head),
        head=head,
        logits=logits,
        features=features,
        keys=pa.array([f"sample-{row:08d}" for row in range(rows)]),
        labels=pa.array(random.integers(0, classes, rows), pa.int32()),
        rows=rows,
    )


def write_set(world: World, folder: Path, layout: Layout, rows: int) -> None:
    """A complete label set of the first `rows` rows in one shard."""
    shutil.rmtree(folder, ignore_errors=True)
    packing = world.packing(layout)
    segments = (Segment(source="source", first=0, rows=rows),)
    plan = Plan(
        identity=world.identity,
        execution=None,
        layout=layout,
        shards=(ShardPlan(name=SHARD, rows=rows, segments=segments),),
    )
    claim(folder, plan)
    if world.head is not None:
        publish_head(folder, world.head)
    with writing_shard(folder, SHARD, packing) as writer:
        for block in world.blocks(packing, rows):
            writer.append(block)
        size, digest = writer.finish()
    receipt = _receipt(SHARD, packing.identity_sha256, "source", rows, size, digest)
    publish_bytes(folder / f"{SHARD}.json", canonical_json(receipt))
    close(folder, plan)


def write_sparse_set(folder: Path, shards: int) -> None:
    """A set whose manifest and receipts are whole and whose shards are holes of the right size."""
    shutil.rmtree(folder, ignore_errors=True)
    world = make_world("dense-f16", 10, 1)
    names = [f"part-{index:05d}" for index in range(shards)]
    rows, size = 1000, 2**20
    source = tuple(SourceFile(name=name, rows=rows, bytes=size) for name in names)
    identity = world.identity.model_copy(update={"source": source})
    plan = Plan(
        identity=identity,
        # Of a merged set's keys nothing is looked at, which holes could not stand.
        making=Making(verb="merge", command="softlabel merge"),
        execution=None,
        shards=tuple(
            ShardPlan(name=name, rows=rows, segments=(Segment(source=name, first=0, rows=rows),))
            for name in names
        ),
    )
    claim(folder, plan)
    identity_sha256 = identity.digest()
    for name in names:
        receipt = _receipt(name, identity_sha256, name, rows, size, "0" * 64)
        (folder / f"{name}.json").write_bytes(canonical_json(receipt))
        with open(folder / f"{name}.parquet", "wb") as file:
            file.truncate(size)
    close(folder, plan)


def _receipt(shard: str, identity: str, source: str, rows: int, size: int, digest: str) -> Receipt:
    return Receipt(
        shard=shard,
        identity_sha256=identity,
        rows=rows,
        bytes=size,
        sha256=digest,
        source=(SourceDigest(name=source, bytes=0, sha256="0" * 64),),
        statistics=Statistics(labelled=rows, correct=rows),
        fidelity=Fidelity(rows=1, kl_sum=(0.0,) * len(TEMPERATURES)),
    )


def _identity(
    codec: CodecName, classes: int, rows: int, k: int | None, head: Head | None
) -> Identity:
    return Identity(
        teacher_sha256=("0" * 64,),
        preprocess=Preprocess(height=1, width=1, channels=1, mean=(0.5,), std=(0.5,)),
        classes=tuple(f"class-{number}" for number in range(classes)),
        class_map=None,
        output="logits",
        output_kind="logits",
        source=(SourceFile(name="source", rows=rows, bytes=0),),
        temperatures=TEMPERATURES,
        codec=codec,
        k=k,
        tail=None if k is None else "uniform",
        head_sha256=None if head is None else head.digest(),
    )
