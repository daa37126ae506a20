"""Small blocks of label rows in every shape that a label set can have."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.codecs.codec import shift_rows
from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.labelset.closing import close
from softlabel.pipeline.publish import publish_bytes
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.layouts import writing_shard
from softlabel.pipeline.shards.packing import Packing, make_packing
from softlabel.schemas.labelset import (
    HEAD_FILE,
    PLAN_FILE,
    CodecName,
    Fidelity,
    Identity,
    Layout,
    Making,
    Plan,
    Receipt,
    ShardPlan,
    Statistics,
    canonical_json,
)
from softlabel.schemas.teacher import Preprocess

CODECS: tuple[CodecName, ...] = ("dense-f32", "dense-f16", "dense-u8", "topk", "factored")
CLASSES = tuple("abcdef")
KEPT = 3
MADE = Making(verb="merge", command="softlabel merge")
INNER = 3
FEATURES = 2

_random = np.random.default_rng(7)
HEAD = Head(
    _random.normal(size=(len(CLASSES), INNER)).astype(np.float32),
    _random.normal(size=len(CLASSES)).astype(np.float32),
)


def packing_of(
    codec: CodecName,
    layout: Layout = "packed",
    *,
    views: int = 1,
    positions: bool = False,
    features: bool = False,
) -> Packing:
    """The packing of a set of six classes; `topk` keeps three of them."""
    identity = Identity(
        teacher_sha256=("0" * 64,),
        preprocess=Preprocess(height=2, width=3, channels=1, mean=(0.5,), std=(0.5,)),
        classes=CLASSES,
        class_map=None,
        output="logits",
        output_kind="logits",
        source=(),
        views=views,
        temperatures=(1.0, 2.0, 4.0),
        codec=codec,
        k=KEPT if codec == "topk" else None,
        head_sha256=HEAD.digest() if codec == "factored" else None,
        features=FEATURES if features else None,
        positions=positions,
    )
    return make_packing(identity, layout, head=HEAD if codec == "factored" else None)


def block_of(
    packing: Packing, rows: int = 4, lengths: Sequence[int] | None = None, seed: int = 0
) -> LabelBlock:
    """Random rows of a set; every third hard label is unknown. `lengths` where rows are sequences.

    `rows` is a multiple of the views.
    """
    identity = packing.identity
    random = np.random.default_rng(seed)
    positions = rows if lengths is None else sum(lengths)
    inner = random.normal(size=(positions, INNER)).astype(np.float32)
    shifted = shift_rows(inner @ HEAD.weight.T + HEAD.bias)
    samples = np.arange(rows) // identity.views
    return LabelBlock(
        keys=pa.array([f"s/{sample}.é" for sample in samples], pa.string()),
        labels=_labels(random.integers(0, len(CLASSES), positions, np.int32)),
        top1=shifted.top1,
        shift=shifted.shift,
        payload=packing.codec.encode(replace(shifted, features=inner)),
        codec=packing.codec,
        views=(np.arange(rows) % identity.views).astype(np.uint16) if identity.views > 1 else None,
        lengths=None if lengths is None else np.asarray(lengths, np.uint32),
        features=None
        if identity.features is None
        else random.normal(size=(positions, identity.features)).astype(np.float16),
    )


def write_set(
    folder: Path,
    packing: Packing,
    shards: Sequence[LabelBlock],
    kl: Sequence[float] | None = None,
    **plan: Any,
) -> Path:
    """A complete label set with a shard a block; `plan` are further fields of its plan.

    kl: what the receipts shall say of each row's divergence at each temperature.
    """
    identity = packing.identity
    kl = [0.0] * len(identity.temperatures) if kl is None else kl
    parts = [
        ShardPlan(name=f"part-{number:05d}", rows=len(block), segments=())
        for number, block in enumerate(shards)
    ]
    described: Mapping[str, Any] = {"aligned": False, "execution": None, "making": MADE} | plan
    whole = Plan(identity=identity, layout=packing.layout, shards=tuple(parts), **described)
    folder.mkdir(parents=True)
    publish_bytes(folder / PLAN_FILE, canonical_json(whole))
    if identity.codec == "factored":
        publish_bytes(folder / HEAD_FILE, HEAD.to_bytes())
    for part, block in zip(parts, shards, strict=True):
        with writing_shard(folder, part.name, packing) as writer:
            writer.append(block)
            size, digest = writer.finish()
        hard = block.labels.fill_null(-1).to_numpy(zero_copy_only=False)
        receipt = Receipt(
            shard=part.name,
            identity_sha256=identity.digest(),
            rows=part.rows,
            bytes=size,
            sha256=digest,
            source=(),
            statistics=Statistics(
                labelled=int((hard >= 0).sum()), correct=int((hard == block.top1).sum())
            ),
            fidelity=Fidelity(rows=part.rows, kl_sum=tuple(part.rows * value for value in kl)),
        )
        publish_bytes(folder / f"{part.name}.json", canonical_json(receipt))
    close(folder, whole)
    return folder


def same(one: LabelBlock, other: LabelBlock) -> None:
    """Assert that two blocks say the same, to the type and the bit."""
    assert one.keys.to_pylist() == other.keys.to_pylist()
    assert one.labels.type == other.labels.type
    assert one.labels.to_pylist() == other.labels.to_pylist()
    assert one.payload.keys() == other.payload.keys()
    for name, values in one.payload.items():
        _equal(values, other.payload[name])
    for name in ("top1", "shift", "views", "lengths", "features"):
        _equal(getattr(one, name), getattr(other, name))


def _labels(labels: npt.NDArray[np.int32]) -> pa.Int32Array:
    return pa.array(labels, pa.int32(), mask=np.arange(len(labels)) % 3 == 2)


def _equal(one: npt.NDArray[np.generic] | None, other: npt.NDArray[np.generic] | None) -> None:
    if one is None or other is None:
        assert one is other
        return
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()
